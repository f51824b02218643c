"""One training run and what all comparisons share: networks, arms, counted work, timing, and the notebook of 2024.

Imports the library, sweeps and evidence; no question and nothing of the report.
"""
