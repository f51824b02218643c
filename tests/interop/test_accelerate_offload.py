"""accelerate: weights that are elsewhere until their layer is called, and R whose layer calls it by no hook."""

import copy

import pytest
import torch
from beside import assert_agrees, learned, mixed, needs, one_layer, output, scale

accelerate = needs("accelerate")

from decorlib import conversion_report, decorrelate, fuse  # noqa: E402

X = mixed()
CPU = torch.device("cpu")


def test_an_offloaded_decorrelated_model_is_refused_or_right():
    """R's module is never called, so that its hook never runs and R stays on meta: refused with both ways out."""
    model = learned(decorrelate(one_layer()), X)
    expected = output(model, X)
    offloaded = copy.deepcopy(model)
    accelerate.cpu_offload(offloaded, CPU)
    with pytest.raises(RuntimeError, match=r"(?s)decorlib\.fuse\(model\) first.*preload_module_classes"):
        output(offloaded, X)
    with pytest.raises(ValueError, match="layer '0': "):
        fuse(offloaded)
    named = copy.deepcopy(model)
    accelerate.cpu_offload(named, CPU, preload_module_classes=["DecorLinear"])
    assert_agrees(named, expected, X)
    fused = fuse(model, sample_input=X)
    accelerate.cpu_offload(fused, CPU)
    assert_agrees(fused, expected, X)


def test_an_offloaded_plain_model_is_not_decorrelated():
    """Its hooks have replaced forward on the object, which would go on without R."""
    model = one_layer()
    accelerate.cpu_offload(model, CPU)
    report = conversion_report(model)
    assert not report.converted
    assert "its forward was replaced on the object by accelerate (remove_hook_from_module" in report.left_alone["0"]
    accelerate.hooks.remove_hook_from_module(model, recurse=True)  # the way out that is given
    expected = output(decorrelate(model), X)
    assert "forward" not in vars(model[0])  # which it leaves there, bound to the plain layer
    learned(model, X)
    assert scale(output(model, X) - expected) > 1e-3 * scale(expected)  # R is used
    assert_agrees(fuse(model, sample_input=X), output(model, X), X)


def test_what_accelerator_prepares_is_fused_when_unwrapped():
    accelerator = accelerate.Accelerator(cpu=True)
    model = learned(decorrelate(one_layer()), X)
    expected = output(model, X)
    fused = fuse(accelerator.unwrap_model(accelerator.prepare(model)), sample_input=X)
    assert_agrees(fused, expected, X)
