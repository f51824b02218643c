"""Decorrelation: the shell that holds R, transforms its input, and asks a rule where R should go."""

from __future__ import annotations

import contextlib
import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decorlib.layers.distributed import distributed, pooled_mean
from decorlib.layers.memory import EMPTY, Remembering, concatenated
from decorlib.rules.moments import LOW_PRECISION, Moments
from decorlib.rules.rules import NotebookRule, Rule, as_rows


class Decorrelation(Remembering):
    r"""Multiplies features by a learned matrix R so that they become uncorrelated: y = R (x - mu) + b.

    .. math:: R \leftarrow R - \mathrm{lr} \cdot \mathrm{direction}(\langle y y^\top \rangle, R)

    In training, each forward remembers the states y of its batch (or a part of it), detached; ``update()`` turns them
    into gradients of R and b. In evaluation nothing is remembered, and the running mean stands for the batch mean.

    .. note:: ``momentum`` is that of :class:`torch.nn.BatchNorm1d`, the weight of the *new* batch mean in the running
       mean; it is not an optimizer's momentum.

    Args:
        in_features: D, features of the last dimension, or of all dimensions after the first together (images).
        bias: learn an additive b whose gradient is the mean of y, as in the seed. Default: False.
        eta: η of the seed's rule, no unit; only where ``rule`` is not given. Default: 1.0.
        variance: target variance of the seed's rule: None, a number, D numbers, or ``"input"``; only where ``rule``
            is not given. Default: None.
        rule: the learning rule. Default: ``NotebookRule(variance, eta)``.
        groups: split the features into equal blocks, each with its own R. Default: 1.
        center: None; ``"batch"``, subtract the batch mean (differentiable; running mean in evaluation); ``"running"``,
            subtract the running mean always; ``"bias"``, the same as ``bias=True``. Default: None.
        momentum: weight of a new batch in the running mean, in (0, 1]; None: the average of all batches. Default: 0.1.
        bias_reduction: gradient of b: ``"mean"`` or ``"sum"`` of y over the batch. Default: mean.
        update_every: statistics and updates at every n-th ``update()`` only; between, ``update()`` returns None,
            leaves no gradient, and a step costs only the transform. Default: 1.
        fraction: part of the samples that the statistics use, drawn without replacement, at least one. Default: 1.0.
        accumulate: average the statistics of all forwards since the last ``update()`` (gradient accumulation) instead
            of taking the last forward's. Default: False.
        generator: the source of randomness for ``fraction``. Default: torch's global generator.
        process_group: under torch.distributed, the processes whose samples are pooled. Default: all.

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

        >>> layer = Decorrelation(784, variance=1.0)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=1e-5)
        >>> y = layer(torch.randn(64, 1, 28, 28))
        >>> loss = layer.update()
        >>> optimizer.step()
    """

    def __init__(
        self,
        in_features: int,
        bias: bool = False,
        eta: float = 1.0,  # η
        variance=None,
        *,
        rule: Rule | None = None,
        groups: int = 1,
        center: str | None = None,
        momentum: float | None = 0.1,
        bias_reduction: str = "mean",
        update_every: int = 1,
        fraction: float = 1.0,
        accumulate: bool = False,
        generator: torch.Generator | None = None,
        process_group=None,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if rule is not None and (eta != 1.0 or variance is not None):
            raise ValueError(f"eta={eta} and variance={variance} belong to the seed's rule; set them on {rule} instead")
        _check(in_features >= 1, "in_features", in_features, "at least 1")
        _check(
            groups >= 1 and in_features % groups == 0,
            "groups",
            groups,
            f"a divisor of in_features = {in_features}",
        )
        _check(
            center in (None, "batch", "running", "bias"),
            "center",
            center,
            "None, 'batch', 'running' or 'bias'",
        )
        _check(
            momentum is None or 0 < momentum <= 1,
            "momentum",
            momentum,
            "in (0, 1], or None for the plain average",
        )
        _check(bias_reduction in ("mean", "sum"), "bias_reduction", bias_reduction, "'mean' or 'sum'")
        _check(
            update_every >= 1,
            "update_every",
            update_every,
            "at least 1; to stop learning R, do not call update()",
        )
        _check(0 < fraction <= 1, "fraction", fraction, "in (0, 1], the part of the samples used")
        self.in_features = in_features
        self.rule = NotebookRule(variance=variance, eta=eta) if rule is None else rule
        self.groups, self.center, self.momentum = groups, None if center == "bias" else center, momentum
        self.bias_reduction, self.update_every, self.fraction = bias_reduction, update_every, fraction
        self.accumulate, self.generator, self.process_group = accumulate, generator, process_group
        dtype = torch.float32 if dtype in LOW_PRECISION else dtype
        d, factory = in_features // groups, {"device": device, "dtype": dtype}
        shape = (d, d) if groups == 1 else (groups, d, d)
        # requires_grad=False: backpropagation has no business with R, and DDP must not wait for its gradient.
        self.weight = nn.Parameter(torch.empty(shape, **factory), requires_grad=False)
        learned = bias or center == "bias"
        self.bias = nn.Parameter(torch.empty(in_features, **factory), requires_grad=False) if learned else None
        self.register_buffer("running_mean", torch.zeros(in_features, **factory) if self.center else None)
        counter = torch.zeros((), dtype=torch.long, device=device)
        self.register_buffer("num_batches_tracked", counter if self.center else None)  # as BatchNorm's
        averages = getattr(self.rule, "momentum", 1.0) < 1
        self.register_buffer("input_moment", torch.zeros(shape, **factory) if averages else None)
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long, device=device))
        # num_updates and what follows from it, without asking the device, and as a bool that torch.compile can guard on
        self._calls, self._due = 0, True
        self._states: list[tuple[Tensor, Tensor | None]] = []
        self.padding_mask: Tensor | None = None
        self.register_load_state_dict_post_hook(_read_counter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """R = I, b = 0, running mean 0, nothing remembered."""
        with torch.no_grad():
            eye = torch.eye(self.weight.shape[-1], dtype=self.weight.dtype, device=self.weight.device)
            self.weight.copy_(eye.expand_as(self.weight))
            for zeroed in (self.bias, *self.buffers(recurse=False)):
                if zeroed is not None:
                    zeroed.zero_()
        self._calls, self._due = 0, True
        self._states.clear()

    # ------------------------------------------------------------------------------------------------- transform

    @property
    def due(self) -> bool:
        """Whether the next ``update()`` will learn, so that a training forward has to remember its batch."""
        return self.training and self._due

    def forward(self, input: Tensor) -> Tensor:
        x = self.flat(input)
        mean = self.mean(x)
        y = self.transform(x, mean)
        if self.due:
            self.remember(x, mean, y)
        return y.reshape(input.shape)

    def flat(self, input: Tensor) -> Tensor:
        """The input with its features last, after checking that it has any."""
        if not input.is_floating_point():
            raise ValueError(f"input is {input.dtype}; a floating type is needed: scale it first, e.g. images / 255")
        if input.shape[-1:] == (self.in_features,):
            return input
        if input.dim() > 2 and math.prod(input.shape[1:]) == self.in_features:
            return input.flatten(1)
        raise ValueError(
            f"input of shape {tuple(input.shape)} does not fit in_features = {self.in_features}: its last size must be "
            f"{self.in_features}, or its sizes after the first must multiply to it"
        )

    def mean(self, x: Tensor) -> Tensor | None:
        """The mean to subtract, (D), or None; in training it moves the running mean."""
        if self.center is None:
            return None
        if not self.training:
            return self.running_mean
        rows, real = x.reshape(-1, self.in_features), self.real_rows(x)
        rows = rows if real is None else rows[real]
        return self.track_mean(rows.mean(0, dtype=self.running_mean.dtype), rows.shape[0])

    def track_mean(self, batch_mean: Tensor, count: int) -> Tensor:
        """Pool a batch mean over processes, move the running mean, and return the mean to subtract."""
        if count == 0:
            raise ValueError(EMPTY)
        if self.center == "batch" and count < 2 and not distributed():
            raise ValueError(
                f"center='batch' needs at least 2 samples in training, got {count}: use center='running', "
                "a larger batch, or drop_last=True"
            )
        self._check_finite(batch_mean, "a batch mean")  # before it can poison the running mean
        if distributed():
            batch_mean = pooled_mean(batch_mean, count, self.process_group)
        with torch.no_grad():
            self.num_batches_tracked += 1
            weight = 1 / self.num_batches_tracked if self.momentum is None else self.momentum
            weight = weight.to(self.running_mean) if self.momentum is None else weight
            self.running_mean.lerp_(batch_mean.detach().to(self.running_mean), weight)
        # A copy: the buffer will have moved on by the time backward reads it.
        return batch_mean if self.center == "batch" else self.running_mean.clone()

    def transform(self, x: Tensor, mean: Tensor | None = None) -> Tensor:
        """y = R (x - mean) + b for x (*, D), without remembering."""
        x = x if mean is None else x - mean.to(x.dtype)
        return self.product(x, None if self.bias is None else self.bias.detach().to(x.dtype))

    def product(self, x: Tensor, b: Tensor | None = None) -> Tensor:
        """R x + b for x (*, D), with a b that is given."""
        R = self.weight.detach().to(x.dtype)
        if self.groups == 1:
            return F.linear(x, R, b)
        y = torch.einsum("...gi,goi->...go", x.unflatten(-1, (self.groups, -1)), R).flatten(-2)
        return y if b is None else y + b

    # ---------------------------------------------------------------------------------------------------- learn

    def update(self, lr: float | None = None, max_step: float | None = None) -> Tensor | None:
        """Set ``.grad`` of R (and b) from the remembered batch and return the loss, a scalar on the layer's device.

        Args:
            lr: rate of the step that will follow; needed by rules that are not linear in it, and by ``max_step``.
            max_step: shrink the gradient so that lr times the largest eigenvalue of what multiplies R stays below
                this. Where one mode dominates 2.0 is the edge of stability, and 1.0 takes that mode to zero in one
                step, which a rule without a target never mends: 0.5 is safe. Estimated by power iteration. Default:
                no bound.

        Returns:
            The loss, or None where ``update_every`` says that this step does not learn.

        Raises:
            RuntimeError: there is no batch to learn from; the message says why.
        """
        return self._learn(lr, max_step, in_place=False)

    def step(self, lr: float, max_step: float | None = None) -> Tensor | None:
        """``update()`` and a plain SGD step of rate ``lr`` in one, in place: the same R but for rounding, sooner.

        Nothing is written to ``.grad``, so no D x D gradient is ever made. Call it after ``backward()``.
        """
        return self._learn(lr, max_step, in_place=True)

    @torch.no_grad()
    def measure(self) -> Tensor | None:
        """The loss that ``update()`` would return, without learning and without counting as an update.

        Raises:
            RuntimeError: there is no batch to measure; the message says why.
        """
        if not self._due:
            return None
        if not self._states:
            raise RuntimeError(self.nothing_remembered("measure()"))
        with _full_precision(self.weight.device.type):
            loss = self._loss(self._moments()[0])
        self._states.clear()
        return loss

    @torch.no_grad()
    def _learn(self, lr: float | None, max_step: float | None, in_place: bool) -> Tensor | None:
        if self._due and not self._states:
            raise RuntimeError(self.nothing_remembered())
        if max_step is not None and lr is None:
            raise ValueError(f"max_step={max_step} bounds lr times an eigenvalue: call update(lr=..., max_step=...)")
        R, b, loss, grads = self.weight, self.bias, None, (None, None)
        if self._due:
            with _full_precision(R.device.type):
                moments, input_moment, toward_zero = self._moments()
                loss = self._loss(moments)
                scale = self._scale(moments, lr, max_step)
                if in_place:
                    self.rule.step_(moments, R.data, lr, scale)
                    if b is not None:
                        b.sub_(lr * toward_zero)
                else:
                    grad = self.rule.direction(moments, R.data, lr)
                    grads = (as_rows(scale, grad) * grad if isinstance(scale, Tensor) else grad), toward_zero
            # Only now, past all that can raise, does anything change.
            self._states.clear()
            if input_moment is not None:
                self.input_moment.copy_(input_moment)
        if R.grad is not grads[0]:  # setting an attribute of a parameter is not free, even to the None that it was
            R.grad = grads[0]
        if b is not None:
            b.grad = grads[1]
        self._calls += 1
        self._due = self._calls % self.update_every == 0
        self.num_updates.add_(1)
        return loss

    def _scale(self, moments: Moments, lr: float | None, max_step: float | None) -> Tensor | float:
        """What shrinks the step: 1, or one number per group."""
        return 1.0 if max_step is None else (max_step / (lr * self.rule.sharpness(moments))).clamp(max=1)

    def _loss(self, moments: Moments) -> Tensor:
        loss = self.rule.loss(moments)
        return loss.mean() if loss.dim() else loss  # over groups

    def _moments(self) -> tuple[Moments, Tensor | None, Tensor | None]:
        """Moments of what is remembered, over all processes; the new average of <x x'>; the direction of b."""
        y, x = self._states[0] if len(self._states) == 1 else concatenated(self._states)
        y = y.to(self.weight.dtype)
        moments = Moments.of(
            self._by_group(y),
            None if x is None else self._by_group(x.to(self.weight.dtype)),
            gain=self.rule.needs_gain,
        )
        if distributed():
            moments = moments.reduced(self.process_group, gain=self.rule.needs_gain)
        input_moment, toward_zero = None, None
        if self.input_moment is not None:
            weight = self.rule.momentum if self._calls else 1.0
            input_moment = self.input_moment.lerp(moments.input_second_moment(), weight)
            moments = moments.with_input_moment(input_moment)
        if self.bias is not None:
            total = y.new_tensor([y.shape[0]])
            toward_zero = torch.cat([y.sum(0), total])
            if distributed():
                torch.distributed.all_reduce(toward_zero, group=self.process_group)
            toward_zero, total = toward_zero[:-1], toward_zero[-1:]
            toward_zero = toward_zero if self.bias_reduction == "sum" else toward_zero / total
        return moments, input_moment, toward_zero

    def _by_group(self, y: Tensor) -> Tensor:
        return y if self.groups == 1 else y.unflatten(-1, (self.groups, -1)).transpose(0, 1)

    def _apply(self, fn, recurse: bool = True):
        # .half() and .bfloat16() move R and the means but keep their precision: 1 - 1e-4 does not exist in bfloat16.
        def keep_precision(t: Tensor) -> Tensor:
            new = fn(t)
            low = new.dtype in LOW_PRECISION and t.dtype not in LOW_PRECISION
            return t.to(new.device) if low else new

        return super()._apply(keep_precision, recurse)

    def __getstate__(self):
        return {**self.__dict__, "_states": []}  # a batch is not part of the model

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


def _full_precision(device_type: str):
    """Autocast off. Asking whether it is on costs a tenth of switching it off, which a small step would notice."""
    on = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else contextlib.nullcontext()


def _check(holds: bool, name: str, value, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")


def _read_counter(layer: Decorrelation, _incompatible_keys) -> None:
    layer._calls = int(layer.num_updates)
    layer._due = layer._calls % layer.update_every == 0
