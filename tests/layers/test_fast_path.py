"""torch's encoder layer in inference reads weights past their layers; with an R inside it has to call them, always."""

import copy
import pickle

import pytest
import torch
from torch import nn

from decorlib import DecorLinear, DecorMultiheadAttention, decor_modules, decorrelate, fuse

x = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))


def plain():
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True).eval()


def with_a_linear_layer_of_ours():
    encoder = plain()
    encoder.linear1 = DecorLinear(8, 12)
    return encoder


def with_an_attention_of_ours():
    encoder = plain()
    encoder.self_attn = DecorMultiheadAttention(8, 2, batch_first=True, inputs="self")
    return encoder


def of_which_a_linear_layer_was_converted():
    encoder = plain()
    decorrelate(encoder.linear2)
    return encoder


def of_which_the_attention_was_converted():
    encoder = plain()
    decorrelate(encoder.self_attn)
    return encoder


BUILT = [
    with_a_linear_layer_of_ours,
    with_an_attention_of_ours,
    of_which_a_linear_layer_was_converted,
    of_which_the_attention_was_converted,
]


def scrambled(model):
    for i, (_, layer) in enumerate(decor_modules(model)):
        noise = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(i + 1))
        layer.set_weight(layer.weight + 0.4 * noise)
    return model.eval()


def as_it_is_called(encoder, x):
    """The layer written out, as its paper and torch's own slow path have it."""
    h = encoder.norm1(x + encoder.self_attn(x, x, x, need_weights=False)[0])
    return encoder.norm2(h + encoder.linear2(encoder.linear1(h).relu()))


@pytest.mark.parametrize("copied", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("build", BUILT)
def test_in_inference_r_is_there_however_the_layer_was_put_together(build, copied):
    """Without decorrelate() of the whole encoder layer torch skipped R here: 0.3 to 0.8 off."""
    encoder = copied(scrambled(build()))
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), as_it_is_called(encoder, x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fuse(encoder)(x), encoder(x), rtol=1e-5, atol=1e-5)
    fused = fuse(encoder)
    assert not any(m._forward_pre_hooks for m in fused.modules())  # and torch may take its fast path again


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_nested_tensors_of_an_encoder_are_refused_with_the_way_out():
    """Such an encoder skipped R where there was a padding mask: 1.0 off."""
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]], dtype=torch.bool)
    encoder = scrambled(nn.TransformerEncoder(with_a_linear_layer_of_ours(), 2))
    with torch.no_grad(), pytest.raises(ValueError, match=r"nested tensor.*enable_nested_tensor=False.*decorrelate"):
        encoder(x, src_key_padding_mask=mask)
    encoder = scrambled(nn.TransformerEncoder(with_a_linear_layer_of_ours(), 2, enable_nested_tensor=False))
    expected = encoder(x, src_key_padding_mask=mask)  # with gradients torch calls the layers
    with torch.no_grad():
        torch.testing.assert_close(encoder(x, src_key_padding_mask=mask), expected, rtol=1e-5, atol=1e-5)
