"""Grids larger than trained: each position is predicted once, from codes that are known by then."""

import itertools

import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.prior import PriorConfig, SequenceConfig, log_likelihood, make_prior
from codegrid.prior.decoding import Decoder
from codegrid.prior.sampling import sample_codes
from codegrid.prior.sequence import prefix_tokens, to_codes
from codegrid.prior.window_coding import logits_to_read, logits_to_write
from codegrid.prior.window_sampling import sample_windows
from codegrid.prior.windows import window_plan

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
SEQUENCE = SequenceConfig(24, (3, 4), class_names=("a", "b", "c"))
DEEP = SequenceConfig(11, (2, 3), depth=5, order="grids", class_names=("a", "b"))
RESIDUAL = SequenceConfig(11, (2, 3), depth=2)
ARCHITECTURES = ["llama", "grid_llama", "gpt2", "any_order_gpt2", "any_order_llama", "bert"]

pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(architecture="llama", sequence=SEQUENCE):
    return make_prior(PriorConfig(**SIZE, architecture=architecture), sequence).eval()


def draw(model, grid, labels=(0, 1, 2), sequence=SEQUENCE, **options):
    return sample_windows(model, sequence, grid, list(labels), seeds=range(len(labels)), **options)


@pytest.mark.parametrize("seed", range(6))
def test_every_position_is_predicted_once_and_never_from_the_future(seed):
    draws = torch.Generator().manual_seed(seed)

    def number(low, high):
        return int(torch.randint(low, high + 1, (), generator=draws))

    trained = (number(1, 5), number(1, 5))
    grid = (trained[0] + number(0, 14), trained[1] + number(0, 14))
    overlap = (number(0, trained[0] - 1), number(0, trained[1] - 1))
    sequence = SequenceConfig(7, trained, depth=5, order="grids") if seed % 2 else SequenceConfig(7, trained)
    known = None if seed < 2 else torch.rand(grid, generator=draws) < 0.3
    said = f"seed {seed}: windows of {trained} with {overlap} in common, grid {grid}, known {known is not None}"
    for outward in (False, True):
        plan = window_plan(sequence, grid, overlap=overlap, known=known, outward=outward)
        there = torch.zeros(grid, dtype=torch.bool) if known is None else known.clone()
        depth, code_of_token = sequence.depth, sequence.code_of_token
        for one in plan.rounds():
            fresh = torch.zeros(grid, dtype=torch.int64)
            for corner, codes, new in zip(*one, strict=True):
                position = codes // depth
                window = there[corner[0] : corner[0] + trained[0], corner[1] : corner[1] + trained[1]]
                assert torch.equal(there.flatten()[position], ~new), said  # the others are known before the round
                by_code = torch.empty_like(new).index_copy_(0, code_of_token, new).view(*trained, depth)
                assert torch.equal(by_code.all(-1), ~window), said
                assert torch.equal(by_code.any(-1), ~window), said
                fresh.view(-1)[position[new].unique()] += 1
            assert fresh.max() == 1, said  # windows of a round have nothing to predict in common
            there |= fresh > 0
        assert there.all(), said


def test_where_each_position_is_predicted():
    corners = window_plan(SequenceConfig(7, (2, 4)), (4, 7)).corners()
    assert corners[:, :, 0].tolist() == [[0] * 7, [0] * 7, [1] * 7, [2] * 7]
    assert corners[0, :, 1].tolist() == [0, 0, 0, 0, 2, 2, 3]
    places = torch.cartesian_prod(torch.arange(4), torch.arange(7)).view(4, 7, 2) - corners
    assert (places >= 0).all()
    assert (places < torch.tensor([2, 4])).all()


def test_going_outward_begins_beside_what_is_known():
    known = torch.zeros(4, 16, dtype=torch.bool)
    known[:, 8:12] = True
    plan = window_plan(SequenceConfig(7, (4, 4)), (4, 16), known=known, outward=True)
    columns = [one.corners[:, 1].tolist() for one in plan.rounds()]
    assert columns == [[6, 10], [4, 12], [2], [0]]


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        *((name, {}) for name in ARCHITECTURES),
        ("any_order_gpt2", {"order": "random"}),
        ("any_order_gpt2", {"num_steps": 4}),
        ("bert", {"order": "confidence"}),
        ("llama", {"guidance_scale": 2.0, "temperature": 0.7}),
    ],
)
def test_a_grid_of_the_trained_size_is_the_plain_samplers(architecture, options):
    model = make_model(architecture)
    plain = to_codes(sample_codes(model, SEQUENCE, [0, 1, 2], seeds=range(3), **options), SEQUENCE)
    assert torch.equal(draw(model, (3, 4), **options), plain)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [("llama", {}), ("any_order_gpt2", {"order": "halton", "num_steps": 3}), ("bert", {"num_steps": 3})],
)
def test_the_codes_of_a_seed_do_not_depend_on_the_batch(architecture, options):
    model = make_model(architecture)
    alone = [
        sample_windows(model, SEQUENCE, (7, 9), [label], seeds=[label], batch_size=2, **options) for label in range(3)
    ]
    assert torch.equal(torch.cat(alone), draw(model, (7, 9), batch_size=16, **options))
    assert torch.equal(torch.cat(alone), draw(model, (7, 9), batch_size=1, **options))


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "grid_llama", "any_order_gpt2"])
def test_greedy_codes_are_those_of_the_window_as_a_whole(architecture):
    """What a window has drawn is likeliest given what stood in it: a forward pass over the whole window says so."""
    model = make_model(architecture)
    codes = draw(model, (6, 9), temperature=0)
    plan = window_plan(SEQUENCE, (6, 9))
    prefixes = prefix_tokens(torch.arange(3), 3, SEQUENCE)
    steps = 0
    for places, logits in logits_to_write(model, plan, codes, prefixes):
        assert torch.equal(codes.flatten(1)[:, places], logits.argmax(-1))
        steps += len(places)
    assert steps == 54


@pytest.mark.parametrize("sequence", [DEEP, RESIDUAL])
@pytest.mark.parametrize("architecture", ["llama", "any_order_gpt2"])
def test_several_codes_a_position(architecture, sequence):
    model = make_model(architecture, sequence)
    labels = None if sequence is RESIDUAL else [0, 1]
    codes = sample_windows(model, sequence, (5, 6), labels, seeds=[0, 1], temperature=0)
    assert codes.shape == (2, 5, 6, sequence.depth)
    prefixes = prefix_tokens(None if labels is None else torch.tensor(labels), 2, sequence)
    for places, logits in logits_to_write(model, window_plan(sequence, (5, 6)), codes, prefixes):
        assert torch.equal(codes.flatten(1)[:, places], logits.argmax(-1))


@torch.no_grad()
@pytest.mark.parametrize(
    ("architecture", "sequence"),
    [("llama", SEQUENCE), ("gpt2", SEQUENCE), ("any_order_gpt2", SEQUENCE), ("llama", DEEP), ("any_order_gpt2", DEEP)],
)
@pytest.mark.parametrize("known", [False, True])
def test_writer_and_reader_see_the_same_logits_in_the_same_order(architecture, sequence, known):
    model, grid = make_model(architecture, sequence), (5, 8)
    depth = () if sequence.depth == 1 else (sequence.depth,)
    codes = torch.randint(0, sequence.codebook_size, (2, *grid, *depth))
    given = None
    if known:
        given = torch.zeros(grid, dtype=torch.bool)
        given[:3, :5] = True
    plan = window_plan(sequence, grid, known=given)
    prefixes = prefix_tokens(torch.tensor([1, 0]), 2, sequence)
    reading = logits_to_read(model, plan, prefixes, codes if known else None)
    step, seen = next(reading), []
    for places, logits in logits_to_write(model, plan, codes, prefixes):
        assert torch.equal(step.places, places)
        torch.testing.assert_close(step.logits, logits, rtol=1e-3, atol=1e-4)
        seen += places.tolist()
        try:
            step = reading.send(codes.flatten(1)[:, places])
        except StopIteration as end:
            grids = end.value
    assert len(seen) == len(set(seen)) == codes[0].numel() - (15 * sequence.depth if known else 0)
    assert torch.equal(grids, codes)


@torch.no_grad()
def test_logits_of_one_window_sum_to_the_likelihood():
    model = make_model()
    codes = torch.randint(0, 24, (2, 3, 4))
    total = torch.zeros(2, dtype=torch.float64)
    prefixes = prefix_tokens(torch.tensor([2, 0]), 2, SEQUENCE)
    for places, logits in logits_to_write(model, window_plan(SEQUENCE, (3, 4)), codes, prefixes):
        chosen = logits.double().log_softmax(-1).gather(-1, codes.flatten(1)[:, places][..., None])
        total += chosen.sum((1, 2))
    torch.testing.assert_close(total, log_likelihood(model, SEQUENCE, codes, [2, 0]))


@pytest.mark.parametrize(
    ("architecture", "sides"), [("llama", "bottom right"), ("any_order_gpt2", "all"), ("bert", "all")]
)
def test_given_codes_stay_and_the_rest_is_drawn(architecture, sides):
    model = make_model(architecture)
    codes, redraw = torch.zeros(3, 7, 9, dtype=torch.int64), torch.ones(7, 9, dtype=torch.bool)
    inner = (slice(0, 3), slice(0, 4)) if sides == "bottom right" else (slice(2, 5), slice(3, 7))
    redraw[inner] = False
    codes[:, ~redraw] = torch.randint(0, 24, (3, 12))
    drawn = draw(model, (7, 9), known_codes=codes, redraw=redraw)
    assert torch.equal(drawn[:, ~redraw], codes[:, ~redraw])
    assert drawn[:, redraw].unique().numel() > 5
    other = codes.clone()
    other[:, redraw] = 23  # what is drawn again has no influence
    assert torch.equal(draw(model, (7, 9), known_codes=other, redraw=redraw), drawn)
    masks = redraw.repeat(3, 1, 1)
    masks[1, 0, 0] = False
    mixed = draw(model, (7, 9), known_codes=codes, redraw=masks)
    assert torch.equal(mixed[[0, 2]], drawn[[0, 2]])
    assert mixed[1, 0, 0] == codes[1, 0, 0]


def test_raster_order_does_not_go_on_upwards_or_to_the_left():
    model, codes = make_model(), torch.zeros(3, 6, 8, dtype=torch.int64)
    for known in ((slice(3, 6), slice(0, 4)), (slice(0, 3), slice(4, 8))):
        redraw = torch.ones(6, 8, dtype=torch.bool)
        redraw[known] = False
        with pytest.raises(CodegridError, match="at the bottom and at the right"):
            draw(model, (6, 8), known_codes=codes, redraw=redraw)


def test_memory_does_not_grow_with_the_rows(monkeypatch):
    """The decoder's cache has rows for one batch of windows, and nothing else grows but the codes themselves."""
    rows = []
    plain = Decoder.__init__

    def counted(self, weights, number):
        rows.append(number)
        plain(self, weights, number)

    monkeypatch.setattr(Decoder, "__init__", counted)
    model, most = make_model(), []
    for height in (12, 48):
        rows.clear()
        draw(model, (height, 8), [0], batch_size=4)
        most.append(max(rows))
    assert most[0] == most[1]
    first_rounds = itertools.islice(window_plan(SEQUENCE, (512, 512)).rounds(), 300)
    assert max(len(one.codes) for one in first_rounds) == 16


def test_what_cannot_be_is_refused_by_name():
    model = make_model()
    with pytest.raises(CodegridError, match="2 x 9 codes is asked for, and the prior was trained on 3 x 4"):
        draw(model, (2, 9))
    with pytest.raises(CodegridError, match=r"(?s)overlap is 3.*fewer rows and columns"):
        draw(model, (6, 8), overlap=3)
    with pytest.raises(CodegridError, match="overlap is 'half'"):
        draw(model, (6, 8), overlap="half")
    with pytest.raises(CodegridError, match="at most 1,048,576 codes"):
        draw(model, (2**12, 2**12))
    with pytest.raises(CodegridError, match="take an order by its name"):
        draw(make_model("any_order_gpt2"), (6, 8), order=torch.arange(12))
    with pytest.raises(CodegridError, match="one is missing"):
        draw(model, (6, 8), redraw=torch.ones(6, 8, dtype=torch.bool))
    masked, plan = make_model("bert"), window_plan(SEQUENCE, (6, 8))
    with pytest.raises(CodegridError, match="masked prior gives no likelihood"):
        logits_to_write(masked, plan, torch.zeros(1, 6, 8, dtype=torch.int64), torch.zeros(1, 1))
    with pytest.raises(CodegridError, match="codes are"):
        logits_to_write(
            model, window_plan(SEQUENCE, (6, 8)), torch.zeros(1, 6, 7, dtype=torch.int64), torch.zeros(1, 1)
        )
