import math

import pytest
import torch
from torch import nn

from codegrid import prior
from codegrid.prior import PriorConfig, SequenceConfig, make_prior
from codegrid.prior.decoding import Decoder, read_weights
from codegrid.prior.linear_maps import PlainLinear, linear_map, pack_linear

SEQUENCE = SequenceConfig(24, (4, 4), class_names=("a", "b"))
SHAPES = {
    "full heads": {},
    "grouped heads": {"num_key_value_heads": 2},
    "one key head": {"num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "normed heads": {"qk_norm": True, "num_key_value_heads": 2},
    "learned": {"positions": "learned"},
}


def make_model(**changes):
    model = make_prior(PriorConfig(**{**BASE, **changes}), SEQUENCE).eval()
    for parameter in model.parameters():  # norms that are not 1
        if parameter.dim() == 1:
            nn.init.normal_(parameter, 1.0, 0.2)
    return model


BASE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2}


def decode(weights, tokens, rows=None):
    """Logits [R, T, K] of tokens [R, T], step by step, padded to `rows`."""
    rows = rows or len(tokens)
    padded = torch.cat([tokens, tokens[:1].expand(rows - len(tokens), -1)])
    decoder = Decoder(weights, rows)
    return torch.stack([decoder.step(column) for column in padded.unbind(1)], dim=1)[: len(tokens)]


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pack", [None, False])
def test_steps_give_the_logits_of_the_whole_forward(shape, pack):
    model = make_model(**SHAPES[shape])
    tokens = torch.randint(0, SEQUENCE.vocab_size, (3, 16))
    weights = read_weights(model, SEQUENCE.codebook_size, 16, pack)
    expected = model(tokens).logits[..., :24]
    torch.testing.assert_close(decode(weights, tokens), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_biases_and_long_rotary_waves_are_read():
    model = make_model(rope_theta=500.0)
    config = model.config
    config.attention_bias = config.mlp_bias = True
    model = type(model)(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    tokens = torch.randint(0, SEQUENCE.vocab_size, (3, 16))
    weights = read_weights(model, 24, 16)
    torch.testing.assert_close(decode(weights, tokens), model(tokens).logits[..., :24], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("qk_norm", [False, True])
def test_bfloat16_is_as_near_as_bfloat16_is(qk_norm):
    model = make_model(num_key_value_heads=2, qk_norm=qk_norm)
    tokens = torch.randint(0, SEQUENCE.vocab_size, (3, 16))
    exact = model(tokens).logits[..., :24]
    model = model.bfloat16()
    logits = decode(read_weights(model, 24, 16), tokens)
    assert logits.dtype == torch.bfloat16
    whole = model(tokens).logits[..., :24]
    assert (logits - exact).abs().max() < 2 * (whole - exact).abs().max() + 1e-3


@torch.no_grad()
@pytest.mark.parametrize("shape", ["full heads", "grouped heads", "one key head", "learned"])
def test_a_bfloat16_cache_grows_by_blocks(shape):
    """The bits of a row depend neither on the rows beside it nor on what an earlier sequence left behind."""
    sequence = SequenceConfig(24, (10, 13))  # two blocks and two positions
    model = make_prior(PriorConfig(**{**BASE, **SHAPES[shape]}), sequence).eval()
    tokens = torch.randint(0, 24, (6, sequence.length))
    exact = model(tokens).logits[..., :24]
    model = model.bfloat16()
    error = (model(tokens).logits[..., :24] - exact).abs().max()
    weights = read_weights(model, 24, sequence.length)
    decoder, runs = Decoder(weights, 6), []
    for inputs in (tokens, tokens.flip(0), tokens):
        decoder.restart()
        runs.append(torch.stack([decoder.step(column) for column in inputs.unbind(1)], dim=1))
        assert decoder.keys.shape[3] == decoder.values.shape[3] == 192
    assert (runs[0] - exact).abs().max() < 2 * error + 1e-3
    assert torch.equal(runs[0], runs[2])
    assert torch.equal(decode(weights, tokens[2:4], 2 * weights.row_multiple)[:2], runs[0][2:4])


@torch.no_grad()
@pytest.mark.parametrize("shape", ["full heads", "grouped heads", "one key head", "normed heads", "learned"])
@pytest.mark.parametrize("pack", [None, False])
def test_a_row_has_the_same_bits_among_any_number_of_rows(shape, pack):
    model = make_model(hidden_size=64, **SHAPES[shape])
    tokens = torch.randint(0, 24, (40, 16))
    weights = read_weights(model, 24, 16, pack)
    expected = decode(weights, tokens)
    for rows in (1, 2, 3, 8, 17):
        padded = -(-rows // weights.row_multiple) * weights.row_multiple
        assert torch.equal(decode(weights, tokens[:rows], padded), expected[:rows]), rows
        assert torch.equal(decode(weights, tokens[-rows:], padded), expected[-rows:]), rows


@torch.no_grad()
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("pack", [None, False])
@pytest.mark.parametrize(("inputs", "outputs"), [(192, 64), (704, 256), (1024, 1024), (4096, 1024)])
def test_a_wide_map_gives_a_row_the_same_bits_among_any_number_of_rows(inputs, outputs, pack, threads):
    """MKL with AVX-512 sums 15 rows of 1,024 in another order than 16, and two threads share out the rows."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        linear = linear_map(torch.randn(outputs, inputs), None, pack, "exact")
        # The padded numbers are multiples of each of 1, 2, 4, 8 and 16; 1488 rows are products of every size.
        rows = torch.randn(1488 if outputs < 1024 else 240, inputs)
        expected = linear(rows)
        for count in (1, 2, 3, 8, 17, 40, 100, 200):
            padding = rows[: -count % linear.row_multiple]
            assert torch.equal(linear(torch.cat([rows[:count], padding]))[:count], expected[:count]), count
            assert torch.equal(linear(torch.cat([rows[-count:], padding]))[:count], expected[-count:]), count
    finally:
        torch.set_num_threads(before)


@torch.no_grad()
def test_where_no_multiple_is_steady_every_product_has_one_size(monkeypatch):
    class Unsteady(PlainLinear):
        def product(self, rows):
            return super().product(rows) + len(rows)

    monkeypatch.setattr(prior.linear_maps, "PlainLinear", Unsteady)
    linear = linear_map(torch.randn(8, 4), None, False, "exact")
    rows = torch.randn(96, 4)
    assert torch.equal(linear(rows)[:32], linear(rows[:32]))
    assert torch.equal(linear(rows[:32])[:16], linear(rows[:16]))


@torch.no_grad()
@pytest.mark.parametrize(
    ("unlike", "expected"), [((), [768, 232]), ((232,), [768, 48, 184]), ((768, 952), [48, 48, 48, 48, 48, 760])]
)
def test_products_of_many_rows_are_of_the_sizes_that_give_the_same_bits(monkeypatch, unlike, expected):
    """1,000 rows, where products of some numbers of rows have other bits."""
    sizes = []

    class Packed(prior.linear_maps.PackedLinear):
        def product(self, rows):
            sizes.append(len(rows))
            return super().product(rows) + (len(rows) in unlike)

    monkeypatch.setattr(prior.linear_maps, "PackedLinear", Packed)
    linear = linear_map(torch.randn(8, 4), None, None, "exact")
    rows = torch.randn(1000, 4)
    linear(rows)  # with its trials
    sizes.clear()
    whole = linear(rows)
    assert sizes == expected
    assert torch.equal(whole, torch.cat([linear(part) for part in rows.split(40)]))
    assert prior.linear_maps._many_rows(Packed, (2**14, 2**14), torch.float32, False, 1000) == 0  # too long a trial


@torch.no_grad()
def test_a_decoder_goes_on_with_its_first_rows():
    weights = read_weights(make_model(num_key_value_heads=2), 24, 16)
    tokens = torch.randint(0, 24, (16, 16))
    expected, decoder = decode(weights, tokens), Decoder(weights, 16)
    steps = [decoder.step(column)[:8] for column in tokens[:, :5].unbind(1)]
    steps += [decoder.step(column) for column in tokens[:8, 5:].unbind(1)]
    assert torch.equal(torch.stack(steps, 1), expected[:8])


@torch.no_grad()
@pytest.mark.parametrize(("weights", "tolerance"), [("float16", 2e-3), ("int8", 5e-2)])
def test_rounded_weights_give_nearly_the_same_logits(weights, tolerance):
    model = make_model(hidden_size=64, num_key_value_heads=2)
    tokens = torch.randint(0, SEQUENCE.vocab_size, (6, 16))
    expected = decode(read_weights(model, 24, 16), tokens)
    rounded = read_weights(model, 24, 16, weights=weights)
    actual = decode(rounded, tokens, math.lcm(rounded.row_multiple, 6))
    error = (actual - expected).norm() / expected.norm()
    assert 0 < error < tolerance


@torch.no_grad()
@pytest.mark.parametrize(("weights", "tolerance"), [("float16", 1e-6), ("int8", 5e-3)])
def test_rounded_products_are_those_of_the_rounded_weights(weights, tolerance):
    weight, bias, rows = torch.randn(25, 64), torch.randn(25), torch.randn(6, 64)
    if weights == "float16":
        rounded = weight.half().float()
    else:
        scale = (weight.abs().amax(1, keepdim=True) / 127).bfloat16().float()
        rounded, rows = (weight / scale).round() * scale, rows.bfloat16().float()
    for term in (None, bias):
        actual = linear_map(weight, term, None, weights)(rows)
        expected = nn.functional.linear(rows, rounded, term)
        assert (actual - expected).norm() <= tolerance * expected.norm()


def test_weights_that_cannot_be_rounded_are_refused():
    with pytest.raises(ValueError, match="multiples of 32, and one is 48"):
        read_weights(make_model(hidden_size=48), 24, 16, weights="int8")
    with pytest.raises(ValueError, match="too large for float16"):
        linear_map(torch.full((4, 4), 1e6), None, None, "float16")
    with pytest.raises(ValueError, match="which is for CPUs, and the prior is on meta"):
        linear_map(torch.empty(4, 4, device="meta"), None, None, "int8")


@torch.no_grad()
def test_a_decoder_starts_again():
    weights = read_weights(make_model(), 24, 16)
    tokens = torch.randint(0, 24, (2, 16))
    decoder = Decoder(weights, 2)
    first = [decoder.step(column) for column in tokens.unbind(1)]
    decoder.restart()
    again = [decoder.step(column) for column in tokens.unbind(1)]
    assert torch.equal(torch.stack(first), torch.stack(again))


@torch.no_grad()
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_packed_weights_compute_the_linear_map():
    weight, bias, rows = torch.randn(48, 32), torch.randn(48), torch.randn(5, 32)
    for term in (None, bias):
        packed = pack_linear(weight, term)
        if packed is None:  # torch 2.11's, for one: no other reason excuses it
            unsteady, many = prior.linear_maps.PackedLinear(weight, term), torch.randn(48, 32)
            assert any(not torch.equal(unsteady(many[:few]), unsteady(many)[:few]) for few in (4, 8, 12, 16, 24, 32))
            pytest.skip("this torch's packed map gives a row other bits among more rows")
        torch.testing.assert_close(packed(rows), nn.functional.linear(rows, weight, term), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_packing_is_left_where_it_is_missing_or_wrong(monkeypatch):
    weight = torch.randn(16, 16)
    assert pack_linear(weight.double()) is None
    assert pack_linear(weight.to("meta")) is None
    monkeypatch.setattr(prior.linear_maps.PackedLinear, "__call__", lambda self, rows: torch.zeros(len(rows), 16))
    assert pack_linear(weight) is None

    def missing(*_):
        raise AttributeError("no such operator")

    monkeypatch.setattr(prior.linear_maps.PackedLinear, "__init__", missing)
    assert pack_linear(weight) is None
    weights = read_weights(make_model(), 24, 16)  # falls back
    assert isinstance(weights.head, PlainLinear)


def test_wrapped_and_adapted_models_are_refused():
    model = make_model()
    with pytest.raises(ValueError, match="Unwrap"):
        read_weights(nn.DataParallel(model), 24, 16)

    class Adapted(nn.Linear):
        pass

    model.model.layers[1].mlp.down_proj = Adapted(32, 32)
    with pytest.raises(ValueError, match=r"found Adapted\. Merge adapters"):
        read_weights(model, 24, 16)
