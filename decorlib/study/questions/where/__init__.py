"""Notebook 11: where does it pay?"""
