"""Six networks of timm: the same at R = I, trained, fused, saved and loaded."""

import copy
import io

import pytest
import torch
from beside import assert_agrees, assert_plain, draw, needs, output, scale, three_steps

timm = needs("timm")

from decorlib import decor_modules, decorrelate, fuse  # noqa: E402

NETWORKS = {
    "resnet10t": {},
    "mobilenetv3_small_050": {},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 40)},
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3},
    "regnetx_002": {},
    "swin_tiny_patch4_window7_224": {
        "img_size": 56,
        "embed_dim": 24,
        "depths": (1, 1),
        "num_heads": (2, 4),
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_converted_trained_fused_saved_and_loaded(name):
    torch.manual_seed(0)
    plain = timm.create_model(name, pretrained=False, num_classes=5, drop_rate=0.0, **NETWORKS[name])
    x = draw(4, 3, NETWORKS[name].get("img_size", 64), NETWORKS[name].get("img_size", 64))
    expected = output(plain, x)
    model = decorrelate(copy.deepcopy(plain), span="channel", sample_input=x)
    assert len(list(decor_modules(model))) > 3
    assert_agrees(model, expected, x)
    targets = torch.arange(4)
    three_steps(model, x, lambda logits: torch.nn.functional.cross_entropy(logits, targets))
    trained = output(model, x)
    assert scale(trained - expected) > 1e-3 * scale(expected)
    fused = fuse(model, sample_input=x)
    assert_agrees(fused, trained, x)
    assert_plain(fused)
    file = io.BytesIO()
    torch.save({"decorrelated": model.state_dict(), "fused": fused.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = decorrelate(copy.deepcopy(plain), span="channel", sample_input=x)
    again.load_state_dict(saved["decorrelated"])
    assert torch.equal(output(again, x), trained)
    copied = copy.deepcopy(plain)
    copied.load_state_dict(saved["fused"])  # the plain network, without decorlib
    assert_agrees(copied, trained, x)
