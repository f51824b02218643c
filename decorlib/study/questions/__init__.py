"""One folder a notebook, named by its question, with its runs and its figures.

A question imports the library, sweeps, evidence and experiments, and no other question.
"""
