"""Callbacks for the loops of other libraries. Each module needs its library, and is imported only by whoever uses it.

This room imports the optimizers of R.
"""
