"""A masked prior: its loss, its steps beside a direct loop, and its folder."""

import math

import pytest
import torch
from transformers import AutoModelForMaskedLM, BertForMaskedLM

from codegrid.errors import CodegridError
from codegrid.prior import PriorConfig, SequenceConfig, load_prior, log_likelihood, make_prior, prior_loss, save_prior
from codegrid.prior.decoding import read_weights
from codegrid.prior.orders import codes_per_step
from codegrid.prior.sampling import sample_codes

SEQUENCE = SequenceConfig(24, (3, 4), class_names=("a", "b", "c"))
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}


pytestmark = pytest.mark.usefixtures("one_thread")


def make_model(sequence=SEQUENCE, **changes):
    return make_prior(PriorConfig(**{**SIZE, **changes}, architecture="bert"), sequence).eval()


@torch.no_grad()
def test_its_folder_is_that_of_a_stock_bert(tmp_path):
    model = make_model()
    save_prior(model, SEQUENCE, tmp_path)
    loaded, sequence = load_prior(tmp_path)
    assert sequence == SEQUENCE
    tokens = torch.randint(0, 28, (2, 13))
    for other in (loaded, AutoModelForMaskedLM.from_pretrained(tmp_path)):
        assert type(other) is BertForMaskedLM
        assert torch.equal(other.eval()(tokens).logits, model(tokens).logits)


def test_the_loss_is_that_of_the_unknown_codes():
    model, codes, labels = make_model(), torch.randint(0, 24, (4, 12)), torch.tensor([0, 1, 2, 0])
    known = torch.rand(4, 12) < 0.5
    known[0], known[1, 1:] = False, True
    known[1, 0] = False
    loss = prior_loss(model, codes, labels, None, SEQUENCE, known=known)
    loss.backward()
    expected = []
    for row in range(4):
        shown = [24 + int(labels[row])] + [int(c) if k else 27 for c, k in zip(codes[row], known[row], strict=True)]
        scores = model(torch.tensor([shown])).logits[0, 1:, :24].log_softmax(-1)
        wanted = [-scores[i, codes[row, i]] for i in range(12) if not known[row, i]]
        expected.append(sum(wanted) / len(wanted))
    assert loss.item() == pytest.approx(float(sum(expected).detach() / 4), rel=1e-5)
    hidden = codes.clone()
    hidden[~known] = (hidden[~known] + 1) % 24  # what is unknown is not seen
    other = prior_loss(model, hidden, labels, None, SEQUENCE, known=torch.ones_like(known))
    assert math.isfinite(other.item())


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_greedy_steps_are_those_of_a_direct_loop(scale):
    model, order = make_model(), torch.randperm(12)
    codes = torch.full((12,), 27)
    done = 0
    for size in codes_per_step(12, 4):
        with_class, without = (
            model(torch.cat([torch.tensor([first]), codes])[None]).logits[0, 1:, :24] for first in (25, 27)
        )
        for place in order[done : done + size]:
            codes[place] = (without + scale * (with_class - without))[place].argmax()
        done += size
    drawn = sample_codes(model, SEQUENCE, [1], temperature=0, order=order, num_steps=4, guidance_scale=scale)
    assert torch.equal(drawn[0], codes)


@torch.no_grad()
@pytest.mark.parametrize("order", ["raster", "random", "halton", "confidence", None])
def test_an_image_depends_on_its_seed_and_known_codes_stay(order):
    model, labels = make_model(), torch.arange(7) % 3
    given, redraw = torch.randint(0, 24, (7, 3, 4)), torch.rand(7, 3, 4) < 0.6
    options = {"order": order, "num_steps": 3, "guidance_scale": 2.0}
    for extra in ({}, {"known_codes": given, "redraw": redraw}):
        whole = sample_codes(model, SEQUENCE, labels, seeds=range(7), **extra, **options)
        for size in (1, 2, 5):
            assert torch.equal(
                sample_codes(model, SEQUENCE, labels, seeds=range(7), batch_size=size, **extra, **options), whole
            )
        if extra:
            assert torch.equal(whole.view(7, 3, 4)[~redraw], given[~redraw])
    assert whole.min() >= 0


@torch.no_grad()
def test_confidence_draws_the_surest_first_without_noise():
    model = make_model()
    (drawn,) = sample_codes(
        model, SEQUENCE, [0], seeds=[1], temperature=0, order="confidence", num_steps=12, choice_temperature=0
    )
    codes = torch.full((12,), 27)
    for _ in range(12):
        scores = model(torch.cat([torch.tensor([24]), codes])[None]).logits[0, 1:, :24].log_softmax(-1)
        best, code = scores.max(-1)
        place = best.masked_fill(codes < 24, -math.inf).argmax()
        codes[place] = code[place]
    assert torch.equal(drawn, codes)


def test_what_it_cannot_is_a_sentence():
    model, codes = make_model(), torch.zeros(1, 12, dtype=torch.int64)
    with pytest.raises(CodegridError, match="no likelihood in one pass"):
        log_likelihood(model, SEQUENCE, codes, [0])
    with pytest.raises(CodegridError, match="no decoding of one code"):
        read_weights(model, 24, 12)
    with pytest.raises(CodegridError, match="3 codes at each"):
        make_model(SequenceConfig(24, (3, 4), depth=3))
