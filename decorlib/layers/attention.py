"""DecorMultiheadAttention: torch's attention whose projections read decorrelated inputs.

Each input has an R of its own: one for self-attention (``inputs="self"``), one for the queries and one for what they
look at (``"memory"``), or three (``"separate"``). W R goes where W was, into torch's own function of attention, so that
masks, weights, bias_k, bias_v and dropout are torch's.
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from decorlib.layers.checks import frozen
from decorlib.layers.decorrelation import Decorrelation
from decorlib.layers.fast_path import keep_off
from decorlib.layers.integrity import warn_of_old_R
from decorlib.layers.linear import DecorLinear, composed_linear, fused_linear
from decorlib.layers.options import AttentionInputs, ConvolutionOptions, Flag, Variance

#: For each setting of ``inputs``, whose R the queries, the keys and the values are multiplied by.
INPUTS = {
    "self": ("input", "input", "input"),
    "memory": ("query", "memory", "memory"),
    "separate": ("query", "key", "value"),
}

#: What the projections of the inputs may be called.
WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class DecorProjection(DecorLinear, NonDynamicallyQuantizableLinear):
    """The output projection of :class:`DecorMultiheadAttention`: a :class:`DecorLinear`."""


class DecorMultiheadAttention(nn.MultiheadAttention):
    r"""Attention on decorrelated inputs: queries W_q (R (x - mu) + b_R) + b_q, keys and values likewise.

    A drop-in for :class:`torch.nn.MultiheadAttention`, whose parameters it has under the same names. The R of its
    inputs are in ``decorrelations``, that of the output projection in ``out_proj.decorrelation``. torch's inference
    fast path, which reads W alone, is not taken. Of keys and values, tokens that ``key_padding_mask`` hides are left
    out of the statistics; of the queries, and of the one input of self-attention, those of :func:`decorlib.padding`.

    Args:
        embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first: as in torch.
        inputs: ``"self"``: queries, keys and values are the same tensor, with one R; ``"memory"``: keys and values are
            the same, and the queries have an R of their own; ``"separate"``: three R, right for all inputs and as dear
            as three. Default: separate.
        decor_bias, eta, variance, **options: see :class:`~decorlib.layers.Decorrelation`.

    Shape:
        as :class:`torch.nn.MultiheadAttention`; no nested tensors.

    Raises:
        ValueError: inputs that are not the same tensor where ``inputs`` says so; nested tensors.

    Example::

        >>> layer = DecorMultiheadAttention(32, 4, batch_first=True, inputs="self")
        >>> x = torch.randn(8, 10, 32)
        >>> layer(x, x, x)[0].shape
        torch.Size([8, 10, 32])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device=None,
        dtype=None,
        *,
        decor_bias: Flag = False,
        eta: float | None = None,  # η
        variance: Variance | None = None,
        inputs: AttentionInputs = "separate",
        **options: Unpack[ConvolutionOptions],
    ):
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        more = {"bias": decor_bias, "eta": eta, "variance": variance, "device": device, "dtype": dtype, **options}
        self.inputs, self.decorrelations = inputs, decorrelations(self, inputs, **more)
        self.out_proj.__class__, self.out_proj.fuse = DecorProjection, None
        self.out_proj.decorrelation = Decorrelation(embed_dim, **more)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        means = self._look(query, key, value, key_padding_mask)
        turn = self.batch_first and query.dim() == 3
        if turn:  # one view of one tensor: torch asks whether they are the same
            views = {id(x): x.transpose(0, 1) for x in (query, key, value)}
            query, key, value = (views[id(x)] for x in (query, key, value))
        weights, bias = self.fused_inputs(means)
        ours = isinstance(self.out_proj, DecorLinear)
        # Where the projection is ours, torch's function multiplies by the identity in its place.
        eye = torch.eye(self.embed_dim, dtype=self.out_proj.weight.dtype, device=query.device) if ours else None
        output, attention = F.multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            None if len(weights) == 3 else weights[0],
            bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            eye if ours else self.out_proj.weight,
            None if ours else self.out_proj.bias,
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            use_separate_proj_weight=len(weights) == 3,
            **dict(zip(("q_proj_weight", "k_proj_weight", "v_proj_weight"), weights, strict=False))
            if len(weights) == 3
            else {},
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        output = output.transpose(0, 1) if turn else output
        return (self.out_proj(output) if ours else output), attention

    def inputs_of(self, query: Tensor, key: Tensor, value: Tensor) -> dict[str, Tensor]:
        """What each R reads, after checking that it is one tensor."""
        found: dict[str, Tensor] = {}
        for name, x in zip(INPUTS[self.inputs], (query, key, value), strict=True):
            if x.is_nested:
                raise ValueError("attention on decorrelated inputs takes no nested tensors: pad them, and give a mask")
            if found.setdefault(name, x) is not x:
                raise ValueError(
                    f"inputs={self.inputs!r} says that {' and '.join(_SAME[self.inputs])} are the same tensor, with "
                    "one R, and they are not: build the layer with inputs='memory' or 'separate'; or give decorrelate "
                    "a sample_input, which tells"
                )
        return found

    def input_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """W of the queries, the keys and the values."""
        if self._qkv_same_embed_dim:
            return self.in_proj_weight.chunk(3)
        return self.q_proj_weight, self.k_proj_weight, self.v_proj_weight

    def composed(self, R: Tensor, weight: Tensor) -> Tensor:
        """W R for W of the queries, the keys or the values, and the R that it reads, both of one dtype."""
        return composed_linear(weight, R)

    def constant(self, c: Tensor, weight: Tensor) -> Tensor:
        """What a constant input adds to the queries, the keys or the values."""
        return weight @ c.to(weight.dtype)

    def fused_inputs(self, means: dict[str, Tensor | None]) -> tuple[list[Tensor], Tensor | None]:
        """W R of all three in one, or three where their inputs differ in size; and b + W (b_R - R mean)."""
        biases = [None] * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        fused = [
            fused_linear(W, b, self.decorrelations[name], means[name])
            for W, b, name in zip(self.input_weights(), biases, INPUTS[self.inputs], strict=True)
        ]
        weights, biases = [W for W, _ in fused], [b for _, b in fused]
        bias = None if biases[0] is None else torch.cat(biases)
        return [torch.cat(weights)] if self._qkv_same_embed_dim else weights, bias

    def _look(self, query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None) -> dict[str, Tensor | None]:
        """Remember the inputs for the update of R, and give the mean of each."""
        if padding is not None:
            padding = padding if padding.dtype == torch.bool else padding.float().exp() == 0  # -inf, -1e9, finfo.min
            padding = padding.mT if padding.dim() == 2 and not self.batch_first else padding
        means = {}
        for name, x in self.inputs_of(query, key, value).items():
            d = self.decorrelations[name]
            if not x.is_floating_point():
                raise ValueError(f"{name} is {x.dtype}; a floating type is needed")
            if x.shape[-1] != d.in_features:
                raise ValueError(
                    f"{name} of shape {tuple(x.shape)} does not fit: its last size must be {d.in_features}"
                )
            d.frozen, mask = frozen(self, d.frozen, WEIGHTS), d.padding_mask
            if name in ("memory", "key", "value"):  # of other tokens than decorlib.padding() speaks of
                d.padding_mask = padding
            try:
                d.enter(x)
                means[name] = d.mean(x)
                if d.due:
                    d.remember(x, means[name])
            finally:
                d.padding_mask = mask
        return means

    def _load_from_state_dict(self, state_dict, prefix, *args):
        warn_of_old_R(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _weights(self) -> list[Tensor]:
        if self._qkv_same_embed_dim:
            return [self.in_proj_weight]
        return [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]


_SAME = {"self": ("query", "key", "value"), "memory": ("key", "value")}


def decorrelations(layer: nn.MultiheadAttention, inputs: str, **options) -> nn.ModuleDict:
    """The R of an attention's inputs."""
    if inputs not in INPUTS:
        raise ValueError(f"inputs is {inputs!r}; allowed: {', '.join(map(repr, INPUTS))}")
    sizes = dict(zip(INPUTS[inputs], (layer.embed_dim, layer.kdim, layer.vdim), strict=True))
    if inputs != "separate" and len({layer.kdim, layer.vdim, *([layer.embed_dim] if inputs == "self" else [])}) > 1:
        raise ValueError(
            f"inputs={inputs!r} needs {' and '.join(_SAME[inputs])} of one size; embed_dim = {layer.embed_dim}, "
            f"kdim = {layer.kdim}, vdim = {layer.vdim}: use inputs='separate'"
        )
    made = nn.ModuleDict({name: Decorrelation(size, **options) for name, size in sizes.items()})
    for decorrelation in made.values():
        keep_off(decorrelation)
    return made
