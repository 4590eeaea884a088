"""A prior that starts from another one's weights."""

import functools

import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.prior import PriorConfig, SequenceConfig, make_prior, to_tokens
from codegrid.prior.architectures import architecture_of
from codegrid.prior.conditioning import ClassCondition
from codegrid.prior.conditions import CombinedCondition, PictureCondition, TextCondition
from codegrid.prior.likelihood import code_logits
from codegrid.prior.transfer import transferred

CODES = torch.arange(12).view(3, 4) % 7


def logits(model, sequence: SequenceConfig, labels: list[int] | None, drop: bool = False) -> torch.Tensor:
    """[3, 4, 7], of the codes alone."""
    values = None if labels is None else torch.tensor(labels)
    dropped = torch.full((3,), True) if drop else None
    tokens = to_tokens(CODES, values, dropped, sequence)
    with torch.no_grad():
        return model.eval()(tokens[:, :-1]).logits[..., : sequence.codebook_size]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "grid_llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_classes_are_matched_by_name_and_new_ones_start_as_none(architecture, tied):
    old = SequenceConfig(7, (2, 2), class_names=("cat", "dog", "owl"))
    new = SequenceConfig(7, (2, 2), class_names=("owl", "fox", "cat", "elk"))
    config = PriorConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        architecture=architecture,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    model = make_prior(config, old)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    started = transferred(model, old, new)
    assert type(started) is type(model)
    assert started.config.vocab_size == new.vocab_size
    # A product with another number of rows may be summed in another order: the last bits are some processors' own.
    same = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    same(logits(started, new, [0, 2, 0]), logits(model, old, [2, 0, 2]))  # owl, cat, owl
    same(logits(started, new, [1, 3, 1]), logits(model, old, [0, 0, 0], drop=True))  # fox, elk: no class
    rows = started.get_input_embeddings().weight[[*range(7), 7, 9, 11]]  # the codes, owl, cat, null
    assert torch.equal(rows, model.get_input_embeddings().weight[[*range(7), 9, 7, 10]])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_from_no_classes_to_some_and_back():
    none, some = SequenceConfig(7, (2, 2)), SequenceConfig(7, (2, 2), class_names=("a", "b"))
    model = make_prior(PriorConfig(16, 1, 2, initializer_range=0.3), none)
    started = transferred(model, none, some)
    assert torch.equal(logits(started, some, [0, 1, 0]), logits(model, none, None))
    assert torch.equal(logits(transferred(started, some, none), none, None), logits(model, none, None))


@pytest.mark.parametrize(
    ("sequence", "name"),
    [
        (SequenceConfig(8, (2, 2)), "codebook_size of the codes is 8, of the prior to start from 7"),
        (SequenceConfig(7, (1, 4)), r"grid_shape of the codes is \(1, 4\)"),
        (SequenceConfig(7, (1, 2), depth=2), "grid_shape"),
    ],
)
def test_other_codes_are_refused(sequence, name):
    old = SequenceConfig(7, (2, 2))
    with pytest.raises(CodegridError, match=name):
        transferred(make_prior(PriorConfig(16, 1, 2), old), old, sequence)


PICTURE = PictureCondition(5, (1, 2), made_by="downscale:4")


@torch.no_grad()
def test_a_prior_of_pictures_made_in_another_way_starts_from_one():
    old = SequenceConfig(7, (2, 2), condition=CombinedCondition((ClassCondition(("cat", "dog")), PICTURE)))
    grey = PictureCondition(5, (1, 2), made_by="grey")
    new = SequenceConfig(7, (2, 2), condition=CombinedCondition((ClassCondition(("owl", "dog", "elk")), grey)))
    model = make_prior(PriorConfig(16, 2, 2, initializer_range=0.3), old)
    started = transferred(model, old, new)

    def of(model, sequence, label, drop=(False, False)):
        values = torch.tensor([[label, 1, 4], [label, 0, 2], [label, 3, 3]])
        tokens = to_tokens(CODES, values, torch.tensor([drop] * 3), sequence)
        return model.eval()(tokens[:, :-1]).logits[..., :7]

    torch.testing.assert_close(of(started, new, 1), of(model, old, 1), rtol=1e-5, atol=1e-5)  # the dog
    torch.testing.assert_close(of(started, new, 2), of(model, old, 0, (True, False)), rtol=1e-5, atol=1e-5)
    alone = SequenceConfig(7, (2, 2), condition=grey)
    assert len(transferred(model, old, alone).get_input_embeddings().weight) == 7 + 5 + 1


@torch.no_grad()
def test_a_text_that_is_new_starts_as_none():
    old, text = SequenceConfig(7, (2, 2), class_names=("cat", "dog")), TextCondition(1, num_ids=5)
    longer = SequenceConfig(7, (2, 2), condition=TextCondition(9))
    new = SequenceConfig(7, (2, 2), condition=text)
    model = make_prior(PriorConfig(16, 2, 2, initializer_range=0.3), old)
    started = transferred(model, old, new)
    tokens = to_tokens(CODES, torch.tensor([[0], [3], [5]]), None, new)
    found = started.eval()(tokens[:, :-1]).logits[..., :7]
    torch.testing.assert_close(found, logits(model, old, [0, 0, 0], drop=True), rtol=1e-5, atol=1e-5)
    assert transferred(model, old, longer).config.max_position_embeddings >= 9 + 3
    for other in ("gpt2", "grid_llama", "bert"):
        fixed = make_prior(PriorConfig(16, 1, 2, architecture=other), old)
        with pytest.raises(CodegridError, match=r"9 tokens before them, and a .* of 1 has learned where"):
            transferred(fixed, old, longer)
    back = transferred(started, new, SequenceConfig(7, (2, 2)))
    torch.testing.assert_close(
        logits(back, SequenceConfig(7, (2, 2)), None), logits(model, old, [0] * 3, drop=True), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("condition", [PictureCondition(6, (1, 2)), PictureCondition(5, (2, 1))])
def test_a_condition_of_other_tokens_is_refused(condition):
    old = SequenceConfig(7, (2, 2), condition=PICTURE)
    model = make_prior(PriorConfig(16, 1, 2), old)
    with pytest.raises(CodegridError, match=r"These codes follow .*, the prior to start from a picture of 2 tokens"):
        transferred(model, old, SequenceConfig(7, (2, 2), condition=condition))


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_raster_prior_becomes_one_of_any_order_with_the_same_logits(architecture, tied):
    old, new = SequenceConfig(7, (2, 2), class_names=("cat", "dog")), SequenceConfig(7, (2, 2), class_names=("dog",))
    config = PriorConfig(
        16, 2, 2, architecture=architecture, tie_word_embeddings=tied, initializer_range=0.3, rope_theta=500.0
    )
    model = make_prior(config, old)
    started = transferred(model, old, new, any_order=True)
    assert architecture_of(started).name == f"any_order_{architecture}"
    expected = logits(model, old, [1, 1, 1])
    torch.testing.assert_close(logits(started, new, [0, 0, 0]), expected, rtol=1e-5, atol=1e-5)
    tokens = to_tokens(CODES, torch.zeros(3, dtype=torch.int64), None, new)
    walked = code_logits(started, tokens, new, torch.arange(4))
    torch.testing.assert_close(walked, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(code_logits(started, tokens, new, torch.tensor([3, 1, 0, 2])), expected)


@pytest.mark.parametrize("architecture", ["qwen3", "grid_llama", "bert", "any_order_gpt2"])
def test_other_architectures_become_none_of_any_order(architecture):
    sequence = SequenceConfig(7, (2, 2))
    model = make_prior(PriorConfig(16, 1, 2, architecture=architecture), sequence)
    with pytest.raises(CodegridError, match=f"cannot start from a {type(model).__name__}"):
        transferred(model, sequence, sequence, any_order=True)
