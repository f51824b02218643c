"""Notebook 06: how does it convolve?"""
