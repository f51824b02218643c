"""Notebook 03: does the target variance matter?"""
