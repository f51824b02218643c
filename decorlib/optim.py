"""Optimizers of R: they ask the rule and step in one ``step()``, and leave nothing in ``.grad``.

The gradient of R comes from no loss. Left in ``.grad`` it is found by everything that walks ``model.parameters()``:
clipping by norm, loss scaling, ``zero_grad``, weight decay. Here it exists only inside ``step()``.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from decorlib.layers import preserve
from decorlib.layers.groups import Layers, groups, groups_of, learners_in, take_away_gradients, told_apart
from decorlib.layers.kinds import is_plain_sgd, refuse_kind
from decorlib.layers.options import Bound, Rate
from decorlib.layers.pending import watched
from decorlib.layers.steps import Learner, as_gradients, check_rate, counted, in_place, learn


class OptimizerOfR(torch.optim.Optimizer):
    """What :class:`DecorSGD` and :class:`DecorOptimizer` share: which layers, at which rates, all of them or none.

    ``losses`` has the decorrelation loss by layer name after each step, and ``learners`` the layers by group.
    """

    # Asked for by GradScaler and by Lightning: R's gradient comes from no loss, so that no scale of the loss is in it.
    _step_supports_amp_scaling = True
    owns_R = True  #: A mark to know it by: after a reload of the library its class is another one.

    in_place, preserve_function = True, False  # the latter of those that were pickled before there was such a choice

    def __init__(self, model: Layers, defaults: dict[str, Any], skip_unreached: bool, preserve_function: bool):
        self.preserve_function, self._readers = preserve_function, preserve.Readers()
        self.losses: dict[str, Tensor | None] = {}
        self.learners: list[list[Learner]] = []
        self.skip_unreached, self._look, self._said_zero = skip_unreached, True, False
        self._nothing: nn.Parameter | None = None
        super().__init__(groups(model), defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add layers with a rate of their own: ``{"params": layers, "lr": ...}``, layers as in the constructor."""
        group = {**self.defaults, **param_group}
        given = group["params"] if isinstance(group["params"], nn.Module | tuple) else list(group["params"])
        found = told_apart(learners_in(given), self.learners)
        self._readers.add(given)
        check_rate(group["lr"], found, allow_zero=True)
        group["params"] = [
            (f"{learner.name}.{kind}".lstrip("."), parameter)
            for learner in found
            for kind, parameter in zip(("weight", "bias"), learner.parameters, strict=False)
        ]
        super().add_param_group(group)
        self.learners.append(found)

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Step every R from the batch that its layer has just seen; ``losses`` then has the decorrelation losses.

        Args:
            closure: evaluates the model and returns the task loss, as with any torch optimizer. Default: None.

        Raises:
            ValueError: a rate that is negative or not finite.
            RuntimeError: a layer has no batch to learn from, or no layer learns; the message names it.
            SilentNoOp: no R has moved although the rate is positive; see :func:`decorlib.decor_step`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._learn()
        return loss

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Steps inside may leave every R as it is, for a loop that looks for this itself."""
        before, self._look = self._look, False
        try:
            yield
        finally:
            self._look = before

    def _learn(self) -> None:
        members, rates, bounds = [], [], []
        for group, found in zip(self.param_groups, self.learners, strict=True):
            rate = check_rate(group["lr"], found, allow_zero=True)
            members += found
            rates += [rate] * len(found)
            bounds += [group.get("max_step")] * len(found)
        if self._look and not self._said_zero and 0 in rates:
            self._said_zero = True
            idle = [member.name for member, rate in zip(members, rates, strict=True) if rate == 0]
            warnings.warn(f"the rate of R is 0 (layers {idle}): no R of them moves", RuntimeWarning, stacklevel=4)
        how = {"skip_unreached": self.skip_unreached, "look": self._look, "gradient": not self.in_place}
        self.losses = learn(members, rates, bounds, self._take, **how)
        self._keep_nothing()

    def _take(self, steps: list) -> None:
        preserve.take_in_place(self._readers, steps) if self.preserve_function else in_place(steps)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing to do after a ``step()`` of ours: it leaves no gradient. One that is there is dropped."""
        take_away_gradients(p for group in self.param_groups for p in group["params"])  # sooner than torch's own
        self._keep_nothing()

    def _add_nothing(self) -> None:
        """A zero gradient that belongs to nothing, for a GradScaler, which refuses update() where it has seen none."""
        self._nothing = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.param_groups[0]["params"].append(self._nothing)
        self.param_groups[0]["param_names"].append("nothing")
        self._keep_nothing()

    def _keep_nothing(self) -> None:
        if (nothing := self._nothing) is None:
            return
        device = self.param_groups[0]["params"][0].device
        if nothing.device != device:
            nothing.grad, nothing.data = None, nothing.data.to(device)
        if nothing.grad is None:
            nothing.grad = torch.zeros_like(nothing)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("learners", "skip_unreached", "preserve_function", "_readers", "_look", "_said_zero", "_nothing")
        return {**super().__getstate__(), "losses": {}, **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._keep_nothing()


class DecorSGD(OptimizerOfR):
    r"""Plain gradient steps of every R in a model, each from the batch that its layer has just seen.

    .. math:: R \leftarrow R - \mathrm{lr} \cdot \mathrm{direction}(\langle y y^\top \rangle, R)

    A torch optimizer: parameter groups, ``state_dict``, schedulers and hooks work as with any other. But it asks for no
    gradient and leaves none: ``backward()`` has nothing to do with it, and ``zero_grad()`` is not needed. Either all
    layers step or, where one of them raises, none. Frozen layers, those with ``learning = False`` and those in
    evaluation mode are skipped. Under a :class:`torch.amp.GradScaler` R moves as without one.

    .. note:: Step it after ``backward()``, once for each training forward (or with ``accumulate=True`` in the layers,
       for each group of forwards). A rate of 0 is taken, for the sake of schedules, with one warning.

    Args:
        model: a model; or layers of it, or (name, layer) pairs; or parameter groups of those,
            ``[{"params": model.encoder, "lr": 1e-4}, {"params": [model.head], "lr": 1e-3}]``.
        lr: rate of R, without unit; ``"auto"`` as for :func:`decorlib.decor_step` (not under a scheduler).
        max_step: bound on rate times curvature; see :meth:`decorlib.Decorrelation.update`. Default: no bound.
        skip_unreached: skip layers that have seen no batch since their last step (experts without tokens) instead of
            raising. Default: False.
        preserve_function: have the weights make up for the step, W <- W R_old R_new^-1, so that the network computes
            what it did. Give the whole model, else ties go unseen; see :mod:`decorlib.layers.preserve`. Default: False.

    Raises:
        ValueError: a rate that is negative or not finite; no decorrelation layer.

    Example::

        >>> optimizer = torch.optim.Adam(bp_parameters(model), lr=1e-3)
        >>> decor_optimizer = DecorSGD(model, lr=1e-4)
        >>> for x, t in loader:
        ...     loss = loss_fn(model(x), t)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
        ...     decor_optimizer.step()
    """

    def __init__(
        self,
        model: Layers,
        lr: Rate,  # ε in the papers
        max_step: Bound = None,
        *,
        skip_unreached: bool = False,
        preserve_function: bool = False,
    ):
        super().__init__(model, {"lr": lr, "max_step": max_step}, skip_unreached, preserve_function)
        self._add_nothing()

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """See :meth:`OptimizerOfR.step`; between updates it only counts."""
        quiet = closure is None and self._nothing.grad is not None and not watched(self)
        if (losses := counted(self.param_groups, self.learners) if quiet else None) is None:
            return self._watched(closure)
        self.losses = losses

    step.hooked = True  # what torch wraps around it for hooks and profilers takes longer than to count
    _watched = torch.optim.Optimizer.profile_hook_step(OptimizerOfR.step)


class DecorOptimizer(OptimizerOfR):
    r"""Any torch optimizer as the owner of R: momentum, Adam, ...; the rule's directions are its gradients.

    ``step()`` sets the gradients, steps the optimizer inside, and takes the gradients away again. All else is as with
    :class:`DecorSGD`, which is quicker for plain gradient steps.

    Args:
        model: as for :class:`DecorSGD`.
        optimizer: a class of :mod:`torch.optim`; or an optimizer that was built over :func:`decor_parameters` of the
            model, whose groups and state then are these.
        lr: rate of R; belongs to a class. Default: that of the optimizer.
        max_step: see :class:`DecorSGD`. Default: no bound.
        skip_unreached, preserve_function: see :class:`DecorSGD`. Default: False.
        in_place: take the steps without a gradient in between; only where the optimizer takes plain gradient steps and
            no hook waits for them. Default: False.
        **options: what else the class takes: ``betas``, ... ``weight_decay``, which AdamW and Muon have unless it is 0,
            pulls R to zero, and not to the identity.

    Raises:
        ValueError: as :class:`DecorSGD`; an optimizer that also owns plain weights; ``in_place`` where it cannot be.

    Example::

        >>> decor_optimizer = DecorOptimizer(model, torch.optim.Adam, lr=1e-4, betas=(0.9, 0.99))
    """

    def __init__(
        self,
        model: Layers,
        optimizer: type[torch.optim.Optimizer] | torch.optim.Optimizer,
        lr: float | None = None,
        max_step: Bound = None,
        *,
        skip_unreached: bool = False,
        preserve_function: bool = False,
        in_place: bool = False,
        **options,
    ):
        self.inner: torch.optim.Optimizer | None = None
        self.without_gradient: list[str] = []  # layers that learned in the last step and still got no gradient
        if isinstance(optimizer, torch.optim.Optimizer):
            if lr is not None or options:
                raise ValueError(
                    f"lr={lr} and {options} belong to a class; {type(optimizer).__name__} is built already"
                )
            defaults = {"lr": None, "max_step": max_step}
            super().__init__(groups_of(optimizer, model), defaults, skip_unreached, preserve_function)
            self._readers.add(model)
            for mine, theirs in zip(self.param_groups, optimizer.param_groups, strict=True):
                theirs.setdefault("max_step", mine["max_step"])
            self.inner = optimizer
        else:
            rate = inspect.signature(optimizer).parameters["lr"].default if lr is None else lr
            super().__init__(model, {"lr": rate, "max_step": max_step}, skip_unreached, preserve_function)
            self.inner = optimizer(self.param_groups, lr=rate, **options)
            self.inner.defaults["max_step"] = max_step
        self._share()
        refuse_kind(self.inner)
        if in_place and not is_plain_sgd(self.inner):
            raise ValueError(
                f"in_place=True takes plain SGD steps, and none that hooks wait for; the optimizer is {self.inner}: "
                "use in_place=False"
            )
        self.in_place, self._told = in_place, False
        if self.inner is not optimizer:
            self._add_nothing()

    def _learn(self) -> None:
        self._share()  # load_state_dict of the inner one puts others in their place
        if not self.in_place:
            self._refuse_replaced()
        super()._learn()

    def _refuse_replaced(self) -> None:
        """Raise where a layer has another R by now than the one that the optimizer inside would step."""
        held = {id(p) for group in self.param_groups for p in group["params"]}
        learners = [learner for found in self.learners for learner in found]
        lost = sorted({one.name for one in learners if any(id(p) not in held for p in one.parameters)})
        if lost:
            raise RuntimeError(
                f"R of layers {lost} is another tensor than the one that {type(self.inner).__name__} was built over "
                "(load_state_dict(assign=True), to_empty): build the optimizer of R anew, after loading"
            )

    def _take(self, steps: list) -> None:
        if self.in_place:
            super()._take(steps)
            if not self._told:
                self.inner.step()  # there is no gradient: this only tells schedules that steps are taken
                self._told = True
            return
        parameters = [p for found in self.learners for learner in found for p in learner.parameters]
        try:
            if self.preserve_function:
                with preserve.around_optimizer(self._readers, steps, self.inner):
                    self._step_inner(steps)
            else:
                as_gradients(steps)
                self._step_inner(steps)
        finally:
            take_away_gradients(parameters)

    def _step_inner(self, steps: list) -> None:
        learned = {id(step.layer) for step in steps if step.loss is not None}
        members = [learner for found in self.learners for learner in found if id(learner.layer) in learned]
        self.without_gradient = [learner.name for learner in members if learner.layer.weight.grad is None]
        if self._nothing is not None:
            self._nothing.grad = None
        self.inner.step()

    def _share(self) -> None:
        self.param_groups, self.state, self.defaults = self.inner.param_groups, self.inner.state, self.inner.defaults

    def __getstate__(self) -> dict[str, Any]:
        kept = ("inner", "in_place", "_told", "without_gradient")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.inner is not None and "inner" not in state:  # what load_state_dict puts in their place
            self.inner.__setstate__({"state": self.state, "param_groups": self.param_groups})
