"""Data: what is fetched or shipped, checked (``datasets``), and how it becomes inputs of a network (``inputs``).

The MNIST files lie beside this file. This room imports no other room of decorlib.
"""
