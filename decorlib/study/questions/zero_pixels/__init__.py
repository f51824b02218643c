"""Notebook 01: do pixels that are always zero break it?"""
