"""Notebook 04: is it the optimizer?"""
