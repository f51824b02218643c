"""Notebooks -> executed notebooks -> the report, and the command that does it all (``reproduce``).

Imports evidence, and of sweeps only ``source``; no experiment and no question.
"""
