"""Kinds of condition: none, class, and one of two prefix tokens that is registered from outside of the package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.cards import prior_card
from codegrid.pipelines.training.config import PriorTrainingConfig
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.prior import (
    ARCHITECTURES,
    Architecture,
    Condition,
    PriorConfig,
    PriorObjective,
    SequenceConfig,
    load_prior,
    make_prior,
    prior_loss,
    register_architecture,
    register_condition,
    resolve_labels,
    sample_codes,
    save_prior,
    to_tokens,
)
from codegrid.prior.architectures import num_positions, shared_values
from codegrid.prior.architectures.llama_decoding import read_llama
from codegrid.prior.codes import CodesError, open_codes
from codegrid.prior.conditioning import CONDITIONS, ClassCondition, NoCondition

SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass(frozen=True)
class Shade(Condition):
    """A hue and a lightness: two tokens out of `hues` + `steps`."""

    type: ClassVar[str] = "shade"
    noun: ClassVar[str] = "shades"
    columns: ClassVar[tuple[str, ...]] = ("shade",)

    hues: int
    steps: int = 3

    @property
    def num_tokens(self) -> int:
        return 2

    @property
    def vocab_size(self) -> int:
        return self.hues + self.steps

    def parse(self, wanted: Iterable[Any]) -> list[Any]:
        return [[int(hue), self.hues + int(step)] for hue, step in (value.split(",") for value in wanted)]

    def describe(self) -> str:
        return f"{self.hues} hues in {self.steps} steps"


class PairConfig(MistralConfig):
    model_type = "codegrid_test_pair"


class PairForCausalLM(MistralForCausalLM):
    config_class = PairConfig


def pair_config(config, sequence):
    sizes = {name: getattr(config, name) for name in SIZE}
    sizes |= {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": num_positions(sequence)}
    return PairConfig(**sizes, **shared_values(config, sequence))


PAIR = Architecture("pair", "Pair", PairConfig, PairForCausalLM, pair_config, read_llama, library="pairs")


@pytest.fixture(autouse=True)
def registered():
    register_condition(Shade)
    register_architecture(PAIR)
    yield
    CONDITIONS.pop("shade")
    ARCHITECTURES.pop("pair")


def shaded(**changes) -> SequenceConfig:
    return SequenceConfig(**{"codebook_size": 16, "grid_shape": (3, 3), "condition": Shade(hues=2), **changes})


SHADES = torch.tensor([[0, 2], [1, 4], [1, 3], [0, 4]])
CODES = torch.randint(0, 16, (4, 9), generator=torch.Generator().manual_seed(0))


def make(architecture: str = "llama", **changes):
    torch.manual_seed(0)
    return make_prior(PriorConfig(**SIZE, architecture=architecture, **changes), shaded())


def test_a_sequence_is_the_prefix_then_the_codes():
    sequence = shaded()
    assert (sequence.vocab_size, sequence.prefix_length, sequence.length, sequence.null_token) == (22, 2, 9, 21)
    tokens = to_tokens(CODES, SHADES, torch.tensor([False, True, False, False]), sequence)
    assert tokens[:, :2].tolist() == [[16, 18], [21, 21], [17, 19], [16, 20]]
    assert torch.equal(tokens[:, 2:], CODES)
    assert resolve_labels(["1,2", "0,0"], sequence) == [[1, 4], [0, 2]]
    assert sequence.can_be_guided
    assert not shaded(null_class=False).can_be_guided


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "This prior has 2 hues in 3 steps, and no shades are given"),
        (SHADES[:, 0], r"Give integers of shape \[4, 2\]"),
        (SHADES + 3, r"The shades hold 7. Give values from 0 to 4"),
    ],
)
def test_values_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(CodegridError, match=message):
        to_tokens(CODES, labels, None, shaded())


def by_hand(model, tokens):
    """Nats a code: the last token of the prefix predicts the first code; softmax over the codes alone."""
    scores = model(tokens).logits[:, 1:-1, :16].log_softmax(-1)  # [B, L, K]
    return -scores.gather(2, tokens[:, 2:, None]).mean()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "grid_llama", "qwen3", "gpt2", "pair"])
def test_it_trains_and_is_scored(architecture, fast):
    sequence, model = shaded(), make(architecture)
    objective = PriorObjective(model, 16, fast=fast)
    drop = torch.tensor([True, False, False, False])
    expected = by_hand(model, to_tokens(CODES, SHADES, drop, sequence))
    torch.testing.assert_close(prior_loss(objective, CODES, SHADES, drop, sequence), expected)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(12):
        losses.append(prior_loss(objective, CODES, SHADES, drop, sequence))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["llama", "grid_llama", "qwen3", "gpt2", "pair"])
def test_it_is_sampled_from_and_guided(architecture):
    sequence, model = shaded(), make(architecture, initializer_range=0.3).eval()
    prefix = to_tokens(CODES, SHADES, None, sequence)[:, :2]
    greedy = sample_codes(model, sequence, SHADES, temperature=0)
    assert torch.equal(greedy, model.generate(prefix, do_sample=False)[:, 2:])
    plain = sample_codes(model, sequence, SHADES, seeds=range(4))
    guided = sample_codes(model, sequence, SHADES, seeds=range(4), guidance_scale=2.0)
    assert guided.shape == plain.shape == (4, 9)
    assert not torch.equal(plain, guided)
    # Guided greedily, code by code: the scores with the prefix, led away from those with null.
    tokens, null = prefix, sequence.null_prefix.expand(4, -1)
    for _ in range(9):
        with_prefix, without = (model(part).logits[:, -1, :16].double() for part in (tokens, null))
        chosen = (without + 2 * (with_prefix - without)).argmax(-1, keepdim=True)
        tokens, null = torch.cat([tokens, chosen], 1), torch.cat([null, chosen], 1)
    assert torch.equal(sample_codes(model, sequence, SHADES, temperature=0, guidance_scale=2.0), tokens[:, 2:])
    unled = sample_codes(model, sequence, None, seeds=[0], temperature=0)
    assert torch.equal(unled, model.generate(sequence.null_prefix[None], do_sample=False)[:, 2:])


def test_the_prefix_lies_above_the_grid():
    """Of a grid_llama with several prefix tokens: each has a place of its own."""
    rotary = make("grid_llama").model.rotary_emb
    cos, sin = rotary(torch.zeros(()), torch.arange(11)[None])
    places = torch.cat([cos, sin], -1)[0]
    assert len(places.unique(dim=0)) == 11
    torch.testing.assert_close(places[2], torch.cat([torch.ones(8), torch.zeros(8)]))  # the first code: row 0, column 0


@pytest.mark.parametrize("architecture", ["llama", "grid_llama", "pair"])
def test_it_is_saved_and_loaded(architecture, tmp_path):
    sequence, model = shaded(tokenizer_fingerprint="f"), make(architecture).eval()
    save_prior(model, sequence, tmp_path)
    saved = json.loads((tmp_path / "sequence_config.json").read_text())
    assert saved["condition"] == {"type": "shade", "hues": 2, "steps": 3}
    loaded, again = load_prior(tmp_path)
    assert again == sequence
    tokens = to_tokens(CODES, SHADES, None, sequence)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert "with 2 hues in 3 steps." in prior_card(sequence, model_type=model.config.model_type)
    for broken, message in [
        ({"type": "depth"}, "'depth', and known are none, class, picture, text, combined, shade"),
        ({"type": "shade"}, "hues"),
        ({"type": "shade", "hues": 2, "x": 1}, "unknown fields: x"),
        ({"type": "shade", "hues": 10**12}, "1000000000003 different tokens. Give it at most 1000000"),
        ("shade", "Give a JSON object"),
    ]:
        (tmp_path / "sequence_config.json").write_text(json.dumps({**saved, "condition": broken}))
        with pytest.raises(CodegridError, match=message):
            load_prior(tmp_path)


def test_classes_and_nothing_are_said_as_ever():
    """One way to say it, and no new key in the file of an older kind of prior."""
    classes = SequenceConfig(16, (3, 3), condition=ClassCondition(("a", "b")))
    assert classes == SequenceConfig(16, (3, 3), class_names=("a", "b"))
    assert SequenceConfig(16, (3, 3), condition=NoCondition()) == SequenceConfig(16, (3, 3))
    assert classes.conditioning == ClassCondition(("a", "b"))
    assert "condition" not in classes.to_dict()
    with pytest.raises(CodegridError, match="a prior follows one of them"):
        shaded(class_names=("a", "b"))


def test_a_kind_is_registered_once():
    assert register_condition(Shade) is Shade
    with pytest.raises(CodegridError, match="'shade' already"):
        register_condition(type("Other", (Shade,), {}))
    with pytest.raises(CodegridError, match="has no type"):
        register_condition(type("Nameless", (Condition,), {}))


def write_codes(folder: Path, shades: np.ndarray) -> Path:
    (folder / "data").mkdir(parents=True)
    rows = len(shades)
    codes = np.random.default_rng(0).integers(0, 16, (rows, 9)).astype("uint16")
    table = {
        "codes": pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), 9),
        "shade": pa.FixedSizeListArray.from_arrays(pa.array(shades.ravel().astype("int32")), 2),
        "source_id": [f"image{index}.png" for index in range(rows)],
    }
    path = folder / "data" / "codes-00000.parquet"
    pq.write_table(pa.table(table), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    shard = {"file": f"data/{path.name}", "num_rows": rows, "num_bytes": path.stat().st_size, "sha256": digest}
    manifest = {"tokenizer": "nowhere", "tokenizer_fingerprint": "f" * 64, "codebook_size": 16, "grid_shape": [3, 3]}
    manifest |= {"class_names": None, "source": "images", "source_fingerprint": "0" * 64, "num_rows": rows}
    manifest |= {"num_images": rows, "shards": [shard], "condition": {"type": "shade", "hues": 2}}
    manifest |= {"format": "codegrid-codes", "version": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_it_is_trained_on_a_column_of_a_code_data_set(tmp_path, capsys):
    shades = np.array([[index % 2, 2 + index % 3] for index in range(40)])
    codes = open_codes(write_codes(tmp_path / "codes", shades))
    values, unknown = codes.condition_values(np.array([3, 0, 8]))
    assert values.tolist() == shades[[3, 0, 8]].tolist()
    assert not unknown.any()
    model = PriorConfig(**SIZE, architecture="pair")
    run = tmp_path / "run"
    settings = {"codes": str(tmp_path / "codes"), "output_dir": str(run), "device": "cpu", "model": model}
    train_prior(PriorTrainingConfig(**settings, max_steps=2, batch_size=4, log_every=1, validation_fraction=0.2))
    said = capsys.readouterr().out
    assert "2 hues in 3 steps" in said
    assert "held-out cross-entropy" in said
    loaded, sequence = load_prior(run)
    assert type(loaded) is PairForCausalLM
    assert sequence.condition == Shade(hues=2)


def test_a_pipeline_takes_what_the_condition_parses(tiny_vqmodel, tmp_path):
    sequence = shaded(codebook_size=32, grid_shape=(4, 4), tokenizer_fingerprint=tiny_vqmodel.fingerprint())
    pipe = ImageGenerationPipeline(
        tiny_vqmodel, make_prior(PriorConfig(**SIZE, architecture="pair"), sequence), sequence
    )
    pipe.save_pretrained(tmp_path / "pipe")
    pipe = ImageGenerationPipeline.from_pretrained(tmp_path / "pipe")
    assert pipe.sampling.guidance_scale != 1
    assert "It follows 2 hues in 3 steps." in (tmp_path / "pipe" / "README.md").read_text()
    output = pipe(["1,2", "0,0"], num_images_per_label=2, seed=0, progress=False)
    assert output.labels == [[1, 4], [1, 4], [0, 2], [0, 2]]
    assert len(output.images) == 4
    with pytest.raises(CodegridError, match=r"follow 2 hues in 3 steps\. Say what by class_labels"):
        pipe(num_images=2, progress=False)


def test_a_data_set_without_its_column_is_refused(tmp_path):
    folder = write_codes(tmp_path / "codes", np.zeros((4, 2)))
    manifest = json.loads((folder / "manifest.json").read_text())
    path = folder / manifest["shards"][0]["file"]
    pq.write_table(pq.read_table(path).drop_columns(["shade"]), path)
    manifest["shards"][0] |= {"num_bytes": path.stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CodesError, match="shade"):
        open_codes(folder, verify=False)
