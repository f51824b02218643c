"""What steps the weights instead of Adam: Muon, SOAP, PSGD-Kron and FOOF, each built by one function."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from decorlib.layers import bp_parameters
from decorlib.study.questions.instead.foof import FOOF

OPTIMIZERS = ("adam", "muon", "soap", "kron", "foof")
#: Packages that an optimizer needs.
NEEDS = {"soap": ("pytorch_optimizer",), "kron": ("pytorch_optimizer", "opt_einsum")}


def version(name: str) -> str:
    """Of an installed package; "" where it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


#: What a run depends on besides code and torch; a stored run is named by it, too.
DEPENDS_ON = {name: partial(version, name) for name in ("pytorch_optimizer", "opt_einsum")}


class _ThroughFloat32(TorchDispatchMode):
    """Products of bfloat16 matrices by float32 and one rounding, as processors with instructions for them round.

    torch's Muon multiplies in bfloat16. On x86 without AVX-512 that takes 5 to 10 times as long as float32 does: a run
    of the MLP with Muon took 40 times as long as one with Adam, where budgets count on less than twice.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        product = func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        if product and args[0].dtype == torch.bfloat16 and args[0].device.type == "cpu":
            return func(*(tensor.float() for tensor in args), **(kwargs or {})).bfloat16()
        return func(*args, **(kwargs or {}))


def products():
    """What steps with Muon are taken in: :class:`_ThroughFloat32` where that is faster, else nothing."""
    return _ThroughFloat32() if torch.backends.cpu.get_cpu_capability() == "AVX2" else contextlib.nullcontext()


class MuonAndAdam(torch.optim.Optimizer):
    """:class:`torch.optim.Muon` on the hidden matrices, Adam on all else: biases, gains, first and last layer.

    That is how its author says to use it (Jordan 2024, https://kellerjordan.github.io/posts/muon). torch's refuses
    kernels of convolutions; here they are matrices (M, C k k), and the three of attention are a matrix each. The rate
    is one: ``adjust_lr_fn="match_rms_adamw"`` gives Muon's steps the size of Adam's (Liu et al. 2025, arXiv
    2502.16982).

    Args:
        matrices: parameter -> how many matrices, one below the other, it holds.
        rest: all other parameters.
        lr: of both.
    """

    def __init__(self, matrices: dict[nn.Parameter, int], rest: list[nn.Parameter], lr: float):
        super().__init__([*matrices, *rest], {"lr": lr})
        # Parameters over the same memory: what Muon does to these, it does to those.
        self.views = {p: [nn.Parameter(part) for part in p.detach().flatten(1).chunk(n)] for p, n in matrices.items()}
        views = [view for parts in self.views.values() for view in parts]
        options = {"weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
        self.owners: list[torch.optim.Optimizer] = [torch.optim.Muon(views, lr=lr, **options)] if views else []
        self.owners.append(torch.optim.Adam(rest, lr=lr, fused=True))

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step of each."""
        if closure is not None:
            raise ValueError("closure must be None: both owners would evaluate the model")
        for p, parts in self.views.items():
            for view, gradient in zip(parts, p.grad.flatten(1).chunk(len(parts)), strict=True):
                view.grad = gradient
        with products():
            for owner in self.owners:
                for group in owner.param_groups:
                    group["lr"] = self.param_groups[0]["lr"]
                owner.step()
        return None


def hidden_matrices(model: nn.Module) -> dict[nn.Parameter, int]:
    """Weights of linear layers and convolutions, first and last apart -> the matrices that each is made of."""
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return {layer.weight: 3 if name.endswith("qkv") else 1 for name, layer in layers[1:-1]}


def missing(kind: str) -> str:
    """Why an optimizer cannot run here; "" where it can."""
    absent = [name for name in NEEDS.get(kind, ()) if importlib.util.find_spec(name) is None]
    if not absent:
        return ""
    why = f"{' and '.join(absent)} not installed: pip install 'decorlib[study]'"
    if absent == ["opt_einsum"]:
        memory = 4 * (784 * 256) ** 2 / 1e9
        why += f"; without it Kron's products of a matrix 784 x 256 take {memory:.0f} GB"
    return why


def optimizer(spec, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a :class:`~decorlib.study.questions.instead.peers.Peer` over all weights of a model, R apart.

    Weight decay is 0 in all of them, which in torch's Muon and in pytorch_optimizer's SOAP is no default.
    """
    weights = list(bp_parameters(model))
    if why := missing(spec.optimizer):
        raise RuntimeError(f"optimizer = {spec.optimizer!r} cannot run: {why}")
    if spec.optimizer == "adam":
        return torch.optim.Adam(weights, lr=spec.lr, fused=True)
    if spec.optimizer == "muon":
        own = {id(p) for p in weights}
        matrices = {p: n for p, n in hidden_matrices(model).items() if id(p) in own}
        taken = {id(p) for p in matrices}
        return MuonAndAdam(matrices, [p for p in weights if id(p) not in taken], spec.lr)
    if spec.optimizer == "foof":
        return FOOF(model, weights, spec.lr, damping=spec.damping)
    import pytorch_optimizer

    if spec.optimizer == "soap":
        return pytorch_optimizer.SOAP(weights, lr=spec.lr, weight_decay=0.0)
    np.random.seed(spec.seed)  # noqa: NPY002 - Kron draws from numpy's global generator when to balance its factors
    return pytorch_optimizer.Kron(weights, lr=spec.lr, weight_decay=0.0)
