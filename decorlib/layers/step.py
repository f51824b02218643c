"""A step of R in two phases: everything that can fail first, then the change."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from decorlib.layers import integrity
from decorlib.layers.checks import called, check_max_step
from decorlib.layers.distributed import distributed
from decorlib.layers.options import Bound, Rate
from decorlib.rules.moments import Moments
from decorlib.rules.rates import auto_rate
from decorlib.rules.rules import Rule, as_rows


class PreparedStep:
    """What one step of one layer will do: computed, but not done. Get one from :meth:`Decorrelation.prepare`.

    Until one of the two ``commit`` methods is called, nothing has changed and nothing needs to be undone, so that a
    step over many layers is all or none: prepare all, then commit all.

    Attributes:
        loss: the loss, a scalar on the layer's device; None where ``update_every`` says that this step does not learn.
            Then there is nothing to change, and a commit only counts.
        rate: the rate of the step.
        losses: the same for each group, :math:`(groups)`, or a scalar where there are none.
    """

    def __init__(
        self,
        layer: nn.Module,
        lr: Rate | Tensor | None = None,
        max_step: Bound = None,
        moments: Moments | None = None,
        input_moment: Tensor | None = None,
        toward_zero: Tensor | None = None,
        gradient: bool = False,
    ):
        self.layer, self.rate, self._lr, self._scale = layer, lr, lr, 1.0
        self._moments, self._input_moment, self._toward_zero = moments, input_moment, toward_zero
        self._direction = self._step = self.losses = self.loss = None
        self._committed = False
        if moments is not None:
            self._compute(layer.rule, lr, max_step, gradient)

    def _compute(self, rule: Rule, lr: Rate | Tensor | None, max_step: Bound, gradient: bool) -> None:
        moments, R = self._moments, self.layer.weight
        self.losses = rule.loss(moments)
        self.loss = self.losses.mean() if self.losses.dim() else self.losses
        if isinstance(lr, Tensor):  # a rate for each group: it becomes part of the scale
            self._scale = lr if max_step is None else torch.minimum(lr, max_step / rule.sharpness(moments))
            self._lr = 1.0
            if self._toward_zero is not None:
                self._toward_zero = lr.repeat_interleave(len(self._toward_zero) // len(lr)) * self._toward_zero
        elif max_step is not None:
            self._scale = (max_step / (lr * rule.sharpness(moments))).clamp(max=1)
        if gradient or type(rule).step_ is Rule.step_:  # no way around the D x D direction, which may not exist
            self._direction = rule.direction(moments, R, self._lr)
        else:  # what it solves is for the step alone, and a direction would solve it again
            self._step = rule.stepper(moments)

    @torch.no_grad()
    def commit_in_place(self) -> Tensor | None:
        """Take the step: R <- R - lr * direction, in place, without a gradient in between. Returns the loss."""
        self._once()
        if self.loss is not None:
            # Through the version counter, so that a backward() that still needs the old R is refused by torch.
            self._move(self.layer.weight, self.layer.bias)
        self.finish()
        return self.loss

    @torch.no_grad()
    def target(self) -> tuple[Tensor, Tensor | None]:
        """R and b as :meth:`commit_in_place` would leave them; nothing is changed."""
        R, b = (None if t is None else t.detach().clone() for t in (self.layer.weight, self.layer.bias))
        if self.loss is not None:
            self._move(R, b)
        return R, b

    @torch.no_grad()
    def commit_target(self, R: Tensor, b: Tensor | None) -> Tensor | None:
        """Take the step to what :meth:`target` gave. Returns the loss."""
        self._once()
        self.layer.weight.copy_(R)
        if b is not None:
            self.layer.bias.copy_(b)
        self.finish()
        return self.loss

    def _move(self, R: Tensor, b: Tensor | None) -> None:
        lr, scale = self._lr, self._scale
        with full_precision(R.device.type):
            if self._direction is None:
                (self._step or self.layer.rule.stepper(self._moments))(R, lr, scale)
            else:
                R.sub_(as_rows(scale, R) * lr * self._direction)
            if b is not None:
                b.sub_(lr * self._toward_zero)

    @torch.no_grad()
    def direct(self) -> None:
        """Compute the direction now, which :meth:`commit_gradient` does otherwise, and which may fail."""
        if self._direction is None and self.loss is not None:
            with full_precision(self.layer.weight.device.type):
                self._direction = self.layer.rule.direction(self._moments, self.layer.weight, self._lr)

    @torch.no_grad()
    def commit_gradient(self) -> Tensor | None:
        """Set ``.grad`` of R and b for an optimizer of rate ``lr``, or None where this step does not learn.

        Returns the loss. Where rates were given by group, the gradient holds them already: step it at a rate of 1.
        """
        if not self._committed:
            self.direct()
        self._once()
        self.finish(*self.gradients())
        return self.loss

    @torch.no_grad()
    def gradients(self) -> tuple[Tensor | None, Tensor | None]:
        """What :meth:`commit_gradient` would set; nothing is changed. After :meth:`direct`."""
        grad, scale = self._direction, self._scale
        if self.loss is not None and isinstance(scale, Tensor):
            with full_precision(self.layer.weight.device.type):
                grad = as_rows(scale, grad) * grad
        return grad, self._toward_zero

    def _once(self) -> None:
        if self._committed:
            raise RuntimeError("this step was taken already: prepare() a new one from a new training forward")
        self._committed = True

    def finish(self, grad: Tensor | None = None, bias_grad: Tensor | None = None) -> None:
        """The step was taken: what it learned from is forgotten, and it is counted."""
        layer = self.layer
        if self.loss is not None:
            layer.forget()
            if self._input_moment is not None:
                layer.input_moment.copy_(self._input_moment)
        set_gradients(layer, grad, bias_grad)
        layer._count.advance(layer.num_updates, layer.update_every)
        self._moments = self._direction = self._step = None


@torch.no_grad()
def prepared(
    layer: nn.Module, lr: Rate | Tensor | None, max_step: Bound, turn: bool, gradient: bool = False
) -> PreparedStep | None:
    """See :meth:`Decorrelation.prepare`; ``turn``: whether ``update_every`` lets this update learn."""
    if _rests(layer):
        return None
    integrity.check(layer)
    check_max_step(max_step)
    if turn and len(layer.memory) == 0:
        raise RuntimeError(_nothing_remembered(layer, "update()"))
    if max_step is not None and lr is None:
        raise ValueError(f"max_step={max_step} bounds lr times an eigenvalue: call update(lr=..., max_step=...)")
    if gradient and isinstance(lr, str):
        raise ValueError(
            f"lr is {lr!r}; a torch optimizer takes the step of this gradient, at a rate of its own: give that number, "
            "or use decorlib.DecorSGD(model, lr='auto')"
        )
    if isinstance(lr, Tensor) and layer.rule.needs_rate:
        raise ValueError(f"{layer.rule} is not linear in its rate, so groups cannot differ in it: give a number")
    if not turn:
        return PreparedStep(layer)
    layer.memory.warn(called(layer))
    layer.memory.tried = True
    with full_precision(layer.weight.device.type):
        parts = batch_moments(layer)
        lr = auto_rate(layer.rule, parts[0]) if isinstance(lr, str) else lr
        return PreparedStep(layer, lr, max_step, *parts, gradient=gradient)


def waits(layer: nn.Module) -> bool:
    """Whether the next step is one between updates, with nothing to do or to refuse: :func:`wait` is all of it."""
    of = layer.__dict__  # not through nn.Module, which looks for attributes in four places
    R, b = of["_parameters"].get("weight"), of["_parameters"].get("bias")
    return (
        of["learning"]
        and of["training"]
        and not of["frozen"]
        and not of["memory"].empty
        and not layer._is_turn()
        and (R is None or R.grad is None)
        and (b is None or b.grad is None)
    )


def wait(layer: nn.Module) -> None:
    """Count a step that does not learn."""
    of = layer.__dict__
    of["_count"].advance(of["_buffers"]["num_updates"], of["update_every"])


@torch.no_grad()
def measured(layer: nn.Module, turn: bool) -> Tensor | None:
    """See :meth:`Decorrelation.measure`."""
    if not turn or _rests(layer):
        return None
    if len(layer.memory) == 0:
        raise RuntimeError(_nothing_remembered(layer, "measure()"))
    with full_precision(layer.weight.device.type):
        losses = layer.rule.loss(batch_moments(layer)[0])
    layer.forget()
    return losses.mean() if losses.dim() else losses


def idle_reason(layer: nn.Module) -> str | None:
    """See :meth:`Decorrelation.idle_reason`."""
    if not layer.learning:
        return "learning is False"
    if layer.frozen:
        return "the weights of its layer are frozen"
    if len(layer.memory) > 0:
        return None
    if not layer.training:
        return "it is in evaluation mode"
    return "its batches were empty" if layer.memory.empty else None


def _rests(layer: nn.Module) -> bool:
    """Whether R is meant to stand still: without a batch in evaluation mode it is not, and an error says so."""
    return idle_reason(layer) is not None and (layer.training or not layer.learning or layer.frozen)


def _nothing_remembered(layer: nn.Module, what: str) -> str:
    """Why there is no batch to learn from."""
    if not layer.training:
        return f"{what} in evaluation mode: statistics come from training forwards; call model.train() first"
    if layer._count.of(layer.num_updates):
        return (
            f"{what} without a new training forward since the last one: its statistics would be stale; run a "
            f"training forward before each {what}"
        )
    return f"{what} before any training forward: the layer was never reached; is it used in the model's forward?"


def batch_moments(layer: nn.Module) -> tuple[Moments, Tensor | None, Tensor | None]:
    """Moments of what is remembered, over all processes; the new average of <x x'>; the direction of b."""
    if any(one.lent is not None and not torch.equal(one.lent, layer.weight) for one in layer.memory.batches):
        raise RuntimeError(
            "the forward used another R than the layer's (torch.func.functional_call), and its states say nothing "
            "about this one: leave the names that end in 'decorrelation.weight' out of what is given, or call "
            "model.eval() for such a forward"
        )
    y, x = layer.memory.joined(layer.transform)
    y, rule, dtype = y.to(layer.weight.dtype), layer.rule, layer.weight.dtype
    inputs = None if x is None else _by_group(x.to(dtype), layer.groups)
    moments = Moments.of(_by_group(y, layer.groups), inputs, gain=rule.needs_gain)
    if distributed():
        moments = moments.reduced(layer.process_group, gain=rule.needs_gain)
    input_moment, toward_zero = None, None
    if layer.input_moment is not None:
        weight = rule.momentum if layer._count.of(layer.num_updates) else 1.0
        input_moment = layer.input_moment.lerp(moments.input_second_moment(), weight)
        moments = moments.with_input_moment(input_moment)
    if layer.bias is not None:
        total = y.new_tensor([y.shape[0]])
        toward_zero = torch.cat([y.sum(0), total])
        if distributed():
            torch.distributed.all_reduce(toward_zero, group=layer.process_group)
        toward_zero, total = toward_zero[:-1], toward_zero[-1:]
        toward_zero = toward_zero if layer.bias_reduction == "sum" else toward_zero / total
    return moments, input_moment, toward_zero


def _by_group(y: Tensor, groups: int) -> Tensor:
    return y if groups == 1 else y.unflatten(-1, (groups, -1)).transpose(0, 1)


def set_gradients(layer: nn.Module, grad: Tensor | None, bias_grad: Tensor | None) -> None:
    """Set ``.grad`` of R and b; not free, even to the None that it was."""
    if layer.weight.grad is not grad:
        layer.weight.grad = grad
    if layer.bias is not None:
        layer.bias.grad = bias_grad


def full_precision(device_type: str):
    """Autocast off. Asking whether it is on costs a tenth of switching it off, which a small step would notice."""
    on = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else contextlib.nullcontext()
