"""log p of codes: a distribution over all sequences, the loss of training, and what sampling draws from."""

import itertools
import math

import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.prior import PriorConfig, SequenceConfig, log_likelihood, make_prior, prior_loss

PRIORS = {
    "no classes": {},
    "classes": {"class_names": ("a", "b")},
    "depth": {"grid_shape": (1, 2), "depth": 2},
    "grids": {"grid_shape": (1, 1), "depth": 5, "order": "grids", "codebook_size": 2},
}


def make(**changes):
    torch.manual_seed(0)
    sequence = SequenceConfig(**{"codebook_size": 3, "grid_shape": (2, 2), **changes})
    return make_prior(PriorConfig(32, 2, 4, initializer_range=0.3), sequence), sequence


@pytest.mark.parametrize("changes", PRIORS.values(), ids=PRIORS)
def test_the_probabilities_of_all_codes_sum_to_one(changes):
    model, sequence = make(**changes)
    every = torch.tensor(list(itertools.product(range(sequence.codebook_size), repeat=sequence.length)))
    for label in (None, *range(sequence.num_classes)):
        labels = None if label is None else [label] * len(every)
        found = log_likelihood(model, sequence, every, labels)
        assert found.dtype == torch.float64
        assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)
        assert found.std() > 0.1


def test_it_is_the_loss_of_training_in_any_batch_and_mode():
    model, sequence = make(class_names=("a", "b"))
    codes, labels = torch.randint(0, 3, (7, 2, 2)), torch.tensor([0, 1, 1, 0, 1, 0, 0])
    whole = log_likelihood(model.train(), sequence, codes, labels)
    assert model.training
    model.eval()
    loss = prior_loss(model, codes, labels, None, sequence)
    assert -whole.mean().item() / sequence.length == pytest.approx(loss.item(), rel=1e-5)
    seen: list[int] = []
    parts = log_likelihood(model, sequence, codes, labels.tolist(), batch_size=3, on_progress=seen.append)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    assert seen == [3, 6, 7]
    null = log_likelihood(model, sequence, codes)
    dropped = prior_loss(model, codes, labels, torch.ones(7, dtype=torch.bool), sequence)
    assert -null.mean().item() / sequence.length == pytest.approx(dropped.item(), rel=1e-5)


def test_it_is_the_stock_models_log_probability():
    model, sequence = make(class_names=("a", "b"))
    codes = torch.tensor([[0, 2, 1, 1]])
    logits = model(torch.tensor([[sequence.class_token(1), 0, 2, 1]])).logits[0, :, :3]
    by_hand = logits.log_softmax(-1).gather(1, codes.T).sum().item()
    assert log_likelihood(model, sequence, codes, [1]).item() == pytest.approx(by_hand, abs=1e-5)


def test_what_cannot_be_asked_is_refused():
    model, sequence = make(class_names=("a", "b"), null_class=False)
    codes = torch.zeros(2, 4, dtype=torch.int64)
    for given, labels, words in ((codes, None, "null class"), (codes, [0, 2], "2"), (codes + 3, [0, 1], "3")):
        with pytest.raises(CodegridError, match=words):
            log_likelihood(model, sequence, given, labels)
    with pytest.raises(CodegridError, match="batch_size"):
        log_likelihood(model, sequence, codes, [0, 1], batch_size=0)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(math.nan)
    with pytest.raises(CodegridError, match="not finite"):
        log_likelihood(model, sequence, codes, [0, 1])
