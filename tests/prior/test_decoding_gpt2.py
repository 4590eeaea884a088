"""A GPT-2 is decoded as a Llama is: the logits of its whole forward pass, and the same bits in any batch."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from codegrid import prior
from codegrid.prior import SequenceConfig, load_prior, prior_loss, sample_codes, save_prior
from codegrid.prior.decoding import Decoder, read_weights
from codegrid.prior.modeling import cached_width, generation_config
from codegrid.prior.sampling import image_generator

SEQUENCE = SequenceConfig(24, (3, 4), class_names=("a", "b", "c"))


def make_gpt2(width=32, **changes):
    """Random, with biases, and with large weights: peaked distributions that depend on all that came before."""
    config = GPT2Config(
        vocab_size=SEQUENCE.vocab_size,
        n_positions=SEQUENCE.length + 1,
        n_embd=width,
        n_layer=2,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
        **{"activation_function": "gelu", "tie_word_embeddings": False, **changes},
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, float("ln_" in name and name.endswith("weight")), 0.3)
    model.generation_config = generation_config(SEQUENCE)
    return model


def decode(weights, tokens, rows=None):
    """Logits [R, T, K] of tokens [R, T], step by step, padded to `rows`."""
    padded = torch.cat([tokens, tokens[:1].expand((rows or len(tokens)) - len(tokens), -1)])
    decoder = Decoder(weights, len(padded))
    return torch.stack([decoder.step(column) for column in padded.unbind(1)], dim=1)[: len(tokens)]


@torch.no_grad()
@pytest.mark.parametrize(
    "changes", [{}, {"tie_word_embeddings": True}, {"activation_function": "gelu_new", "n_inner": 48}]
)
@pytest.mark.parametrize("pack", [None, False])
def test_steps_give_the_logits_of_the_whole_forward(changes, pack):
    model = make_gpt2(**changes)
    tokens = torch.randint(0, SEQUENCE.vocab_size, (3, 12))
    weights = read_weights(model, 24, 12, pack)
    torch.testing.assert_close(decode(weights, tokens), model(tokens).logits[..., :24], rtol=1e-4, atol=1e-4)
    assert Decoder.bytes_a_row(weights) == 2 * 12 * 4 * cached_width(model.config)


@torch.no_grad()
def test_bfloat16_is_as_near_as_bfloat16_is():
    model, tokens = make_gpt2(), torch.randint(0, SEQUENCE.vocab_size, (3, 12))
    exact = model(tokens).logits[..., :24]
    model = model.bfloat16()
    logits = decode(read_weights(model, 24, 12), tokens)
    assert logits.dtype == torch.bfloat16
    assert (logits - exact).abs().max() < 2 * (model(tokens).logits[..., :24] - exact).abs().max() + 1e-3


@torch.no_grad()
@pytest.mark.parametrize("pack", [None, False])
def test_a_row_has_the_same_bits_among_any_number_of_rows(pack):
    weights, tokens = read_weights(make_gpt2(64), 24, 12, pack), torch.randint(0, 24, (40, 12))
    expected = decode(weights, tokens)
    for rows in (1, 2, 3, 8, 17):
        padded = -(-rows // weights.row_multiple) * weights.row_multiple
        assert torch.equal(decode(weights, tokens[:rows], padded), expected[:rows]), rows
        assert torch.equal(decode(weights, tokens[-rows:], padded), expected[-rows:]), rows


@torch.no_grad()
@pytest.mark.parametrize(("weights", "tolerance"), [("float16", 2e-3), ("int8", 5e-2)])
def test_rounded_weights_give_nearly_the_same_logits(weights, tolerance):
    model, tokens = make_gpt2(64), torch.randint(0, SEQUENCE.vocab_size, (6, 12))
    rounded = read_weights(model, 24, 12, weights=weights)
    expected = decode(read_weights(model, 24, 12), tokens)
    error = (decode(rounded, tokens, math.lcm(rounded.row_multiple, 6)) - expected).norm() / expected.norm()
    assert 0 < error < tolerance


def test_greedy_codes_are_those_of_generate():
    model, labels = make_gpt2(), torch.arange(9) % 3
    expected = model.generate((labels + 24)[:, None], do_sample=False)[:, 1:]
    assert len(expected.unique(dim=0)) == 3
    assert torch.equal(sample_codes(model, SEQUENCE, labels, temperature=0, batch_size=4), expected)


@pytest.mark.parametrize("packed", [True, False])
def test_an_image_does_not_depend_on_its_batch(packed, monkeypatch):
    if not packed:
        monkeypatch.setattr(prior.linear_maps, "pack_linear", lambda *_: None)
    model, number = make_gpt2(64), 100

    def sample(order, batch_size):
        labels, generators = torch.tensor(order) % 3, [image_generator(7, index) for index in order]
        settings = {"guidance_scale": 1.5, "guidance_range": (0.1, 0.7), "temperature": 2.0}
        return sample_codes(model, SEQUENCE, labels, generators=generators, batch_size=batch_size, **settings)

    everything = list(range(number))
    expected = sample(everything, number)
    assert len(expected.unique(dim=0)) > 95
    for batch_size in (8, 17):
        assert torch.equal(sample(everything, batch_size), expected), batch_size
    assert torch.equal(sample(everything[:20], 1), expected[:20])
    assert torch.equal(sample(everything[::-1], 17), expected.flip(0))


@torch.no_grad()
def test_a_saved_prior_is_the_same_model_with_and_without_this_project(tmp_path):
    model, tokens = make_gpt2(), torch.randint(0, SEQUENCE.vocab_size, (3, 12))
    save_prior(model, SEQUENCE, tmp_path)
    loaded, sequence = load_prior(tmp_path)
    assert sequence == SEQUENCE
    for other in (loaded, AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert type(other) is GPT2LMHeadModel
        assert torch.equal(other(tokens).logits, model(tokens).logits)


def test_the_loss_is_that_of_the_stock_models_logits():
    model, codes, labels = make_gpt2(), torch.randint(0, 24, (3, 12)), torch.tensor([0, 1, 2])
    tokens = torch.cat([labels[:, None] + 24, codes], 1)
    expected = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).logits[..., :24].flatten(0, 1), codes.flatten())
    loss = prior_loss(model, codes, labels, None, SEQUENCE)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert model.transformer.wpe.weight.grad[:12].abs().sum(1).all()


def test_another_scale_of_attention_is_refused():
    with pytest.raises(ValueError, match=r"scale_attn_by_inverse_layer_idx True\. Sampling needs True and False"):
        read_weights(make_gpt2(scale_attn_by_inverse_layer_idx=True), 24, 12)
    model = make_gpt2()
    model.transformer.h[1].mlp.c_fc = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"found Identity\. Merge adapters"):
        read_weights(model, 24, 12)
