"""From images as published to the batches a model sees: tensors, scalings, a fast loader."""

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float32, Integer, Shaped, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

Scaling = Literal["notebook", "raw", "unit", "standard", "feature", "centred"]
SCALINGS: tuple[str, ...] = get_args(Scaling)


def tensors(dataset: Any) -> tuple[UInt8[Tensor, " n *size"], Integer[Tensor, " n"]]:
    """All images and labels of a torchvision data set (or a Subset of one) as two tensors, as published.

    The data set's transforms are *not* applied: scale with :func:`scale`.

    Args:
        dataset: what :func:`mnist`, :func:`fashion_mnist` or :func:`cifar10` returned, or a Subset of it.

    Shape:
        images uint8 (N, 28, 28), for CIFAR-10 (N, 32, 32, 3); labels int64 (N,).

    Raises:
        TypeError: the data set has no ``data`` and ``targets``.
    """
    if isinstance(dataset, Subset):
        images, labels = tensors(dataset.dataset)
        index = torch.as_tensor(np.asarray(dataset.indices), dtype=torch.int64)
        return images[index], labels[index]
    if not (hasattr(dataset, "data") and hasattr(dataset, "targets")):
        raise TypeError(f"{type(dataset).__name__} has no data and targets; pass a torchvision data set or a Subset")
    return torch.as_tensor(dataset.data), torch.as_tensor(dataset.targets, dtype=torch.int64)


def _pixel_moments(images: UInt8[Tensor, " n *size"]) -> tuple[Tensor, Tensor]:
    """Mean and variance of each pixel in units of p/255, from exact integer sums (float64)."""
    total = images.sum(0, dtype=torch.int64).double()
    # In parts: int64 takes eight times the memory of the images.
    square = sum(part.to(torch.int64).square().sum(0) for part in images.split(4096))
    mean = total / len(images)
    return mean / 255, (square.double() / len(images) - mean.square()).clamp(min=0) / 255**2


def scale(
    images: UInt8[Tensor, " n *size"],
    how: str = "notebook",
    *,
    reference: UInt8[Tensor, " m *size"] | None = None,
    floor: float = 1 / 255,
) -> Float32[Tensor, " n *size"]:
    r"""uint8 images p -> float32 inputs x, in one of six ways.

    ============  ==============================================  ==========================================
    how           x                                               MNIST's background becomes
    ============  ==============================================  ==========================================
    "notebook"    (p/255 - 0.5) / 0.25, as the 2024 notebook      -2
    "raw"         p/255                                           0
    "unit"        (p/255 - 0.5) / 0.5, range [-1, 1]              -1
    "standard"    (p/255 - m) / s, one m and s for all pixels      -0.42 (m = 0.1307, s = 0.3081)
    "feature"     (p/255 - m_i) / max(s_i, floor), per pixel       0 where the pixel is constant
    "centred"     p/255 - m_i, per pixel                          0 where the pixel is constant
    ============  ==============================================  ==========================================

    "notebook", "raw" and "unit" do the float32 operations of torchvision's ``ToTensor`` and ``Normalize`` in
    their order: the result is equal to the bit. The other three take m and s from `reference`, the training set, also
    when the test set is scaled: statistics of the test set must not reach the model.

    Args:
        images: as :func:`tensors` gives them.
        how: one of the six names. Default: "notebook". "seed" is its older name.
        reference: training images that m and s come from; must be given for the last three. Default: None.
        floor: smallest s_i that "feature" divides by, in units of p/255. It keeps pixels that hardly ever
            change from being blown up. Default: 1/255, one grey level.

    Shape:
        images (N, ...), reference (M, ...) -> (N, ...).

    Raises:
        ValueError: unknown name; images that are not uint8 (scaled already?); a reference that is missing, empty or
            of other images; a floor that is not positive and finite.

    Example::

        >>> x = scale(test_images, "feature", reference=train_images)
    """
    how = "notebook" if how == "seed" else how
    if how not in SCALINGS:
        raise ValueError(f"how = {how!r} is no scaling; choose one of {', '.join(SCALINGS)}")
    if not 0 < floor < math.inf:
        raise ValueError(f"floor = {floor} must be positive and finite; 1/255 is one grey level")
    for name, pixels in (("images", images), ("reference", reference)):
        if pixels is not None and pixels.dtype != torch.uint8:
            raise ValueError(
                f"{name} are {pixels.dtype}; scale takes pixels as published, uint8 from 0 to 255, as tensors() "
                "gives them"
            )
    x = images.to(torch.float32).div_(255)
    if how == "raw":
        return x
    if how in ("notebook", "unit"):
        return x.sub_(0.5).div_({"notebook": 0.25, "unit": 0.5}[how])
    if reference is None or len(reference) == 0:
        raise ValueError(f"scaling {how!r} takes its statistics from training images: pass reference=train_images")
    if reference.shape[1:] != images.shape[1:]:
        raise ValueError(
            f"reference has images of shape {tuple(reference.shape[1:])}, to be scaled are {tuple(images.shape[1:])}; "
            "take both from one data set"
        )
    mean, variance = _pixel_moments(reference)
    if how == "standard":
        std = (variance.mean() + (mean - mean.mean()).square().mean()).sqrt()  # within + between pixels
        if std == 0:
            raise ValueError("scaling 'standard' needs a reference that is not constant; all its pixels are equal")
        return x.sub_(mean.mean().float()).div_(std.float())
    x.sub_(mean.float())
    return x if how == "centred" else x.div_(variance.sqrt().clamp(min=floor).float())


def loader(
    x: Shaped[Tensor, " n *size"],
    y: Shaped[Tensor, " n *label"],
    batch_size: int = 64,
    shuffle: bool = True,
    drop_last: bool = True,
    generator: torch.Generator | None = None,
) -> DataLoader:
    """A torch DataLoader over tensors that indexes a whole batch at once.

    With equal generators it gives the batches of ``DataLoader(TensorDataset(x, y), batch_size, shuffle,
    drop_last=...)``, in the same order and with the same draws from the global generator, without touching
    samples one by one.

    Args:
        x: inputs, on any device: batches are drawn there.
        y: labels, as many as inputs.
        batch_size: samples per batch. Default: 64.
        shuffle: new order each epoch. Default: True.
        drop_last: leave out the last batch where it would be smaller. Default: True.
        generator: source of the order. Default: None, torch's global one.

    Raises:
        ValueError: there would be no batch at all.
    """
    if len(x) == 0 or (drop_last and len(x) < batch_size):
        raise ValueError(
            f"{len(x)} samples give no batch of {batch_size}; take a smaller batch_size"
            + (" or drop_last=False" if len(x) else "; x is empty")
        )
    return _TensorLoader(TensorDataset(x, y), batch_size, shuffle, drop_last=drop_last, generator=generator)


class _TensorLoader(DataLoader):
    """torch's DataLoader over a TensorDataset, iterated in this process by whole batches of indices.

    torch's own idiom for that (a sampler of batches, ``batch_size=None``) takes 100 us more a batch for what it does
    around it, which at 64 digits is a tenth of a training step.
    """

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        torch.empty((), dtype=torch.int64).random_(generator=self.generator)  # torch's seed of workers: the same draws
        return self._batches()

    def _batches(self) -> Iterator[tuple[Tensor, ...]]:
        order = torch.tensor(list(self.sampler))  # drawn at the first batch, as torch's does
        tensors = self.dataset.tensors
        # Each tensor is indexed where it lies: an epoch's order goes to a GPU once, not with every batch.
        orders = [order[: len(self) * self.batch_size].to(tensor.device).split(self.batch_size) for tensor in tensors]
        for indices in zip(*orders, strict=True):
            yield tuple(tensor.index_select(0, index) for tensor, index in zip(tensors, indices, strict=True))


def in_parts(loader: DataLoader, parts: int) -> Iterable[tuple[Tensor, ...]]:
    """Passes over a loader in equal parts: each iteration goes on where the one before has ended.

    For measuring several times an epoch: a trainer that is given ``in_parts(loader, n)`` for n times as many epochs
    takes the same steps, and evaluates after every n-th part. A new pass begins, and its order is drawn, with every
    n-th iteration.

    Args:
        loader: has a length.
        parts: n, at least 1 and at most the number of batches; parts differ by a batch where it does not divide them.

    Raises:
        ValueError: fewer batches than parts.

    Example::

        >>> history = train(model, loss_fn, in_parts(loader, 4), epochs=4 * epochs, optimizer=optimizer, evaluate=test)
    """
    if not 1 <= parts <= len(loader):
        raise ValueError(f"parts is {parts}; it must be in [1, {len(loader)}], the batches of a pass")
    return _InParts(loader, parts)


class _InParts:
    def __init__(self, loader: DataLoader, parts: int):
        self.loader, self.parts, self.done = loader, parts, 0

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        if self.done == 0:
            self.batches = iter(self.loader)
        begin, end = (len(self.loader) * part // self.parts for part in (self.done, self.done + 1))
        self.done = (self.done + 1) % self.parts
        return islice(self.batches, end - begin)
