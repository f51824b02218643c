"""Notebook 02: is it the scaling, or the mean?"""
