"""Models of transformers from tiny configurations: converted, trained, fused, saved, loaded, resized."""

import copy
import itertools
import pickle
import warnings

import pytest
import torch
from beside import assert_agrees, assert_plain, draw, needs, output, scale, three_steps

transformers = needs("transformers")

from decorlib import DecorSGD, conversion_report, decor_modules, decorrelate, fuse  # noqa: E402

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
DECODER = {**SMALL, "num_key_value_heads": 2, "vocab_size": 50, "max_position_embeddings": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TOKENS = torch.randint(3, 50, (4, 9), generator=torch.Generator().manual_seed(0))


def bert(kind=None, **more):
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=32, **SMALL, **NO_DROPOUT, **more)
    return (kind or transformers.BertForSequenceClassification)(config)


def gpt2():
    sizes = {"vocab_size": 50, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False)
    )


def t5():
    sizes = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0, tie_word_embeddings=False)
    return transformers.T5ForConditionalGeneration(config)


MODELS = {
    "bert": (bert, {"input_ids": TOKENS, "labels": torch.tensor([0, 1, 0, 1])}),
    "gpt2": (gpt2, {"input_ids": TOKENS, "labels": TOKENS}),
    "llama": (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER)),
        {"input_ids": TOKENS, "labels": TOKENS},
    ),
    "qwen2": (
        lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**DECODER)),
        {"input_ids": TOKENS, "labels": TOKENS},
    ),
    "t5": (t5, {"input_ids": TOKENS, "labels": TOKENS}),
    "vit": (
        lambda: transformers.ViTForImageClassification(
            transformers.ViTConfig(image_size=16, patch_size=8, num_labels=3, **SMALL, **NO_DROPOUT)
        ),
        {"pixel_values": draw(4, 3, 16, 16), "labels": torch.tensor([0, 1, 2, 0])},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_converted_trained_fused_saved_and_loaded(name, tmp_path):
    torch.manual_seed(0)
    make, sample = MODELS[name]
    plain = make()
    expected = output(plain, sample)
    model = decorrelate(copy.deepcopy(plain), sample_input=sample)
    assert len(list(decor_modules(model))) >= 1
    assert_agrees(model, expected, sample)
    three_steps(model, sample, lambda out: out.loss)
    trained = output(model, sample)
    assert scale(trained - expected) > 1e-3 * scale(expected)
    fused = fuse(model, sample_input=sample)
    assert_agrees(fused, trained, sample)
    assert_plain(fused)
    again = decorrelate(copy.deepcopy(plain), sample_input=sample)
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(output(again, sample), trained)
    fused.save_pretrained(tmp_path / "fused")  # safetensors, as transformers writes them
    assert_agrees(type(plain).from_pretrained(tmp_path / "fused"), trained, sample)


# --------------------------------------------------------------------------------------------------- from_pretrained


class Decorrelated(transformers.BertForSequenceClassification):
    """A model that decorrelates itself, which transformers builds on the meta device."""

    def __init__(self, config):
        super().__init__(config)
        decorrelate(self)


SAMPLE = {"input_ids": TOKENS}


def test_from_pretrained_of_a_plain_checkpoint_starts_at_the_identity(tmp_path):
    torch.manual_seed(0)
    plain = bert()
    plain.save_pretrained(tmp_path)
    model = Decorrelated.from_pretrained(tmp_path)
    assert_agrees(model, output(plain, SAMPLE), SAMPLE)  # R was only allocated, until this first forward
    for name, layer in decor_modules(model):
        assert torch.equal(layer.weight, torch.eye(layer.in_features)), name
        assert not layer.weight.requires_grad, name
    three_steps(model, MODELS["bert"][1], lambda out: out.loss)


def test_from_pretrained_of_a_decorrelated_checkpoint_goes_on_where_it_was(tmp_path):
    torch.manual_seed(0)
    model = three_steps(bert(Decorrelated), MODELS["bert"][1], lambda out: out.loss)
    model.save_pretrained(tmp_path)
    again = Decorrelated.from_pretrained(tmp_path)
    assert torch.equal(output(again, SAMPLE), output(model, SAMPLE))
    for (name, ours), (_, theirs) in zip(decor_modules(again), decor_modules(model), strict=True):
        assert not ours.weight.requires_grad, name
        assert int(ours.num_updates) == int(theirs.num_updates) == 3, name
        assert ours._is_turn() == theirs._is_turn(), name
    three_steps(again, MODELS["bert"][1], lambda out: out.loss)
    fused = fuse(again, sample_input=SAMPLE)
    assert_agrees(fused, output(again, SAMPLE), SAMPLE)


# ------------------------------------------------------------------------------------------------ heads and readers


def test_a_head_tied_to_its_embedding_is_left_alone(tmp_path):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(tie_word_embeddings=True, **DECODER))
    report = conversion_report(model)
    assert "lm_head" not in report.converted
    assert "its weight is also that of 'model.embed_tokens' (Embedding)" in report.left_alone["lm_head"]
    sample = {"input_ids": TOKENS, "labels": TOKENS}
    three_steps(decorrelate(model), sample, lambda out: out.loss)
    fused = fuse(model, sample_input=sample)
    fused.save_pretrained(tmp_path)
    assert_agrees(type(model).from_pretrained(tmp_path), output(model, sample), sample)


def test_resize_an_untied_head_before_decorrelating():
    """resize_token_embeddings builds a new nn.Linear from W alone, and R is lost: resize, then decorrelate; or fuse."""
    torch.manual_seed(0)
    plain = transformers.LlamaForCausalLM(transformers.LlamaConfig(**DECODER))
    sample = {"input_ids": TOKENS, "labels": TOKENS}
    model = three_steps(decorrelate(copy.deepcopy(plain)), sample, lambda out: out.loss, lr=0.1)
    expected = output(model, sample)
    resized = copy.deepcopy(model)
    resized.resize_token_embeddings(60)
    assert type(resized.lm_head) is torch.nn.Linear  # R is gone
    assert scale(output(resized, sample)[..., :50] - expected) > 0.01 * scale(expected)
    fused = fuse(model, sample_input=sample)
    fused.resize_token_embeddings(60)
    assert scale(output(fused, sample)[..., :50] - expected) < 1e-5 * scale(expected)
    plain.resize_token_embeddings(60)
    assert "lm_head" in conversion_report(plain).converted


def test_a_batch_encoding_is_a_sample_as_it_is():
    """What a tokenizer returns, with its attention mask."""
    torch.manual_seed(0)
    sample = transformers.BatchEncoding({"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)})
    plain = bert()
    model = decorrelate(copy.deepcopy(plain), center="running", sample_input=sample)
    assert_agrees(model, output(plain, sample), sample)
    assert_agrees(fuse(model, sample_input=sample), output(plain, sample), sample)


# ------------------------------------------------------------------------------------------------------ GPT-2's Conv1D


@pytest.mark.parametrize("center", [None, "running", "batch"])
def test_all_matrices_of_gpt2_are_converted_and_come_back(center, tmp_path):
    """Four in each block are transformers' Conv1D, whose weight is (in, out)."""
    torch.manual_seed(0)
    plain, sample = gpt2(), {"input_ids": TOKENS, "labels": TOKENS}
    expected = output(plain, sample)
    # A mean needs a bias, which transformers' own lm_head has none of when it is loaded again.
    head = {"exclude": "lm_head"} if center else {}
    model = decorrelate(copy.deepcopy(plain), center=center, sample_input=sample, **head)
    blocks = [f"transformer.h.{i}.{name}" for i in (0, 1) for name in CONV1D]
    assert [name for name, _ in decor_modules(model)] == [
        f"{name}.decorrelation" for name in (blocks if center else [*blocks, "lm_head"])
    ]
    kind = transformers.pytorch_utils.Conv1D
    assert all(isinstance(model.get_submodule(name), kind) for name in blocks)
    assert_agrees(model, expected, sample)
    three_steps(model, sample, lambda out: out.loss)
    trained = output(model, sample)
    assert scale(trained - expected) > 1e-3 * scale(expected)
    assert_agrees(pickle.loads(pickle.dumps(model)), trained, sample)
    fused = fuse(model, sample_input=sample)
    assert all(type(fused.get_submodule(name)) is kind for name in blocks)
    assert_agrees(fused, trained, sample)
    assert_plain(fused)
    fused.save_pretrained(tmp_path)
    assert_agrees(type(plain).from_pretrained(tmp_path), trained, sample)


@pytest.mark.parametrize("center", [None, "running", "batch"])
def test_a_conv1d_is_a_linear_layer_with_a_transposed_weight(center):
    """The same outputs, gradients and step of R, in both of its forms."""
    results = []
    for make, fused in itertools.product((True, False), (True, False)):
        torch.manual_seed(1)
        layer = transformers.pytorch_utils.Conv1D(3, 5) if make else torch.nn.Linear(5, 3)
        layer.weight.data = draw(5, 3, seed=1) if make else draw(5, 3, seed=1).t().contiguous()
        layer.bias.data = draw(3, seed=2)
        model = decorrelate(torch.nn.Sequential(layer), center=center, sample_input=draw(6, 5, seed=5), decor_bias=True)
        layer.fuse = fused
        layer.decorrelation.weight += 0.3 * draw(5, 5, seed=3)
        layer.decorrelation.bias += draw(5, seed=4)
        x = draw(2, 4, 5, seed=6).requires_grad_()
        out = model(x)
        out.square().sum().backward()
        loss = layer.step(0.01)
        weight = layer.weight.grad if make else layer.weight.grad.t()
        plain = fuse(model.eval())(x)
        results.append([out, x.grad, weight, layer.bias.grad, loss, layer.decorrelation.weight, plain])
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("decor_bias", [False, True])
def test_a_step_of_r_that_the_weights_of_gpt2_make_up_for_keeps_its_outputs(decor_bias):
    torch.manual_seed(0)
    model = decorrelate(gpt2().double(), decor_bias=decor_bias, **({"exclude": "lm_head"} if decor_bias else {}))
    sample, differences = {"input_ids": TOKENS, "labels": TOKENS}, []
    for preserved in (True, False):
        optimizer = DecorSGD(model, 1e-2, preserve_function=preserved)
        for _ in range(2):
            model.train()(**sample)
            before = output(model, sample)
            optimizer.step()
            differences.append(float(scale(output(model, sample) - before)))
    assert max(differences[:2]) < 1e-10 < 1e-6 < min(differences[2:])


CONV1D = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def test_berts_queries_keys_and_values_share_one_r():
    torch.manual_seed(0)
    plain, sample = bert(), MODELS["bert"][1]
    expected = output(plain, sample)
    share = [("*.query", "*.key", "*.value")]
    model = decorrelate(copy.deepcopy(plain), center="batch", sample_input=sample, share=share)
    attentions = [layer.attention.self for layer in model.bert.encoder.layer]
    assert all(one.query.decorrelation is one.key.decorrelation is one.value.decorrelation for one in attentions)
    assert len(list(decor_modules(model))) == len(list(decor_modules(decorrelate(copy.deepcopy(plain))))) - 2 * 2
    assert_agrees(model, expected, sample)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # that there were several forwards
        three_steps(model, sample, lambda out: out.loss)
    trained = output(model, sample)
    fused = fuse(model, sample_input=sample)
    assert_agrees(fused, trained, sample)
    assert_plain(fused)
