"""safetensors: R and its buffers in the file, and back."""

import copy

import torch
from beside import assert_agrees, learned, mixed, needs, one_layer, output

safetensors = needs("safetensors")

from safetensors.torch import load_file, load_model, save_file, save_model  # noqa: E402

from decorlib import decor_modules, decorrelate, fuse  # noqa: E402

X = mixed()


def test_a_decorrelated_model_is_saved_and_loaded(tmp_path):
    model = learned(decorrelate(one_layer(), center="running", update_every=3, sample_input=X), X)
    save_file(model.state_dict(), tmp_path / "state.safetensors")
    save_model(model, str(tmp_path / "model.safetensors"))
    for load in (
        lambda m: m.load_state_dict(load_file(tmp_path / "state.safetensors")),
        lambda m: load_model(m, str(tmp_path / "model.safetensors")),
    ):
        again = decorrelate(one_layer(), center="running", update_every=3, sample_input=2 * X)
        load(again)
        assert torch.equal(output(again, X), output(model, X))
        for (_, ours), (_, theirs) in zip(decor_modules(again), decor_modules(model), strict=True):
            assert ours._is_turn() == theirs._is_turn()  # the phase of update_every
            assert int(ours.num_updates) == 20


def test_a_fused_model_loads_without_decorlib(tmp_path):
    model = learned(decorrelate(one_layer()), X)
    save_model(fuse(model, sample_input=X), str(tmp_path / "fused.safetensors"))
    plain = copy.deepcopy(one_layer())
    load_model(plain, str(tmp_path / "fused.safetensors"))
    assert_agrees(plain, output(model, X), X)
