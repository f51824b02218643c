"""Decorrelation and DecorLinear: thin shells that hold R, transform their input, and ask a rule where R should go.

What is true of every layer here

* ``forward`` transforms and remembers; it never changes R. ``update()`` sets ``.grad`` of the decorrelation parameters
  from the remembered batch and returns the loss; ``step()`` moves them. :class:`decorlib.DecorSGD` does so for a model.
* R gets no gradient from backpropagation; gradients pass through it to the input.
* A decorrelated layer is a reparametrisation of the plain one: W (R (x - mu) + b_R) + b is again a linear map of x,
  which is what :func:`decorlib.fuse` writes out.
"""

from decorlib.layers.attention import DecorMultiheadAttention
from decorlib.layers.conv import DecorConv2d
from decorlib.layers.conv_ranks import DecorConv1d, DecorConv3d
from decorlib.layers.conv_transpose import DecorConvTranspose2d
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.linear import DecorLinear
from decorlib.layers.memory import NonFiniteInput
from decorlib.layers.models import (
    bp_parameters,
    decor_measure,
    decor_modules,
    decor_parameters,
    decor_step,
    decor_update,
    padding,
)

__all__ = [
    "DecorConv1d",
    "DecorConv2d",
    "DecorConv3d",
    "DecorConvTranspose2d",
    "DecorLinear",
    "DecorMultiheadAttention",
    "Decorrelation",
    "NonFiniteInput",
    "bp_parameters",
    "decor_measure",
    "decor_modules",
    "decor_parameters",
    "decor_step",
    "decor_update",
    "padding",
]
