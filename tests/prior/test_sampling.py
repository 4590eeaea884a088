import math

import pytest
import torch

from codegrid import prior
from codegrid.prior import PriorConfig, SamplingConfig, SequenceConfig, iterate_codes, make_prior
from codegrid.prior.modeling import generation_config
from codegrid.prior.sampling import image_generator, sample_codes

SEQUENCE = SequenceConfig(24, (3, 4), class_names=("a", "b", "c"))
FREE = SequenceConfig(24, (3, 4))


pytestmark = pytest.mark.usefixtures("one_thread")


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


def greedy_by_whole_passes(model, labels, scales, given=None):
    """No cache, no packing, each branch alone; `given` [B, P] is kept."""
    conditional, unconditional = (labels + 24)[:, None], torch.full((len(labels), 1), SEQUENCE.null_token)
    codes = torch.empty(len(labels), 0, dtype=torch.int64) if given is None else given
    for scale in scales[codes.shape[1] :]:
        c, u = (
            model(torch.cat([prefix, codes], 1), use_cache=False).logits[:, -1, :24]
            for prefix in (conditional, unconditional)
        )
        codes = torch.cat([codes, (u + scale * (c - u)).argmax(-1, keepdim=True)], 1)
    return codes


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guided_greedy_codes_are_those_of_whole_forward_passes(scale):
    model, labels = make_model(num_key_value_heads=2), torch.tensor([0, 1, 2, 0, 1])
    expected = greedy_by_whole_passes(model, labels, [scale] * 12)
    assert torch.equal(sample_codes(model, SEQUENCE, labels, temperature=0, guidance_scale=scale), expected)


@torch.no_grad()
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "power"])
@pytest.mark.parametrize("part", [(0.0, 1.0), (0.25, 0.75)])
@pytest.mark.parametrize("rows_given", [0, 1])
def test_scheduled_guidance_and_given_codes_are_those_of_whole_forward_passes(schedule, part, rows_given):
    model, labels = make_model(), torch.tensor([0, 1, 2, 0, 1])
    settings = {"guidance_scale": 4.0, "guidance_schedule": schedule, "guidance_range": part}
    given = torch.randint(0, 24, (5, rows_given, 4))
    scales = SamplingConfig(**settings).guidance_scales(12)
    expected = greedy_by_whole_passes(model, labels, scales, given.flatten(1))
    actual = sample_codes(model, SEQUENCE, labels, temperature=0, prefix_codes=given, **settings)
    assert torch.equal(actual, expected)
    assert not torch.equal(actual, greedy_by_whole_passes(model, labels, [1.0] * 12, given.flatten(1)))


@pytest.mark.parametrize("packed", [True, False])
def test_an_image_does_not_depend_on_its_batch(packed, monkeypatch):
    if not packed:
        monkeypatch.setattr(prior.linear_maps, "pack_linear", lambda *_: None)
    model, number = make_model(hidden_size=64), 300
    labels = torch.arange(number) % 3
    settings = {"guidance_scale": 1.5, "top_p": 0.95, "min_p": 0.001}
    settings |= {"guidance_schedule": "power", "guidance_range": (0.1, 0.7)}

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


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_an_image_of_rounded_weights_does_not_depend_on_its_batch_either(weights):
    model = make_model(hidden_size=64)
    arguments = {"weights": weights, "guidance_scale": 1.5, "guidance_range": (0.0, 0.5)}

    def sample(number, batch_size):
        return sample_codes(
            model, SEQUENCE, torch.arange(number) % 3, generators=streams(number), batch_size=batch_size, **arguments
        )

    expected = sample(70, 70)
    for batch_size in (7, 16, 33):
        assert torch.equal(sample(70, batch_size), expected), batch_size
    assert torch.equal(sample(5, 1), expected[:5])


def test_the_first_codes_of_an_image_are_completed_to_that_image():
    model, labels = make_model(), torch.arange(6) % 3
    settings = {"guidance_scale": 2.0, "seeds": range(6)}
    whole = sample_codes(model, SEQUENCE, labels, **settings)
    for first in (1, 4, 11):
        completed = sample_codes(model, SEQUENCE, labels, prefix_codes=whole[:, :first], batch_size=4, **settings)
        assert torch.equal(completed, whole)
    upper = whole.view(6, 3, 4)[:, :2]
    assert torch.equal(sample_codes(model, SEQUENCE, labels, prefix_codes=upper, **settings), whole)
    deep = SequenceConfig(24, (3, 2), depth=2)
    codes = sample_codes(make_model(deep), deep, prefix_codes=torch.ones(2, 1, 2, 2, dtype=torch.int32), seeds=[0, 1])
    assert (codes[:, :4] == 1).all()


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(2, 12, dtype=torch.int64), "12 codes of 12"),
        (torch.zeros(2, 1, 3, dtype=torch.int64), r"shape \[B, P\] or \[B, r, 4\]"),
        (torch.zeros(2, 4), "Give integers"),
        (torch.full((2, 4), 24), "outside the codebook"),
        (torch.zeros(3, 4, dtype=torch.int64), "of 3 images, but 2"),
    ],
)
def test_wrong_given_codes_are_named(codes, message):
    with pytest.raises(ValueError, match=message):
        sample_codes(make_model(), SEQUENCE, [0, 1], prefix_codes=codes)


def test_codes_come_batch_by_batch():
    model, labels = make_model(), [0, 1, 2, 0, 1]
    expected = sample_codes(model, SEQUENCE, labels, seeds=range(5))
    batches = iterate_codes(model, SEQUENCE, labels, seeds=range(5), batch_size=2)
    first = next(batches)
    assert not torch.is_inference_mode_enabled()  # the caller's own code is not in the sampler's mode
    assert torch.is_grad_enabled()
    rest = list(batches)
    assert [len(batch) for batch in (first, *rest)] == [2, 2, 1]
    assert torch.equal(torch.cat([first, *rest]), expected)
    with pytest.raises(ValueError, match="no class 3"):
        iterate_codes(model, SEQUENCE, [3])  # at the call, before any batch is asked for
    with pytest.raises(TypeError, match="guidance"):
        sample_codes(model, SEQUENCE, labels, guidance=2.0)


def test_the_batch_is_as_large_as_memory_allows(monkeypatch):
    model, sizes = make_model(), []
    row = 2 * 2 * 4 * 12 * 8 * 4  # keys and values; layers, heads, positions, dimensions, bytes
    for free in (10**9, 2 * 2 * 5 * row, 0, None):
        monkeypatch.setattr(prior.memory, "free_memory", lambda device, free=free: free)
        sizes.append([len(batch) for batch in iterate_codes(model, SEQUENCE, [0] * 18, guidance_scale=2.0)])
    assert sizes == [[16, 2], [4, 4, 4, 4, 2], [1] * 18, [16, 2]]


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
        ({"seeds": [1, 2], "generators": streams(2)}, "Both seeds and generators"),
        ({"labels": [0, 3]}, "no class 3"),
        ({"labels": None}, "not said how many images"),
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
