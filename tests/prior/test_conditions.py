"""Pictures, texts and combinations as conditions: their tokens, their nulls, guidance of each part, saving."""

from __future__ import annotations

import itertools
import json
import logging
import random

import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.prior import (
    PriorConfig,
    SequenceConfig,
    load_prior,
    log_likelihood,
    make_prior,
    prior_loss,
    sample_codes,
    save_prior,
    to_tokens,
)
from codegrid.prior.conditioning import ClassCondition
from codegrid.prior.conditions import CombinedCondition, PictureCondition, TextCondition, combined, parts_of
from codegrid.prior.distribution import SamplingConfig
from codegrid.prior.guidance import branch_weights, guidance_of
from codegrid.prior.steps import in_evaluation

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
CLASSES, PICTURE, TEXT = ClassCondition(("a", "b")), PictureCondition(5, (2, 2), made_by="grey"), TextCondition(6)
BOTH = CombinedCondition((CLASSES, PICTURE))
CODES = torch.randint(0, 16, (3, 9), generator=torch.Generator().manual_seed(0))
VALUES = torch.tensor([[0, 1, 2, 3, 4], [1, 0, 0, 4, 4], [1, 3, 3, 0, 1]])  # class, then the four codes


def sequence_of(condition, **changes) -> SequenceConfig:
    return SequenceConfig(**{"codebook_size": 16, "grid_shape": (3, 3), "condition": condition, **changes})


def make(condition=BOTH, architecture="llama", **changes):
    torch.manual_seed(0)
    return make_prior(PriorConfig(**{**SIZE, **changes}, architecture=architecture), sequence_of(condition)).eval()


def test_a_combination_is_its_parts_side_by_side():
    sequence = sequence_of(BOTH)
    assert (sequence.prefix_length, sequence.vocab_size, sequence.null_token) == (5, 16 + 2 + 5 + 1, 23)
    assert (sequence.class_names, sequence.num_classes) == (None, 0)
    tokens = to_tokens(CODES, VALUES, None, sequence)
    assert tokens[:, :5].tolist() == [[16, 19, 20, 21, 22], [17, 18, 18, 22, 22], [17, 21, 21, 18, 19]]
    drop = torch.tensor([[False, True], [True, False], [True, True]])
    lost = to_tokens(CODES, VALUES, drop, sequence)[:, :5]
    assert lost.tolist() == [[16, 23, 23, 23, 23], [23, 18, 18, 22, 22], [23] * 5]
    assert torch.equal(to_tokens(CODES, VALUES, drop.all(1), sequence)[2, :5], sequence.null_prefix)
    assert BOTH.describe() == "2 classes and a picture of 4 tokens (grey), 5 tokens in all"
    assert BOTH.parse([("b", [[0, 0], [4, 4]])]) == [[1, 0, 0, 4, 4]]
    assert BOTH.name([1, 0, 0, 4, 4]) == "b"
    assert combined(CLASSES, None) is CLASSES
    assert combined(None) is None
    assert combined(CLASSES, PICTURE) == BOTH


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (VALUES + 1, "There is no class 2"),
        (VALUES.clone().index_fill_(1, torch.tensor([4]), 5), "codes of the condition hold 5. Give values from 0 to 4"),
        (VALUES[:, :3], r"Give integers of shape \[3, 5\]"),
    ],
)
def test_values_of_a_part_that_do_not_fit_are_refused_by_name(values, message):
    with pytest.raises(CodegridError, match=message):
        to_tokens(CODES, values, None, sequence_of(BOTH))


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda: PictureCondition(0, (2, 2)), "codebook_size of the condition is 0"),
        (lambda: PictureCondition(5, (2, True)), r"grid_shape\[1\] of the condition is True"),
        (lambda: PictureCondition(5, 4), "grid_shape of the condition is 4"),
        (lambda: TextCondition(0), "length of the text is 0"),
        (lambda: TextCondition(4, ""), "The text's tokenizer is ''"),
        (lambda: CombinedCondition((CLASSES,)), "Give 2 to 3 conditions"),
        (lambda: CombinedCondition((CLASSES, CLASSES)), "Give conditions of different types"),
        (lambda: CombinedCondition((CLASSES, BOTH)), "Give conditions of different types"),
        (lambda: PICTURE.parse([[1, 2, 3]]), r"a condition is torch.int64 \[3\], and this prior follows the 4 codes"),
        (lambda: PICTURE.parse(["a.png"]), "a condition is str"),
        (lambda: TEXT.parse([7]), "a prompt is a int"),
        (lambda: BOTH.parse(["a"]), "Give a tuple for each image: class, picture"),
    ],
)
def test_what_is_no_condition_is_refused(make_it, message):
    with pytest.raises(CodegridError, match=f"(?i){message}"):
        make_it()


ARCHITECTURES = ["llama", "grid_llama", "gpt2", "any_order_gpt2", "bert"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("condition", [PICTURE, BOTH, TEXT], ids=lambda kind: kind.type)
def test_every_kind_of_prior_learns_it(condition, architecture):
    """On codes that are the condition's number: the loss falls below guessing, and less so without it."""
    torch.manual_seed(0)
    sequence, model = sequence_of(condition), make(condition, architecture, initializer_range=0.02).train()
    values = torch.randint(0, 2, (32, 1)).expand(-1, *condition.value_shape).contiguous()
    codes = values[:, :1].expand(-1, 9) * 3
    drop = torch.rand(32, len(parts_of(condition))) < 0.1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        loss = prior_loss(model, codes, values, drop, sequence)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        without = prior_loss(model, codes, values, torch.ones(32, dtype=torch.bool), sequence)
        given = prior_loss(model, codes, values, None, sequence)
    assert given < 0.9 * without, (given, without)


def test_weights_of_branches():
    pairs = sorted(itertools.product((True, False), repeat=2), reverse=True)
    assert branch_weights(pairs, (1, 1)) == (1, 0, 0, 0)
    assert branch_weights(pairs, (0, 0)) == (0, 0, 0, 1)
    assert branch_weights(pairs, (3, 3)) == (3, 0, 0, -2)  # classifier-free guidance
    assert branch_weights(pairs, (3, 1)) == pytest.approx((2, 1, -1, -1))
    triples = sorted(itertools.product((True, False), repeat=3), reverse=True)
    for scales in [(1, 2, 3), (0.5, 1, 4)]:
        weights = branch_weights(triples, scales)
        assert sum(weights) == pytest.approx(1)
        # Of parts whose logits add up, each counts as often as its scale.
        for place, scale in enumerate(scales):
            assert sum(weight for weight, has in zip(weights, triples, strict=True) if has[place]) == pytest.approx(
                scale
            )


@torch.no_grad()
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parts_are_guided_apart(architecture):
    """Greedily and by hand: the logits of all four branches, by the two orders of adding a part."""
    sequence, model, scales = sequence_of(BOTH), make(architecture=architecture), (1.5, 3.0)
    prefix = to_tokens(CODES, VALUES, None, sequence)[:, :5]
    null = sequence.null_prefix.expand(3, -1)
    begins = {
        (a, b): torch.cat([(prefix if a else null)[:, :1], (prefix if b else null)[:, 1:]], 1)
        for a, b in itertools.product((True, False), repeat=2)
    }

    def mixed(made):
        logits = {}
        for keeps, begin in begins.items():
            if architecture == "bert":
                unknown = torch.full((3, 9 - made.shape[1]), sequence.null_token)
                out = model(torch.cat([begin, made, unknown], 1)).logits[:, 5 + made.shape[1], :16]
            else:
                out = model(torch.cat([begin, made], 1)).logits[:, -1, :16]
            logits[keeps] = out.double()
        all_, label, picture, none = (logits[k] for k in [(True, True), (True, False), (False, True), (False, False)])
        of_label, of_picture = (all_ - picture + label - none) / 2, (all_ - label + picture - none) / 2
        return none + scales[0] * of_label + scales[1] * of_picture

    made = torch.empty(3, 0, dtype=torch.int64)
    for _ in range(9):
        made = torch.cat([made, mixed(made).argmax(-1, keepdim=True)], 1)
    options = {"order": "raster", "num_steps": 9} if architecture == "bert" else {}
    found = sample_codes(model, sequence, VALUES, temperature=0, part_guidance=scales, **options)
    assert torch.equal(found, made)
    if architecture == "any_order_gpt2":
        found = sample_codes(model, sequence, VALUES, temperature=0, part_guidance=scales, order="raster", num_steps=9)
        assert torch.equal(found, made)
    same = sample_codes(model, sequence, VALUES, seeds=range(3), part_guidance=(2.0, 2.0), **options)
    assert torch.equal(same, sample_codes(model, sequence, VALUES, seeds=range(3), guidance_scale=2.0, **options))


@torch.no_grad()
def test_a_part_can_be_left_out():
    sequence, model = sequence_of(BOTH), make()
    drop = torch.tensor([[True, False]] * 3)
    others = VALUES.clone()
    others[:, 0] = 1 - others[:, 0]
    one, two = (sample_codes(model, sequence, each, seeds=range(3), drop=drop) for each in (VALUES, others))
    assert torch.equal(one, two)
    assert not torch.equal(one, sample_codes(model, sequence, VALUES, seeds=range(3)))
    scores = [log_likelihood(model, sequence, CODES, each, drop=drop) for each in (VALUES, others)]
    torch.testing.assert_close(*scores)
    with in_evaluation(model):
        nats = -9 * prior_loss(model, CODES, VALUES, drop, sequence).double()
    torch.testing.assert_close(scores[0].mean(), nats, rtol=1e-5, atol=1e-5)


def test_an_image_does_not_depend_on_its_batch():
    sequence, model = sequence_of(BOTH), make()
    settings = {"seeds": range(3), "part_guidance": (1.0, 2.5), "guidance_range": (0.2, 0.8)}
    alone = sample_codes(model, sequence, VALUES, batch_size=1, **settings)
    assert torch.equal(alone, sample_codes(model, sequence, VALUES, batch_size=3, **settings))


def test_scales_that_do_not_fit_are_refused():
    for scales, condition, message in [
        ((1.0, 2.0), PICTURE, "part_guidance has 2 scales, and the prior follows a picture of 4 tokens"),
        ((1.0, 2.0, 3.0), BOTH, "Give 2: one for each part"),
        ((2.0,), BOTH, "Give 2: one for each part"),
    ]:
        with pytest.raises(CodegridError, match=message):
            guidance_of(SamplingConfig(part_guidance=scales), sequence_of(condition))
    with pytest.raises(CodegridError, match=r"part_guidance is \(-1.0,\)"):
        SamplingConfig(part_guidance=(-1.0,))
    with pytest.raises(CodegridError, match=r"part_guidance is \(1.0, 2.0\), but this prior has no null class"):
        sample_codes(make(), sequence_of(BOTH, null_class=False), VALUES, part_guidance=(1.0, 2.0))
    assert "part_guidance" not in SamplingConfig().to_dict()  # files of older versions compare equal


@pytest.mark.parametrize("condition", [PICTURE, TEXT, BOTH], ids=lambda kind: kind.type)
def test_it_is_saved_and_loaded(condition, tmp_path):
    sequence, model = sequence_of(condition), make(condition)
    save_prior(model, sequence, tmp_path)
    again = load_prior(tmp_path)[1]
    assert again == sequence
    assert again.conditioning == condition
    saved = json.loads((tmp_path / "sequence_config.json").read_text())["condition"]
    assert saved["type"] == condition.type
    if condition is BOTH:
        assert [part["type"] for part in saved["parts"]] == ["class", "picture"]
        saved["parts"][1]["codebook_size"] = 10**9
        with pytest.raises(CodegridError, match="codebook_size of the condition is 1000000000"):
            sequence_of(saved)


TEXTS = ["red heart", "été 夏 🌞", "", "a" * 5, "\udcff\udc00odd bytes", "\ud800 lone", "\x00\n"]


@pytest.mark.parametrize("seed", [0, 7])
def test_any_text_has_tokens(seed, caplog):
    """Any string: those of any script, of control characters, of bytes that are no characters."""
    draws = random.Random(seed)
    drawn = "".join(chr(draws.randrange(0x110000)) for _ in range(12))
    condition = TextCondition(64)
    for text in [*TEXTS, drawn]:
        (ids,) = condition.parse([text])
        assert len(ids) == 64, (seed, text)
        assert max(ids) <= condition.num_ids
        plain = text.encode("utf-8", "replace").decode()
        if "?" not in plain:
            assert condition.name(ids) == text
    assert not caplog.records


def test_a_long_text_is_cut_and_said(caplog):
    condition = TextCondition(6)
    with caplog.at_level(logging.WARNING):
        values = condition.parse(["red heart", "ab", "été été"])
    assert [condition.name(ids) for ids in values] == ["red he", "ab", "été "]
    assert "2 prompts are longer than the 6 tokens that this prior reads, and cut: 'red he'" in caplog.text
    assert condition.parse("ab") == condition.parse(["ab"])


def test_a_tokenizer_of_transformers(tmp_path, caplog):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def saved(words):
        made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(tmp_path)
        from codegrid.prior import conditions

        conditions._tokenizer.cache_clear()

    saved(["[UNK]", "red", "heart", "blue"])
    condition = TextCondition.of(str(tmp_path), 4)
    assert (condition.num_ids, condition.vocab_size) == (4, 5)
    assert condition.parse(["red heart", "green heart", "red red red red red"]) == [
        [1, 2, 4, 4],
        [0, 2, 4, 4],
        [1, 1, 1, 1],
    ]
    assert condition.name([1, 2, 4, 4]) == "red heart"
    saved(["[UNK]", "red", "blue", "heart"])
    with pytest.raises(CodegridError, match="makes other ids of texts than when the prior was trained"):
        condition.parse(["red"])
    with pytest.raises(CodegridError, match="cannot be loaded"):
        TextCondition.of(str(tmp_path / "nothing"))


@pytest.mark.parametrize("change", ["merges", "normalizer"])
def test_a_tokenizer_of_the_same_vocabulary_that_makes_other_ids_is_refused(change, tmp_path):
    from tokenizers import Tokenizer, models, normalizers
    from transformers import PreTrainedTokenizerFast

    from codegrid.prior import conditions

    vocab = {letter: place for place, letter in enumerate(["a", "b", "c", "ab", "bc", "[UNK]"])}

    def saved(folder, merges, normalizer=None):
        made = Tokenizer(models.BPE(vocab, merges, unk_token="[UNK]"))
        if normalizer is not None:
            made.normalizer = normalizer
        PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(folder)
        conditions._tokenizer.cache_clear()

    merges = [("a", "b"), ("b", "c")]
    saved(tmp_path, merges)
    condition = TextCondition.of(str(tmp_path), 3)
    assert condition.parse(["abc"]) == [[3, 2, 6]]
    condition.loaded().save_pretrained(tmp_path / "copy")
    assert TextCondition.of(str(tmp_path / "copy"), 3).tokenizer_hash == condition.tokenizer_hash
    if change == "merges":
        saved(tmp_path, merges[::-1])  # "abc" would become a, bc
    else:
        saved(tmp_path, merges, normalizers.Lowercase())
    with pytest.raises(CodegridError, match="makes other ids of texts"):
        condition.parse(["abc"])


@pytest.mark.parametrize("architecture", ["llama", "any_order_gpt2"])
def test_a_saved_prior_has_the_tokenizer_of_its_texts(architecture, tmp_path, caplog):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from codegrid.prior import conditions

    made = Tokenizer(models.WordLevel({"[UNK]": 0, "red": 1, architecture: 2}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]").save_pretrained(tmp_path / "words")
    kind = CombinedCondition((CLASSES, TextCondition.of(str(tmp_path / "words"), 4)))
    sequence = sequence_of(kind)
    model = make_prior(PriorConfig(**SIZE, architecture=architecture), sequence)
    save_prior(model, sequence, tmp_path / "prior")
    (tmp_path / "words").rename(tmp_path / "elsewhere")
    conditions._tokenizer.cache_clear()
    text = parts_of(load_prior(tmp_path / "prior")[1].conditioning)[1]
    assert text.parse(["red \udcff"]) == [[1, 0, 3, 3]]
    save_prior(model, sequence, tmp_path / "again")  # from the copy
    assert (tmp_path / "again" / "tokenizer.json").is_file()
    conditions._COPIES.clear()
    conditions._tokenizer.cache_clear()
    save_prior(model, sequence, tmp_path / "without")
    assert "saved without the tokenizer of its texts" in caplog.text
    assert "cannot be loaded" in caplog.text
    assert load_prior(tmp_path / "without")[1] == sequence
