"""thop and torchinfo count what they have a hook for: nothing of ours. Fuse first."""

import copy

import torch
from beside import learned, mixed, needs
from torch import nn

thop, torchinfo = needs("thop", "torchinfo")

from decorlib import decorrelate, fuse  # noqa: E402

X = mixed()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def test_operations_are_counted_after_fuse():
    model = learned(decorrelate(network()), X)
    plain = thop.profile(network(), inputs=(X,), verbose=False)
    assert plain[0] > 0
    assert thop.profile(copy.deepcopy(model), inputs=(X,), verbose=False)[0] == 0  # by the exact class of a layer
    assert thop.profile(fuse(model), inputs=(X,), verbose=False) == plain
    summary = torchinfo.summary(network(), input_data=X, verbose=0)
    assert torchinfo.summary(fuse(model), input_data=X, verbose=0).total_mult_adds == summary.total_mult_adds
    assert torchinfo.summary(copy.deepcopy(model), input_data=X, verbose=0).total_mult_adds != summary.total_mult_adds


def test_what_thop_leaves_behind_is_gone_in_a_copy():
    """thop.profile leaves total_ops in the state_dict of a plain model, too: profile a copy."""
    model = learned(decorrelate(network()), X)
    keys = set(model.state_dict())
    thop.profile(fuse(model), inputs=(X,), verbose=False)
    assert set(model.state_dict()) == keys
    fuse(model, sample_input=X)
