"""Notebook 07: is there a gain?"""
