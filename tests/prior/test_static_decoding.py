"""Decoding in fixed shapes: the eager way's codes, steps that are traced whole, graphs that are replayed."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from codegrid import prior
from codegrid.errors import CodegridError
from codegrid.prior import PriorConfig, SamplingConfig, SequenceConfig, make_prior, sample_codes, static_decoding
from codegrid.prior.architectures import ARCHITECTURES
from codegrid.prior.decoding import Decoder, read_weights
from codegrid.prior.static_decoding import Graphs, StaticDecoder, StaticSampling
from codegrid.prior.way import way_to_draw

pytestmark = pytest.mark.usefixtures("one_thread")

SEQUENCE = SequenceConfig(24, (3, 4), class_names=("a", "b", "c"))
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
SHAPES = {name: {"architecture": name} for name in ARCHITECTURES} | {
    "grouped heads": {"num_key_value_heads": 2},
    "one key head": {"num_key_value_heads": 1},
}
SETTINGS = {
    "plain": {},
    "greedy": {"temperature": 0},
    "guided": {"guidance_scale": 3.0, "top_k": 9, "top_p": 0.8, "min_p": 0.01},
    "guided in part": {"guidance_scale": 4.0, "guidance_schedule": "cosine", "guidance_range": (0.2, 0.6)},
}
MANY_STEPS = [name for name, record in ARCHITECTURES.items() if record.reads != "before"]
LABELS = torch.arange(7) % 3


def make_model(sequence=SEQUENCE, **changes):
    return make_prior(PriorConfig(**{**SIZE, **changes}), sequence).eval()


def both(model, sequence=SEQUENCE, labels=LABELS, **options):
    """Codes of the eager and of the static way."""
    options = {"seeds": range(7), "batch_size": 4, **options}
    return [sample_codes(model, sequence, labels, decoding=decoding, **options) for decoding in ("eager", "static")]


@pytest.fixture(params=["so far", "whole"])
def read(request, monkeypatch):
    """How much of the cache is read: what is written, as on a CPU, or all with a mask, as on an accelerator."""
    if request.param == "whole":
        monkeypatch.setattr(static_decoding, "_end", lambda slots: None)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.usefixtures("read")
def test_codes_are_those_of_the_eager_way(shape, settings):
    eager, static = both(make_model(**SHAPES[shape]), **SETTINGS[settings])
    assert torch.equal(eager, static)


@pytest.mark.parametrize("architecture", MANY_STEPS)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("num_steps", [None, 1, 5])
@pytest.mark.usefixtures("read")
def test_codes_in_other_orders_and_around_known_ones_are_those_of_the_eager_way(architecture, settings, num_steps):
    known = torch.randint(0, 24, (7, 3, 4), generator=torch.Generator().manual_seed(0))
    again = torch.zeros(3, 4, dtype=torch.bool)
    again[1:, :3] = True
    model = make_model(architecture=architecture)
    for options in ({}, {"known_codes": known, "redraw": again}):
        eager, static = both(model, num_steps=num_steps, order="random", **options, **SETTINGS[settings])
        assert torch.equal(eager, static)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "bert"])
def test_given_first_codes_stay(architecture):
    given = torch.randint(0, 24, (7, 1, 4), generator=torch.Generator().manual_seed(1))
    eager, static = both(make_model(architecture=architecture), prefix_codes=given, guidance_scale=2.0)
    assert torch.equal(eager, static)
    assert torch.equal(static[:, :4], given.flatten(1))


@torch.no_grad()
@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "bert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_have_the_bits_of_the_eager_way(shape, dtype):
    sequence = SequenceConfig(24, (10, 7), class_names=("a",))  # more than a block of a bf16 cache
    model = make_model(sequence, **SHAPES[shape]).to(dtype)
    weights = read_weights(model, 24, sequence.length)
    tokens = torch.randint(0, sequence.vocab_size, (8, sequence.length))
    eager, static = Decoder(weights, 8), StaticDecoder(weights, 8)
    cache, places = torch.arange(sequence.length), torch.zeros(8, dtype=torch.int64)
    for position, column in enumerate(tokens.unbind(1)):
        expected = eager.logits(eager.advance(column, (places + position, places)))
        slots, seen = torch.tensor([position]), (cache <= position)[None]
        hidden = static.advance(column[:, None], slots, slots, seen, (places[:, None] + position, places[:, None]))
        assert torch.equal(static.logits(hidden[:, 0]), expected), position


@pytest.mark.parametrize("architecture", [name for name in MANY_STEPS if name != "bert"])
def test_bfloat16_codes_of_several_steps_are_those_of_the_eager_way(architecture):
    sequence = SequenceConfig(24, (10, 7), class_names=("a", "b", "c"))
    model = make_model(sequence, architecture=architecture).bfloat16()
    eager, static = both(model, sequence, num_steps=6, order="random", guidance_scale=2.0)
    assert torch.equal(eager, static)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "bert"])
def test_a_step_is_traced_whole_and_once_for_all_positions(architecture, monkeypatch):
    monkeypatch.setattr(prior.linear_maps, "pack_linear", lambda *_: None)
    model, settings = make_model(architecture=architecture), SamplingConfig(guidance_scale=2.0, top_p=0.9)
    weights = read_weights(model, 24, SEQUENCE.length)
    reads = ARCHITECTURES[architecture].reads
    way = way_to_draw(reads, SEQUENCE, 2, None, None, 1.0)
    drawn = torch.rand(2, SEQUENCE.length, dtype=torch.float64)
    prefixes, given = torch.tensor([[24], [25]]), torch.full((2, SEQUENCE.length if reads != "before" else 0), -1)
    part = way.part(SEQUENCE, slice(0, 2), prefixes, given, drawn, False, weights.device)
    counter, found = CompileCounter(), []
    torch._dynamo.reset()
    for traced in (False, True):
        sampling = StaticSampling(weights, SEQUENCE, settings, 2, None, graphs=False)
        if traced:
            sampling._step = torch.compile(sampling._step, backend=counter, fullgraph=True, dynamic=False)
        with torch.no_grad():
            found.append(sampling.draw(part, lambda position: None)[0])
    assert torch.equal(*found)
    assert counter.frame_count == 1


class Replayed(Graphs):
    """Records on any device: what is replayed is the step itself."""

    def _record(self, step):
        recorded.append(step)
        return type("Graph", (), {"replay": staticmethod(step)})


recorded = []


@pytest.mark.parametrize("architecture", [*MANY_STEPS, "llama"])
def test_a_kind_of_step_is_recorded_once_and_replayed(architecture, monkeypatch):
    model = make_model(architecture=architecture)
    expected = sample_codes(model, SEQUENCE, LABELS, seeds=range(7), batch_size=2, guidance_scale=2.0)
    monkeypatch.setattr(static_decoding, "Graphs", Replayed)
    monkeypatch.setattr("codegrid.prior.sampling.check_decoding", lambda *_: None)
    recorded.clear()
    options = {"seeds": range(7), "batch_size": 2, "guidance_scale": 2.0}
    assert torch.equal(sample_codes(model, SEQUENCE, LABELS, decoding="graph", **options), expected)
    assert len(recorded) == 1


def test_what_cannot_be_decoded_so_is_a_sentence():
    model = make_model()
    with pytest.raises(CodegridError, match="records CUDA graphs, and the prior is on cpu"):
        sample_codes(model, SEQUENCE, LABELS, decoding="graph")
    with pytest.raises(CodegridError, match="decoding is 'fast'"):
        sample_codes(model, SEQUENCE, LABELS, decoding="fast")


def test_weights_that_are_not_finite_are_reported():
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(CodegridError, match="not finite"):
        sample_codes(model, SEQUENCE, LABELS, decoding="static")
