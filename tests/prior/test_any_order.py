"""A prior of codes in any order: its forward pass, its loss, and drawing beside whole forward passes."""

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM

from codegrid.errors import CodegridError
from codegrid.prior import (
    PriorConfig,
    SequenceConfig,
    load_prior,
    log_likelihood,
    make_prior,
    prior_loss,
    sampling,
    save_prior,
)
from codegrid.prior.decoding import Decoder, read_weights
from codegrid.prior.likelihood import code_logits
from codegrid.prior.orders import codes_per_step, place_pairs, random_orders, raster_order
from codegrid.prior.sampling import sample_codes
from codegrid.prior.sequence import to_tokens

SEQUENCE = SequenceConfig(24, (3, 4), class_names=("a", "b", "c"))
ANY_ORDER = ["any_order_gpt2", "any_order_llama"]
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=ANY_ORDER)
def make_model(request):
    def make(sequence=SEQUENCE, **changes):
        return make_prior(PriorConfig(**{**SIZE, **changes}, architecture=request.param), sequence).eval()

    return make


def one_by_one(model, labels, orders, given, scale=1.0):
    """Greedy codes, from whole forward passes without a cache; `given` by token [B, L], -1 where a code is drawn."""
    codes, known_first = given.clone(), []
    for row, order in zip(given, orders, strict=True):
        order = order.tolist()
        known_first.append([t for t in order if row[t] >= 0] + [t for t in order if row[t] < 0])
    order = torch.tensor(known_first)
    own, target = place_pairs(order, 1)
    for step in range(SEQUENCE.length):
        fed = codes.gather(1, order)[:, :step].clamp(min=0)
        logits = [
            model(torch.cat([first[:, None], fed], 1), own=own[:, : step + 1], target=target[:, : step + 1]).logits
            for first in (labels + 24, torch.full_like(labels, SEQUENCE.null_token))
        ]
        with_class, without = (each[:, -1, :24] for each in logits)
        drawn = (without + scale * (with_class - without)).argmax(-1)
        place = order[:, step : step + 1]
        was = codes.gather(1, place)
        codes.scatter_(1, place, torch.where(was >= 0, was, drawn[:, None]))
    return codes


@torch.no_grad()
def test_without_places_it_is_a_prior_of_raster_order(make_model, tmp_path):
    model = make_model()
    labels = torch.arange(5) % 3
    expected = model.generate((labels + 24)[:, None], do_sample=False)[:, 1:]
    assert torch.equal(sample_codes(model, SEQUENCE, labels, temperature=0), expected)
    save_prior(model, SEQUENCE, tmp_path)
    tokens = to_tokens(expected, labels, None, SEQUENCE)[:, :-1]
    for other in (load_prior(tmp_path)[0], AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert torch.equal(other(tokens).logits, model(tokens).logits)
    own, target = place_pairs(raster_order(SEQUENCE).expand(5, -1), 1)
    torch.testing.assert_close(model(tokens, own=own, target=target).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("known", ["none", "some", "uneven"])
def test_greedy_codes_in_any_order_are_those_of_whole_passes(make_model, scale, known):
    model, labels, orders = make_model(), torch.tensor([0, 1, 2, 0, 1]), random_orders(5, SEQUENCE)
    given = torch.randint(0, 24, (5, 12))
    redraw = torch.ones(5, 3, 4, dtype=torch.bool)
    if known != "none":
        redraw[:, 0], redraw[:, 1, 2] = False, False
    if known == "uneven":
        redraw[1, 2], redraw[3] = False, False
    expected = one_by_one(model, labels, orders, given.masked_fill(redraw.flatten(1), -1), scale)
    for size in (1, 3, 5):
        actual = sample_codes(
            model,
            SEQUENCE,
            labels,
            temperature=0,
            guidance_scale=scale,
            order=orders,
            known_codes=given,
            redraw=redraw,
            batch_size=size,
        )
        assert torch.equal(actual, expected)
    assert torch.equal(actual[~redraw.flatten(1)], given[~redraw.flatten(1)])


@torch.no_grad()
@pytest.mark.parametrize("order", ["raster", "random", "halton"])
@pytest.mark.parametrize("num_steps", [None, 1, 3, 12])
def test_an_image_depends_on_its_seed_and_not_on_the_batch(make_model, order, num_steps):
    model, labels = make_model(), torch.arange(7) % 3
    given, redraw = torch.randint(0, 24, (7, 3, 4)), torch.rand(7, 3, 4) < 0.6
    options = {"order": order, "num_steps": num_steps, "guidance_scale": 2.0}
    for extra in ({}, {"known_codes": given, "redraw": redraw}):
        whole = sample_codes(model, SEQUENCE, labels, seeds=range(7), **extra, **options)
        for size in (1, 2, 5):
            assert torch.equal(
                sample_codes(model, SEQUENCE, labels, seeds=range(7), batch_size=size, **extra, **options), whole
            )
        alone = {name: value[4:5] for name, value in extra.items()}
        assert torch.equal(sample_codes(model, SEQUENCE, labels[4:5], seeds=[4], **alone, **options), whole[4:5])


@torch.no_grad()
def test_as_many_steps_as_codes_are_a_code_a_step(make_model):
    model, labels = make_model(), torch.arange(6) % 3
    for order in ("raster", "halton"):
        one = sample_codes(model, SEQUENCE, labels, seeds=range(6), order=order, guidance_scale=2.0)
        same = sample_codes(model, SEQUENCE, labels, seeds=range(6), order=order, guidance_scale=2.0, num_steps=12)
        assert torch.equal(one, same)


@torch.no_grad()
def test_questions_see_the_known_codes_and_not_each_other(make_model):
    """Logits of several codes a step beside a whole pass for each of them."""
    model, order = make_model(), random_orders(3, SEQUENCE)
    tokens = torch.randint(0, 24, (3, 12))
    own, target = place_pairs(order, 1)
    decoder = Decoder(read_weights(model, 24, 12), 3)
    fed = torch.cat([torch.full((3, 1), 24), tokens.gather(1, order)], 1)
    for start, known, asked in [(0, 4, 3), (4, 3, 4)]:
        new = slice(start, known + start)
        owns = torch.cat([own[:, new], own[:, known + start - 1 : known + start].expand(-1, asked - 1)], 1)
        hidden = decoder.advance_many(fed[:, new], (owns, target[:, start : start + known + asked - 1]), asked)
        logits = decoder.logits(hidden.flatten(0, 1)).view(3, asked, -1)
        for question in range(asked):
            end = known + start
            asks = target[:, :end].clone()
            asks[:, -1] = target[:, end - 1 + question]
            expected = model(fed[:, :end], own=own[:, :end], target=asks).logits[:, -1, :24]
            torch.testing.assert_close(logits[:, question], expected, rtol=1e-4, atol=1e-4)


def test_the_loss_in_an_order_is_that_of_permuted_whole_passes(make_model):
    model, codes, labels = make_model(), torch.randint(0, 24, (4, 12)), torch.tensor([0, 1, 2, 0])
    orders = random_orders(4, SEQUENCE)
    loss = prior_loss(model, codes, labels, None, SEQUENCE, order=orders)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    nats = [
        -log_likelihood(model, SEQUENCE, codes[i : i + 1], labels[i : i + 1], orders=orders[i]) / 12 for i in range(4)
    ]
    assert loss.item() == pytest.approx(torch.cat(nats).mean().item(), rel=1e-5)
    raster = prior_loss(model, codes, labels, None, SEQUENCE)
    named = prior_loss(model, codes, labels, None, SEQUENCE, order=raster_order(SEQUENCE).expand(4, -1))
    torch.testing.assert_close(raster, named)


@torch.no_grad()
def test_the_probabilities_of_all_codes_sum_to_one_in_any_order(make_model):
    tiny = SequenceConfig(2, (2, 2))
    model, every = make_model(tiny), torch.tensor(list(itertools.product(range(2), repeat=4)))
    orders = random_orders(3, tiny)
    each = [log_likelihood(model, tiny, every, orders=order) for order in orders]
    for nats in each:
        assert nats.exp().sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(log_likelihood(model, tiny, every, orders=orders), torch.stack(each).mean(0))


@torch.no_grad()
def test_drawn_codes_have_the_frequencies_of_the_likelihood(make_model):
    tiny = SequenceConfig(2, (2, 2))
    model, order = make_model(tiny, initializer_range=0.1), torch.tensor([2, 0, 3, 1])
    drawn = sample_codes(model, tiny, seeds=range(4000), order=order, batch_size=4000)
    every = torch.tensor(list(itertools.product(range(2), repeat=4)))
    expected = log_likelihood(model, tiny, every, orders=order).exp()
    found = (drawn[:, None] == every).all(-1).double().mean(0)
    assert (found - expected).abs().max() < 0.03


@torch.no_grad()
@pytest.mark.parametrize("order", ["positions", "grids"])
def test_several_codes_a_position_follow_each_other(make_model, order):
    """Of residual, grouped and hierarchical codes a position is known or drawn as a whole."""
    sequence = SequenceConfig(16, (2, 3), depth=5, order=order)
    orders = random_orders(20, sequence)
    cells, levels = sequence.code_of_token[orders] // 5, sequence.code_of_token[orders] % 5
    assert torch.equal(levels, torch.arange(5).repeat(20, 6))
    assert (cells.unflatten(1, (6, 5)) == cells.unflatten(1, (6, 5))[..., :1]).all()
    model = make_model(sequence)
    codes, redraw = torch.randint(0, 16, (4, 2, 3, 5)), torch.rand(4, 2, 3) < 0.5
    tokens = sample_codes(
        model, sequence, seeds=range(4), order="random", known_codes=codes, redraw=redraw, batch_size=3
    )
    from codegrid.prior import to_codes

    assert torch.equal(to_codes(tokens, sequence)[~redraw], codes[~redraw])
    assert (to_codes(tokens, sequence)[redraw] != codes[redraw]).any()
    with pytest.raises(CodegridError, match="5 codes at each position"):
        sample_codes(model, sequence, seeds=range(4), num_steps=2)
    assert code_logits(model, to_tokens(codes, None, None, sequence), sequence, orders[0]).shape == (4, 30, 16)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"order": "spiral"}, "spiral"),
        ({"order": torch.arange(11)}, r"\[11\]"),
        ({"order": torch.zeros(12, dtype=torch.int64)}, "every token once"),
        ({"num_steps": 0}, "num_steps is 0"),
        ({"order": "confidence"}, "confidence"),
        ({"known_codes": torch.zeros(2, 3, 4, dtype=torch.int64)}, "missing"),
        ({"known_codes": torch.full((2, 3, 4), 24), "redraw": torch.ones(3, 4, dtype=torch.bool)}, "codebook"),
        ({"known_codes": torch.zeros(2, 12, dtype=torch.int64), "redraw": torch.ones(3, 4)}, "redraw is"),
    ],
)
def test_what_cannot_be_drawn_is_a_sentence(make_model, options, said):
    with pytest.raises(CodegridError, match=said):
        sample_codes(make_model(), SEQUENCE, [0, 1], **options)


def test_a_raster_prior_refuses_other_orders():
    model = make_prior(PriorConfig(**SIZE), SEQUENCE).eval()
    for options in (
        {"order": "random"},
        {"num_steps": 4},
        {"known_codes": torch.zeros(1, 12, dtype=torch.int64), "redraw": torch.ones(3, 4, dtype=torch.bool)},
    ):
        with pytest.raises(CodegridError, match="raster order") as refused:
            sample_codes(model, SEQUENCE, [0], **options)
        assert "annealed" in str(refused.value)
    with pytest.raises(CodegridError, match="raster order only"):
        log_likelihood(model, SEQUENCE, torch.zeros(1, 12, dtype=torch.int64), [0], orders=torch.arange(12))


@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("architecture", [*ANY_ORDER, "bert"])
def test_the_sampler_draws_as_many_codes_a_step_as_the_schedule_says(architecture, steps):
    model = make_prior(PriorConfig(**SIZE, architecture=architecture), SEQUENCE).eval()
    drawn, forward = [], type(model.base_model).forward
    if architecture == "bert":  # on a CPU its steps are not reported: what its forward pass sees as known
        seen = []

        def counted(self, input_ids=None, **others):
            seen.append(int((input_ids[:, 1:] != SEQUENCE.null_token).sum()))
            return forward(self, input_ids=input_ids, **others)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model.base_model), "forward", counted)
            sample_codes(model, SEQUENCE, [1], seeds=[0], num_steps=steps)
        drawn = [after - before for before, after in itertools.pairwise([*seen, SEQUENCE.length])]
    else:
        sample_codes(
            model, SEQUENCE, [1], seeds=[0], num_steps=steps, on_progress=lambda done, total: drawn.append(done)
        )
        drawn = [after - before for before, after in itertools.pairwise([0, *drawn])]
    assert drawn == codes_per_step(SEQUENCE.length, steps)


@torch.no_grad()
@pytest.mark.parametrize(
    ("architecture", "order"),
    [
        *((name, None) for name in ("llama", "grid_llama", "gpt2")),
        *((name, "raster") for name in ANY_ORDER),
        *((name, "random") for name in ANY_ORDER),
    ],
)
def test_the_likelihood_is_the_sum_of_the_samplers_log_probabilities(architecture, order, monkeypatch):
    """What the sampler draws from, with its cache, beside one parallel pass: to 1e-4 nats a code."""
    model = make_prior(PriorConfig(**SIZE, architecture=architecture), SEQUENCE).eval()
    orders = {None: None, "raster": raster_order(SEQUENCE), "random": random_orders(1, SEQUENCE)[0]}[order]
    labels, logs = torch.tensor([0, 2, 1]), []
    plain = sampling.inverse_cdf

    def noted(logits, uniforms):
        chosen = plain(logits, uniforms)
        logs.append(logits.log_softmax(-1).gather(1, chosen[:, None])[:, 0])
        return chosen

    monkeypatch.setattr(sampling, "inverse_cdf", noted)
    codes = sample_codes(model, SEQUENCE, labels, seeds=[0, 1, 2], order=orders)
    likelihood = log_likelihood(model, SEQUENCE, codes, labels, orders=orders)
    assert len(logs) == SEQUENCE.length
    assert (torch.stack(logs).sum(0) - likelihood).abs().max() <= 1e-4 * SEQUENCE.length
