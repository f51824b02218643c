"""Decorrelation: the shell that holds R, transforms its input, and asks a rule where R should go."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from decorlib.layers import centring, integrity, memory, operations
from decorlib.layers.checks import check_options, chosen_rule, features_last
from decorlib.layers.count import UpdateCount
from decorlib.layers.options import AnyRule, Bound, Center, Flag, Mask, Momentum, Part, Rate, Reduction, Variance, Whole
from decorlib.layers.recompute import Passes
from decorlib.layers.step import PreparedStep, idle_reason, measured, prepared, set_gradients
from decorlib.rules.moments import LOW_PRECISION


class Decorrelation(nn.Module):
    r"""Multiplies features by a learned matrix R so that they become uncorrelated: y = R (x - mu) + b.

    .. math:: R \leftarrow R - \mathrm{lr} \cdot \mathrm{direction}(\langle y y^\top \rangle, R)

    In training, each forward remembers the states y of its batch (or a part of it), detached; ``update()`` turns them
    into gradients of R and b. In evaluation nothing is remembered, and the running mean stands for the batch mean.

    .. note:: ``momentum`` is that of :class:`torch.nn.BatchNorm1d`, the weight of the *new* batch mean in the running
       mean; it is not an optimizer's momentum.

    Args:
        in_features: D, features of the last dimension, or of all dimensions after the first together (images).
        bias: learn an additive b whose gradient is the mean of y, as in the 2024 notebook. Default: False.
        eta: η of the 2024 rule, no unit; not together with ``rule``. Default: 1.0 where ``variance`` is given.
        variance: target variance of the 2024 rule: a number, D numbers, or ``"input"``; not together with ``rule``.
            Default: None; where ``eta`` is given that is no target, whose only fixed point is R = 0.
        rule: the learning rule, or a key of :data:`decorlib.RULES` for one with its defaults. Default: ``KappaRule()``;
            where ``eta`` or ``variance`` is given, ``NotebookRule(variance, eta)``.
        groups: split the features into equal blocks, each with its own R. Default: 1.
        center: None; ``"batch"``, subtract the batch mean (differentiable; running mean in evaluation); ``"running"``,
            subtract the running mean always; ``"bias"``, the same as ``bias=True``. Default: None.
        momentum: weight of a new batch in the running mean, in (0, 1]; None: the average of all batches. Default: 0.1.
        bias_reduction: gradient of b: ``"mean"`` or ``"sum"`` of y over the batch. Default: mean.
        update_every: statistics and updates at every n-th ``update()`` only; between, ``update()`` returns None,
            leaves no gradient, and a step costs only the transform. Default: 1.
        fraction: part of the samples that the statistics use, drawn without replacement, at least one. Default: 1.0.
        accumulate: average the statistics of all forwards since the last ``update()`` (gradient accumulation), of the
            last 64 at most, instead of taking the last forward's. Default: False.
        generator: the source of randomness for ``fraction``. Default: torch's global generator.
        process_group: under torch.distributed, the processes whose samples are pooled. Default: all.

    Attributes:
        learning: set it to False to let R rest: forwards remember nothing, ``update()`` returns None. Default: True.
        name: the layer's name in its model, for messages. Default: None, not known.

    Shape:
        - Input: :math:`(*, D)` as :class:`torch.nn.Linear` takes, or :math:`(N, *)` whose sizes after N multiply to D.
        - Output: as the input.
        - ``weight``: R, :math:`(D, D)`, or :math:`(groups, D / groups, D / groups)`; starts as the identity. Float32
          at least, also in a half-precision model.
        - ``bias``: b, :math:`(D)`.

    Raises:
        ValueError: for a hyperparameter or an input that does not fit; the message names the value and the way out.
        RuntimeError: from ``update()``, where there is no batch to learn from.

    Example::

        >>> layer = Decorrelation(784)
        >>> y = layer(torch.randn(64, 1, 28, 28))
        >>> loss = layer.step(lr=1e-5)
    """

    holds_R, sharers = True, 1  # layers are found by this mark, after a reload of the library too; how many hold R
    _R_is_known = False  # whether R was learned, loaded or set on purpose, see integrity

    def __init__(
        self,
        in_features: int,
        bias: Flag = False,
        eta: float | None = None,  # η
        variance: Variance | None = None,
        *,
        rule: AnyRule | None = None,
        groups: Whole = 1,
        center: Center | None = None,
        momentum: Momentum = 0.1,
        bias_reduction: Reduction = "mean",
        update_every: Whole = 1,
        fraction: Part = 1.0,
        accumulate: Flag = False,
        generator: torch.Generator | None = None,
        process_group=None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        flags = {"bias": bias, "accumulate": accumulate}
        check_options(in_features, groups, center, momentum, bias_reduction, update_every, fraction, **flags)
        self.in_features = in_features
        self.rule = chosen_rule(rule, eta, variance)
        self.groups, self.center, self.momentum = groups, None if center == "bias" else center, momentum
        self.bias_reduction, self.update_every, self.fraction = bias_reduction, update_every, fraction
        self.accumulate, self.generator, self.process_group = accumulate, generator, process_group
        low = (torch.get_default_dtype() if dtype is None else dtype) in LOW_PRECISION
        d, factory = in_features // groups, {"device": device, "dtype": torch.float32 if low else dtype}
        shape = (d, d) if groups == 1 else (groups, d, d)
        # requires_grad=False: backpropagation has no business with R, and DDP must not wait for its gradient.
        self.weight = nn.Parameter(torch.empty(shape, **factory), requires_grad=False)
        learned = bias or center == "bias"
        self.bias = nn.Parameter(torch.empty(in_features, **factory), requires_grad=False) if learned else None
        self.register_buffer("running_mean", torch.zeros(in_features, **factory) if self.center else None)
        counter = torch.zeros((), dtype=torch.long, device=device)
        self.register_buffer("num_batches_tracked", counter if self.center else None)  # as BatchNorm's
        averages = torch.zeros(shape, **factory) if getattr(self.rule, "momentum", 1.0) < 1 else None
        self.register_buffer("input_moment", averages)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long, device=device))
        self.learning, self.frozen = True, False
        self.name: str | None = None
        self._begin()
        self.reset_parameters()

    def _begin(self) -> None:
        """Nothing remembered, and nothing known of tensors that may just have been loaded."""
        self.memory, self._padding_mask = memory.BatchMemory(), None
        self._passes, self._count, self._trust = Passes(), UpdateCount(), integrity.Trust(self.weight.is_meta)

    def reset_parameters(self) -> None:
        """R = I, b = 0, running mean 0, nothing remembered."""
        for name, tensor in (*self._parameters.items(), *self._buffers.items()):
            if tensor is not None:
                integrity.initialise(self, name)
        self.forget()
        self._count, self._trust = UpdateCount(), integrity.Trust(self.weight.is_meta)
        self._R_is_known = False

    set_weight = integrity.set_weight

    # ------------------------------------------------------------------------------------------------- transform

    def forward(self, input: Tensor) -> Tensor:
        x = self.flat(input)
        self.enter(x)
        mean = centring.tracked_plainly(self, x, self.weight) if x.requires_grad else None
        if mean is not None:
            y = operations.centred_linear(x, self.weight.detach(), self.bias, mean)
        else:
            y = self.transform(x, mean := self.mean(x))
        if self.due:
            self.remember(x, mean, y, handed_out=True)
        return y.reshape(input.shape)

    def enter(self, x: Tensor) -> None:
        """Begin a forward: what must hold before R is used."""
        if not torch.compiler.is_compiling():
            integrity.check(self, x)
            if self.training:
                self._passes.begin(self.weight, self._padding_mask is not None)

    def flat(self, input: Tensor) -> Tensor:
        """The input with its features last, after checking that it has any."""
        return features_last(input, self.in_features)

    def mean(self, x: Tensor) -> Tensor | None:
        """The mean to subtract, (D), or None; in training it moves the running mean."""
        if self.center is None:
            return None
        if not self.training:
            return self.running_mean
        rows, real = x.reshape(-1, self.in_features), memory.real_rows(x, self._padding_mask)
        rows = rows if real is None else rows[real]
        return centring.tracked(self, lambda dtype: rows.mean(0, dtype=dtype), rows.shape[0])

    def transform(self, x: Tensor, mean: Tensor | None = None) -> Tensor:
        """y = R (x - mean) + b for x (*, D), without remembering."""
        x = x if mean is None else x - mean.to(x.dtype)
        return self.product(x, None if self.bias is None else self.bias.detach().to(x.dtype))

    def product(self, x: Tensor, b: Tensor | None = None) -> Tensor:
        """R x + b for x (*, D), with a b that is given."""
        return operations.product(x, self.weight.detach().to(x.dtype), self.groups, b)

    # -------------------------------------------------------------------------------------------------- remember

    @property
    def due(self) -> bool:
        """Whether the next ``update()`` will learn, so that a training forward has to remember its batch."""
        if not (self.training and self.learning) or self.frozen:
            return False
        return self._count.turn if torch.compiler.is_compiling() else self._is_turn()

    def _is_turn(self) -> bool:
        return self._count.is_turn(self._buffers["num_updates"], self.update_every)

    @property
    def padding_mask(self) -> Tensor | None:
        """True where a token is padding, (batch, tokens)."""
        return self._padding_mask

    @padding_mask.setter
    def padding_mask(self, mask: Mask) -> None:
        self._padding_mask = memory.checked_mask(mask)

    def sample(self, count: int, device, real: Tensor | None = None) -> Tensor | None:
        """Indices of the samples that the statistics use, out of those that are ``real``; None for all."""
        return memory.sample(self, count, device, real)

    def remember(self, x: Tensor, mean: Tensor | None, y: Tensor | None = None, handed_out: bool = False) -> None:
        """Keep (a sample of) a batch for ``update()``: inputs x (*, D), the mean subtracted from them, and states y.

        Where y is not given, it is computed for the sample; where it is ``handed_out``, others may write to it.
        """
        x, y, chosen = memory.chosen_rows(self, x, y)
        self.remember_samples(x, mean, y, handed_out and chosen is None)

    def remember_samples(self, x: Tensor, mean: Tensor | None, y: Tensor | None = None, *handed_out: bool) -> None:
        """``remember`` for samples (n, D) that are already chosen."""
        memory.remember(self, x, mean, y, *handed_out)

    def forget(self) -> None:
        """Forget the batches that an update would learn from."""
        self.memory.clear()
        self._passes.end()

    # ----------------------------------------------------------------------------------------------------- learn

    def update(self, lr: Rate | None = None, max_step: Bound = None) -> Tensor | None:
        """Set ``.grad`` of R (and b) from the remembered batch and return the loss, a scalar on the layer's device.

        Args:
            lr: rate of the step that will follow; needed by rules that are not linear in it, and by ``max_step``.
            max_step: shrink the gradient so that lr times the largest eigenvalue of what multiplies R stays below
                this. Where one mode dominates 2.0 is the edge of stability, and 1.0 takes that mode to zero in one
                step, which a rule without a target never mends: 0.5 is safe. By power iteration. Default: no bound.

        Returns:
            The loss, or None where ``update_every`` says that this step does not learn, or R stands still anyway
            (:meth:`idle_reason`).

        Raises:
            RuntimeError: there is no batch to learn from; the message says why.
        """
        step = prepared(self, lr, max_step, self._is_turn(), gradient=True)
        return set_gradients(self, None, None) if step is None else step.commit_gradient()

    def step(self, lr: Rate, max_step: Bound = None) -> Tensor | None:
        """``update()`` and a plain SGD step of rate ``lr`` in one, in place: the same R but for rounding, sooner.

        Nothing is written to ``.grad``, so no D x D gradient is ever made. Call it after ``backward()``.
        """
        step = self.prepare(lr, max_step)
        return set_gradients(self, None, None) if step is None else step.commit_in_place()

    def prepare(self, lr: Rate | Tensor | None = None, max_step: Bound = None) -> PreparedStep | None:
        """The step that the remembered batch asks for, computed but not taken: everything that can fail, fails here.

        ``lr`` and ``max_step`` are those of :meth:`update`; ``lr`` may be one rate for each group, :math:`(groups)`, of
        models that stand side by side.

        Returns:
            The step, to be committed; its ``loss`` is None where ``update_every`` says that it does not learn. None
            where R stands still anyway (:meth:`idle_reason`).

        Raises:
            RuntimeError, ValueError: the message says why R cannot learn from this batch, or at this rate.
        """
        return prepared(self, lr, max_step, self._is_turn())

    def measure(self) -> Tensor | None:
        """The loss that ``update()`` would return (or its error), without learning or counting as an update."""
        return measured(self, self._is_turn())

    def idle_reason(self) -> str | None:
        """Why R will stand still at the next ``update()``; None where it learns, or where an error says why it cannot.

        Reasons: ``learning`` is False, the layer's weights are frozen, evaluation mode, or nothing but empty batches.
        """
        return idle_reason(self)

    # ------------------------------------------------------------------------------------- loading, moving, copying

    def apply(self, fn):
        """As :meth:`torch.nn.Module.apply`; R and b stay, unless ``fn`` calls ``set_weight`` or makes R = I."""
        integrity.protected(self, fn)
        return self

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        integrity.loaded(self, state_dict, prefix, local_metadata.get("assign_to_params_buffers", False), args[-1])

    def _apply(self, fn, recurse: bool = True):
        # .half() and .bfloat16() move R and the means but keep their precision: 1 - 1e-4 does not exist in bfloat16.
        def keep_precision(t: Tensor) -> Tensor:
            new = fn(t)
            low = new.dtype in LOW_PRECISION and t.dtype not in LOW_PRECISION
            return t.to(new.device) if low else new

        R = self._parameters.get("weight")
        super()._apply(keep_precision, recurse)
        integrity.moved(self, R is not None and R.is_meta)
        return self

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in ("memory", "_passes", "_count", "_trust")}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._begin()

    def __deepcopy__(self, memo):
        if self.process_group is not None:  # a connection, not a value: the copy talks to the same processes
            memo[id(self.process_group)] = self.process_group
        memo[id(self)] = twin = type(self).__new__(type(self))
        twin.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return twin

    def extra_repr(self) -> str:
        parts = [f"{self.in_features}, rule={self.rule}"]
        defaults = {"groups": 1, "center": None, "update_every": 1, "fraction": 1.0, "accumulate": False}
        parts += [f"{k}={getattr(self, k)!r}" for k, v in defaults.items() if getattr(self, k) != v]
        return ", ".join(parts + ([] if self.bias is None else ["bias=True"]))
