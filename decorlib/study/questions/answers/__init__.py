"""Notebook 09: what are the answers, and how far do their numbers move between machines?"""
