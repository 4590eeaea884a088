import math

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

import prior.decoding
from prior import PriorConfig, SequenceConfig, make_prior
from prior.modeling import generation_config
from prior.sampling import filter_logits, guided_logits, image_generator, inverse_cdf, sample_codes

SEQUENCE = SequenceConfig(24, (3, 4), class_names=("a", "b", "c"))
FREE = SequenceConfig(24, (3, 4))


@pytest.fixture(autouse=True)
def _one_thread():
    """The products are tiny: on a busy machine a second thread is only waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_model(sequence=SEQUENCE, **changes):
    """Random, but with large weights: peaked distributions that depend on all that came before, as when trained."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
    return make_prior(PriorConfig(**{**sizes, **changes}), sequence).eval()


def streams(number, seed=0):
    return [image_generator(seed, index) for index in range(number)]


@pytest.mark.parametrize("key_heads", [4, 2, 1])
def test_greedy_codes_are_those_of_generate(key_heads):
    model = make_model(num_key_value_heads=key_heads)
    labels = torch.arange(9) % 3
    expected = model.generate((labels + 24)[:, None], do_sample=False)[:, 1:]
    assert torch.equal(sample_codes(model, SEQUENCE, labels, temperature=0, batch_size=4), expected)
    assert torch.equal(sample_codes(model, SEQUENCE, labels, top_k=1), expected)
    assert torch.equal(sample_codes(model, SEQUENCE, labels, temperature=1e-300), expected)
    assert torch.equal(sample_codes(model, SEQUENCE, labels, top_p=1e-9), expected)


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guided_greedy_codes_are_those_of_whole_forward_passes(scale):
    model, labels = make_model(num_key_value_heads=2), torch.tensor([0, 1, 2, 0, 1])
    conditional, unconditional = (labels + 24)[:, None], torch.full((5, 1), SEQUENCE.null_token)
    codes = torch.empty(5, 0, dtype=torch.int64)
    for _ in range(SEQUENCE.length):  # no cache, no packing, each branch alone
        c, u = (
            model(torch.cat([prefix, codes], 1), use_cache=False).logits[:, -1, :24]
            for prefix in (conditional, unconditional)
        )
        codes = torch.cat([codes, (u + scale * (c - u)).argmax(-1, keepdim=True)], 1)
    assert torch.equal(sample_codes(model, SEQUENCE, labels, temperature=0, guidance_scale=scale), codes)


@pytest.mark.parametrize("packed", [True, False])
def test_an_image_does_not_depend_on_its_batch(packed, monkeypatch):
    if not packed:
        monkeypatch.setattr(prior.decoding, "pack_linear", lambda *_: None)
    model, number = make_model(hidden_size=64), 300
    labels = torch.arange(number) % 3
    settings = {"guidance_scale": 1.5, "top_p": 0.95}

    def sample(order, batch_size):
        generators = [image_generator(7, index) for index in order]
        return sample_codes(model, SEQUENCE, labels[order], generators=generators, batch_size=batch_size, **settings)

    everything = list(range(number))
    expected = sample(everything, number)
    assert len(expected.unique(dim=0)) > 290
    for batch_size in (8, 17, 64):
        assert torch.equal(sample(everything, batch_size), expected), batch_size
    assert torch.equal(sample(everything[:60], 3), expected[:60])
    assert torch.equal(sample(everything[:20], 1), expected[:20])
    backwards = everything[::-1]
    assert torch.equal(sample(backwards, 17), expected.flip(0))


def test_seeds_and_generators_are_streams_of_their_own():
    model, labels = make_model(), torch.zeros(6, dtype=torch.int64)
    codes = sample_codes(model, SEQUENCE, labels, seeds=[5, 6, 5, 7, 8, 9])
    assert torch.equal(codes[0], codes[2])
    assert len(codes.unique(dim=0)) == 5
    seeded = [torch.Generator().manual_seed(seed) for seed in (5, 6, 5, 7, 8, 9)]
    assert torch.equal(sample_codes(model, SEQUENCE, labels, generators=seeded), codes)
    assert not torch.equal(sample_codes(model, SEQUENCE, labels, generators=seeded), codes)  # their next numbers
    torch.manual_seed(1)
    first = sample_codes(model, SEQUENCE, labels)
    torch.manual_seed(1)
    assert torch.equal(sample_codes(model, SEQUENCE, labels), first)
    assert len(first.unique(dim=0)) > 1


def test_streams_differ_by_seed_and_index():
    drawn = {
        (seed, index): torch.rand(1, generator=image_generator(seed, index), dtype=torch.float64).item()
        for seed in (0, 1, 2**70, -3)
        for index in range(50)
    }
    assert len(set(drawn.values())) == len(drawn)
    assert sum(drawn.values()) / len(drawn) == pytest.approx(0.5, abs=0.08)


def test_an_unconditional_prior_is_sampled_without_labels():
    model = make_model(FREE)
    codes = sample_codes(model, FREE, seeds=[1, 2, 3], batch_size=2)
    assert codes.shape == (3, 12)
    null_class = sample_codes(make_model(), SEQUENCE, seeds=[1, 2])  # a conditional prior's null class
    assert null_class.shape == (2, 12)
    assert sample_codes(model, FREE, seeds=[]).shape == (0, 12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": 2.0}, "top_k is 2.0"),
        ({"guidance_scale": -1.0}, "guidance_scale is -1.0"),
        ({"guidance_scale": math.nan}, "guidance_scale is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seeds": [1]}, "2 labels, but 1 seeds"),
        ({"seeds": [1, 2], "generators": streams(2)}, "not both"),
        ({"labels": [0, 3]}, "no class 3"),
        ({"labels": None}, "How many images"),
        ({"labels": None, "seeds": [1], "guidance_scale": 2.0}, "no labels are given"),
    ],
)
def test_wrong_arguments_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        sample_codes(make_model(), SEQUENCE, **{"labels": [0, 1], **settings})


def test_guidance_of_an_unconditional_prior_is_refused():
    with pytest.raises(ValueError, match=r"guidance_scale is 2\.0, but this prior is unconditional"):
        sample_codes(make_model(FREE), FREE, seeds=[1], guidance_scale=2.0)
    with pytest.raises(ValueError, match="unconditional"):
        sample_codes(make_model(FREE), FREE, [0], seeds=[1])


def test_weights_that_are_not_finite_are_reported():
    model = make_model()
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        sample_codes(model, SEQUENCE, [0, 1])


def test_the_model_is_left_as_it_was_and_codes_can_be_trained_on():
    model = make_model(attention_dropout=0.5)
    expected = sample_codes(model, SEQUENCE, [0, 1], seeds=[1, 2])
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        codes = sample_codes(model, SEQUENCE, [0, 1], seeds=[1, 2])
    assert torch.equal(codes, expected)
    assert model.training
    model(codes).logits.sum().backward()
    assert model.model.embed_tokens.weight.grad is not None


def test_progress_counts_codes():
    seen = []
    sample_codes(make_model(), SEQUENCE, [0] * 5, batch_size=2, on_progress=lambda *counts: seen.append(counts))
    assert seen[0] == (2, 60)
    assert seen[-1] == (60, 60)
    assert len(seen) == 36
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def kept(logits):
    return logits > -math.inf


@pytest.mark.parametrize("top_k", [0, 1, 7, 50, 100])
@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_filters_are_those_of_transformers(top_k, top_p, temperature):
    logits = torch.randn(20, 50, dtype=torch.float64) * 3
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    actual = filter_logits(logits, temperature, top_k, top_p)
    assert torch.equal(kept(actual), kept(expected))
    torch.testing.assert_close(actual.softmax(-1), expected.softmax(-1))


@pytest.mark.parametrize("spread", [0.1, 5.0])
def test_top_p_of_a_large_codebook_is_that_of_transformers(spread):
    logits = torch.randn(4, 3000, dtype=torch.float64) * spread  # flat: most codes are kept; peaked: a few
    logits[0] *= 3  # one row alone is peaked
    expected = kept(TopPLogitsWarper(0.9)(None, logits))
    assert torch.equal(kept(filter_logits(logits, top_p=0.9)), expected)
    assert torch.equal(kept(filter_logits(logits[:1], top_p=0.9)), expected[:1])
    assert (expected.sum(-1).max() > 1024) == (spread == 0.1)


def test_codes_as_likely_as_the_last_one_kept_are_kept():
    logits = torch.tensor([[1.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    assert kept(filter_logits(logits, top_k=2)).tolist() == [[True, True, True, False]]
    assert kept(filter_logits(logits, top_p=0.6)).tolist() == [[True, True, True, False]]


def test_guidance_is_a_line_through_both_branches():
    logits = torch.randn(7, 5)  # two images, two null branches, padding
    c, u = logits[:2].double(), logits[2:4].double()
    torch.testing.assert_close(guided_logits(logits, 2, 2.5), 2.5 * c - 1.5 * u)
    assert torch.equal(guided_logits(logits, 2, 1.0), c)


def test_codes_follow_their_probabilities():
    logits = torch.tensor([0.1, 0.0, 0.4, 0.2, 0.3, 0.0], dtype=torch.float64).log()
    number = 60_000
    uniforms = torch.rand(number, dtype=torch.float64)
    codes = inverse_cdf(logits.expand(number, -1), uniforms)
    counts = codes.bincount(minlength=6)
    assert counts[1] == counts[5] == 0
    expected = number * logits.exp()
    likely = expected > 0
    chi_square = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert chi_square < 21.1  # 3 degrees of freedom: 1 in 10,000


def test_the_ends_of_the_distribution_are_codes_of_positive_probability():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 1.0, -math.inf]], dtype=torch.float64)
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert inverse_cdf(logits.expand(2, -1), ends).tolist() == [1, 3]


def test_the_whole_chain_follows_the_model():
    """Frequencies of whole images, against the model's own probabilities: two codes of four."""
    sequence = SequenceConfig(4, (1, 2), class_names=("a",))
    model = make_model(sequence, initializer_range=0.1)
    number = 4000
    labels = torch.zeros(number, dtype=torch.int64)
    drawn = sample_codes(model, sequence, labels, generators=streams(number), batch_size=1000)
    counts = (drawn[:, 0] * 4 + drawn[:, 1]).bincount(minlength=16)
    every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    with torch.no_grad():
        logits = model(torch.cat([torch.full((16, 1), 4), every[:, :1]], 1)).logits[..., :4]
    expected = number * logits.log_softmax(-1).gather(-1, every[..., None])[..., 0].sum(-1).exp()
    assert ((counts - expected) ** 2 / expected).sum() < 39.7  # 15 degrees of freedom: 5 in 10,000


def test_generation_config_asks_for_the_whole_distribution():
    config = generation_config(SEQUENCE)
    assert (config.min_new_tokens, config.max_new_tokens, config.top_k) == (12, 12, 0)
    assert config.suppress_tokens == [24, 25, 26, 27]


@pytest.mark.gpu
def test_an_image_does_not_depend_on_its_number_on_a_gpu():
    model = make_model(hidden_size=64).cuda()
    expected = sample_codes(model, SEQUENCE, [0] * 40, generators=streams(40), batch_size=8, guidance_scale=2.0)
    for number in (1, 3, 8, 17):
        codes = sample_codes(
            model, SEQUENCE, [0] * number, generators=streams(number), batch_size=8, guidance_scale=2.0
        )
        assert torch.equal(codes, expected[:number])
