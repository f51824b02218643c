"""Notebook 10: what would you use instead?"""
