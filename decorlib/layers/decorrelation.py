"""Decorrelation: the shell that holds R, transforms its input, and asks a rule where R should go."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decorlib.layers import centring, memory, operations
from decorlib.layers.distributed import distributed
from decorlib.layers.recompute import Passes, recomputing
from decorlib.layers.step import PreparedStep, full_precision, set_gradients
from decorlib.rules.moments import LOW_PRECISION, Moments
from decorlib.rules.rules import Rule, SeedRule


class Decorrelation(nn.Module):
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
        rule: the learning rule. Default: ``SeedRule(variance, eta)``.
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
        self.rule = SeedRule(variance=variance, eta=eta) if rule is None else rule
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
        self.learning = True
        self.frozen = False
        self.name: str | None = None
        self._setup()
        self.reset_parameters()

    def _setup(self) -> None:
        """What is no part of a model: batches, and what was read of counters."""
        self.memory, self._passes, self._padding_mask = memory.BatchMemory(), Passes(), None
        self._counted: tuple[Tensor | None, int, int] = (None, 0, 0)
        self._turn = True

    def reset_parameters(self) -> None:
        """R = I, b = 0, running mean 0, nothing remembered."""
        with torch.no_grad():
            eye = torch.eye(self.weight.shape[-1], dtype=self.weight.dtype, device=self.weight.device)
            self.weight.copy_(eye.expand_as(self.weight))
            for zeroed in (self.bias, *self.buffers(recurse=False)):
                if zeroed is not None:
                    zeroed.zero_()
        self._setup()

    # ------------------------------------------------------------------------------------------------- transform

    @property
    def due(self) -> bool:
        """Whether the next ``update()`` will learn, so that a training forward has to remember its batch."""
        if not (self.training and self.learning) or self.frozen:
            return False
        # As a bool that torch.compile can guard on: what follows from the number of updates, when it was last asked.
        return self._turn if torch.compiler.is_compiling() else self._is_turn()

    def _is_turn(self) -> bool:
        """Whether it is the turn of an update that learns, by ``update_every``."""
        return self.update_every == 1 or self._updates() % self.update_every == 0

    def _updates(self) -> int:
        """``num_updates`` as a number; the device is asked only where something else has written to the buffer."""
        counter, (seen, version, number) = self.num_updates, self._counted
        tracked = not (counter.is_inference() or counter.is_meta)
        if not tracked or counter is not seen or counter._version != version:
            number = 0 if counter.is_meta else int(counter)
            self._counted = (counter, counter._version if tracked else -1, number)
            self._turn = number % self.update_every == 0
        return number

    def count_update(self) -> None:
        """Count an update, whether it has learned or not."""
        counter, (seen, version, number) = self.num_updates, self._counted
        known = counter is seen and counter._version == version
        counter.add_(1)
        if known:
            self._counted = (counter, counter._version, number + 1)
            self._turn = (number + 1) % self.update_every == 0
        elif self.update_every > 1:
            self._updates()

    @property
    def called(self) -> str:
        """The name of the layer as the beginning of a message, where it is known."""
        return "" if self.name is None else f"layer '{self.name}': "

    def idle_reason(self) -> str | None:
        """Why R will stand still at the next ``update()``; None where it learns, or where an error says why it cannot.

        What goes over the layers of a model leaves out those that have a reason: R rests (``learning``), the weights
        of the layer around it are frozen, it is in evaluation mode, or all its batches were empty.
        """
        if not self.learning:
            return "learning is False"
        if self.frozen:
            return "the weights of its layer are frozen"
        if len(self.memory) == 0 and not self.training:
            return "it is in evaluation mode"
        return "its batches were empty" if len(self.memory) == 0 and self.memory.empty else None

    def forward(self, input: Tensor) -> Tensor:
        x = self.flat(input)
        self.enter()
        fast = x.requires_grad and self.projects(x, self.weight)
        mean = self.mean(x.detach() if fast else x)
        if fast:
            y = operations.centred_linear(x, self.weight.detach(), self.bias, mean)
        else:
            y = self.transform(x, mean)
        if self.due:
            self.remember(x, mean, y, handed_out=True)
        return y.reshape(input.shape)

    def enter(self) -> None:
        """Begin a forward: what has to be known, and must hold, before R is used."""
        if self.training and not torch.compiler.is_compiling():
            self._passes.begin(self.weight, self._padding_mask is not None)

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

    def projects(self, x: Tensor, weight: Tensor) -> bool:
        """Whether the mean to subtract is that of all rows of x, so that products of x and a weight may use that."""
        return (
            self.center == "batch"
            and self.training
            and self.groups == 1
            and self._padding_mask is None
            and operations.eager(x, weight)
            and not distributed()
        )

    def track_mean(self, batch_mean: Tensor, count: int) -> Tensor:
        """Pool a batch mean over processes, move the running mean, and return the mean to subtract."""
        if count == 0:
            raise ValueError(memory.EMPTY)
        centring.check_count(self.center, count)
        memory.check_finite(self, batch_mean, "a batch mean")  # before it can poison the running mean
        again = recomputing()
        if again and self.center == "running":
            return self._passes.subtracted(batch_mean)
        pooled = centring.over_processes(batch_mean, count, self.process_group)
        if again:
            return pooled
        centring.follow(self.running_mean, pooled, self.momentum, self.num_batches_tracked)
        if self.center == "batch":
            return pooled
        mean = self.running_mean.clone()  # the buffer will have moved on by the time backward reads it
        if not torch.compiler.is_compiling():
            self._passes.add(batch_mean, mean)
        return mean

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

    # ------------------------------------------------------------------------------------------------- remember

    @property
    def padding_mask(self) -> Tensor | None:
        """True where a token is padding, (batch, tokens); see :func:`decorlib.padding`. None: no padding."""
        return self._padding_mask

    @padding_mask.setter
    def padding_mask(self, mask: Tensor | None) -> None:
        self._padding_mask = memory.checked_mask(mask)

    def real_rows(self, x: Tensor) -> Tensor | None:
        """Which rows of x (*, D) are no padding, (rows,); None where all count."""
        return memory.real_rows(x, self._padding_mask)

    def sample(self, count: int, device, real: Tensor | None = None) -> Tensor | None:
        """Indices of the samples that the statistics use, out of those that are ``real``; None for all."""
        return memory.drawn(count, self.fraction, self.generator, device, real)

    def remember(self, x: Tensor, mean: Tensor | None, y: Tensor | None = None, handed_out: bool = False) -> None:
        """Keep (a sample of) a batch's states for ``update()``; y is computed for the sample where it is not given.

        Args:
            x: the inputs, (*, D).
            mean: what is subtracted from them, (D), or None.
            y: their states, where they are there already.
            handed_out: whether y is the output of the layer, which others may write to.
        """
        real = self.real_rows(x)
        x = x.detach().reshape(-1, self.in_features)
        y = None if y is None else y.detach().reshape(-1, self.in_features)
        chosen = self.sample(x.shape[0], x.device, real)
        if chosen is not None:
            x, y = x[chosen], None if y is None else y[chosen]
        self.remember_samples(x, mean, y, handed_out and chosen is None)

    @torch.no_grad()
    def remember_samples(
        self, x: Tensor, mean: Tensor | None, y: Tensor | None = None, handed_out: bool = False
    ) -> None:
        """``remember`` for samples (n, D) that are already chosen."""
        if recomputing():
            return
        if x.shape[0] == 0:
            raise ValueError(memory.EMPTY)
        if y is None:
            y = self.transform(x, mean)
        memory.check_finite(self, x, "input", witness=y)
        inputs = None
        if self.rule.reads is not None:
            inputs = x if self.rule.reads == "raw input" or mean is None else x - mean.detach()
        source = (x, None if mean is None else mean.detach()) if handed_out else None
        self.memory.add(y, inputs, source, self.accumulate, self.called)

    def nothing_remembered(self, what: str = "update()") -> str:
        """Why there is no batch to learn from."""
        if not self.training:
            return f"{what} in evaluation mode: statistics come from training forwards; call model.train() first"
        if self._updates():
            return (
                f"{what} without a new training forward since the last one: its statistics would be stale; run a "
                f"training forward before each {what}"
            )
        return f"{what} before any training forward: the layer was never reached; is it used in the model's forward?"

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
            The loss, or None where ``update_every`` says that this step does not learn, or R stands still anyway
            (:meth:`idle_reason`).

        Raises:
            RuntimeError: there is no batch to learn from; the message says why.
        """
        prepared = self.prepare(lr, max_step)
        return set_gradients(self, None, None) if prepared is None else prepared.commit_gradient()

    def step(self, lr: float, max_step: float | None = None) -> Tensor | None:
        """``update()`` and a plain SGD step of rate ``lr`` in one, in place: the same R but for rounding, sooner.

        Nothing is written to ``.grad``, so no D x D gradient is ever made. Call it after ``backward()``.
        """
        prepared = self.prepare(lr, max_step)
        return set_gradients(self, None, None) if prepared is None else prepared.commit_in_place()

    @torch.no_grad()
    def prepare(self, lr: float | Tensor | None = None, max_step: float | None = None) -> PreparedStep | None:
        """The step that the remembered batch asks for, computed but not taken: everything that can fail, fails here.

        Args:
            lr: as in :meth:`update`; or one rate for each group, :math:`(groups)`, for models that stand side by side.
            max_step: as in :meth:`update`; by group where rates are.

        Returns:
            The step, to be committed; its ``loss`` is None where ``update_every`` says that it does not learn. None
            where R stands still anyway (:meth:`idle_reason`).

        Raises:
            RuntimeError: there is no batch to learn from; the message says why.
            ValueError: the rule cannot learn from this batch, or not at this rate.
        """
        if not self.learning or self.frozen or (self.memory.empty and len(self.memory) == 0):
            return None
        turn = self._is_turn()
        if turn and len(self.memory) == 0:
            raise RuntimeError(self.nothing_remembered())
        if max_step is not None and lr is None:
            raise ValueError(f"max_step={max_step} bounds lr times an eigenvalue: call update(lr=..., max_step=...)")
        if isinstance(lr, Tensor) and self.rule.needs_rate:
            raise ValueError(
                f"{self.rule} is not linear in its rate, so that groups cannot differ in it: give a number"
            )
        if not turn:
            return PreparedStep(self)
        self.memory.warn(self.called)
        with full_precision(self.weight.device.type):
            return PreparedStep(self, lr, max_step, *self._moments())

    @torch.no_grad()
    def measure(self) -> Tensor | None:
        """The loss that ``update()`` would return, without learning and without counting as an update.

        Raises:
            RuntimeError: there is no batch to measure; the message says why.
        """
        if not self._is_turn():
            return None
        if len(self.memory) == 0:
            raise RuntimeError(self.nothing_remembered("measure()"))
        with full_precision(self.weight.device.type):
            losses = self.rule.loss(self._moments()[0])
        self.forget()
        return losses.mean() if losses.dim() else losses

    def forget(self) -> None:
        """Forget the batches that an update would learn from."""
        self.memory.clear()
        self._passes.end()

    def _moments(self) -> tuple[Moments, Tensor | None, Tensor | None]:
        """Moments of what is remembered, over all processes; the new average of <x x'>; the direction of b."""
        y, x = self.memory.joined(self.transform)
        y = y.to(self.weight.dtype)
        needs_samples = self.rule.needs_rate and self.rule.reads is not None
        moments = Moments.of(
            self._by_group(y),
            None if x is None else self._by_group(x.to(self.weight.dtype)),
            dense=False if needs_samples else None,
        )
        if distributed():
            moments = moments.reduced(self.process_group, gain=needs_samples)
        input_moment, toward_zero = None, None
        if self.input_moment is not None:
            weight = self.rule.momentum if self._updates() else 1.0
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
        state = self.__dict__.copy()
        for name in ("memory", "_passes", "_padding_mask", "_counted"):  # a batch is not part of the model
            del state[name]
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        self._setup()

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


def _check(holds: bool, name: str, value, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value!r}; it must be {allowed}")
