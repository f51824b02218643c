"""The products of a layer's forward, each with the gradient that its algebra allows instead of one node per operation.

Subtracting the mean of a batch is the projection P = I - 11'/B from the left. It commutes with every product from the
right, so that its gradient may be taken where it is cheapest: of a gradient that has M columns instead of D, whose sum
over the batch is the bias's gradient anyway. For z = (P x) R' W' + b, with g the gradient of z,

* R, then W:  dW = g' y,            db = sum g,  dx = (P g) W R     -- y is kept, x is not
* V = W R:    dV = (P g)' x,        db = sum g,  dx = (P g) V       -- x - mean is never written

The composed forms below say the same in torch's own operations. They are what everything else than plain eager
training goes through: torch.compile, torch.func and forward-mode differentiation, autocast, tensors of other types,
groups, means over processes or unpadded rows. Both are equal to rounding, and both can be differentiated twice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

_PLAIN = (Tensor, torch.nn.Parameter)


def eager(x: Tensor, weight: Tensor) -> bool:
    """Whether products of x and a weight may take the fast path: plain tensors of one precision, plain training."""
    return (
        type(x) in _PLAIN
        and type(weight) in _PLAIN
        and x.dtype == weight.dtype
        and x.numel() > 0
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        # A Function that torch.func can transform binds its arguments to a signature at each call: 40 us, more than
        # all that the fast path saves on a small layer.
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled(x.device.type)
    )


def product(x: Tensor, R: Tensor, groups: int, b: Tensor | None) -> Tensor:
    """R x + b for x (*, D) and R (D, D), or (groups, D / groups, D / groups)."""
    if groups == 1:
        return F.linear(x, R, b)
    y = torch.einsum("...gi,goi->...go", x.unflatten(-1, (groups, -1)), R).flatten(-2)
    return y if b is None else y + b


def centred_linear(x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor) -> Tensor:
    """(x - mean) weight' + bias for x (*, D) whose own mean over all rows is ``mean``; gradients pass through it.

    ``mean`` (D) comes without a gradient; that of x has its part in it. For :func:`eager` tensors only.
    """
    return _CentredLinear.apply(x, weight, bias, mean)


def separate_linear(
    x: Tensor, R: Tensor, decor_bias: Tensor | None, weight: Tensor, bias: Tensor | None, mean: Tensor
) -> tuple[Tensor, Tensor]:
    """z = y weight' + bias and y = (x - mean) R' + decor_bias, (rows, D), for x (*, D) whose own mean is ``mean``.

    As :func:`centred_linear`; R and its bias get no gradient.
    """
    return _SeparateLinear.apply(x, R, decor_bias, weight, bias, mean)


class _CentredLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, mean: Tensor) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        if weight.shape[0] < weight.shape[1]:  # a product with the mean is less than a pass over x
            shift = weight.mv(mean).neg_() if bias is None else torch.addmv(bias, weight, mean, alpha=-1)
            return F.linear(x, weight, shift)
        return F.linear(x - mean, weight, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        flat = grad.dim() == 2
        g = grad if flat else grad.reshape(-1, weight.shape[0])
        total = g.sum(0)
        centred = g.sub(total, alpha=1 / g.shape[0])
        grad_x = grad_weight = None
        if needs_x:
            grad_x = centred.mm(weight)
            grad_x = grad_x if flat else grad_x.view(*grad.shape[:-1], weight.shape[1])
        if needs_weight:
            grad_weight = centred.t().mm(x if flat else x.reshape(-1, weight.shape[1]))
        return grad_x, grad_weight, total if needs_bias else None, None


class _SeparateLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, R, decor_bias, weight, bias, mean) -> tuple[Tensor, Tensor]:
        c = x - mean
        flat = c.dim() == 2
        y = F.linear(c if flat else c.reshape(-1, R.shape[1]), R, decor_bias)
        # y is an output so that a second derivative finds its way through it to x.
        ctx.save_for_backward(y, R, weight)
        ctx.set_materialize_grads(False)
        ctx.shape = None if flat else x.shape
        z = F.linear(y, weight, bias)
        return z if flat else z.view(*x.shape[:-1], weight.shape[0]), y

    @staticmethod
    def backward(ctx, grad: Tensor | None, grad_y: Tensor | None):
        y, R, weight = ctx.saved_tensors
        needs_x, _, _, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_x = grad_weight = total = None
        if grad is not None:
            g = grad if ctx.shape is None else grad.reshape(-1, weight.shape[0])
            total = g.sum(0)
            if needs_weight:
                grad_weight = g.t().mm(y)
        if needs_x and not (grad is None and grad_y is None):
            if grad_y is None:
                h = g.sub(total, alpha=1 / g.shape[0]).mm(weight)
            else:
                h = grad_y if grad is None else torch.addmm(grad_y, g, weight)
                h = h - h.mean(0)
            grad_x = h.mm(R)
            grad_x = grad_x if ctx.shape is None else grad_x.view(ctx.shape)
        return grad_x, None, None, grad_weight, total if needs_bias else None, None
