"""Notebook 05: which learning rule?"""
