"""Notebook 08: what does it cost?"""
