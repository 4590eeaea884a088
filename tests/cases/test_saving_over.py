"""Row "saving over a folder": only the project's own files are replaced, and nothing is lost on the way."""

import json
import os
import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts import replacing
from codegrid.pipelines.artifacts.export import export
from codegrid.pipelines.system.files import OutputError
from codegrid.prior import PriorConfig, SequenceConfig, make_prior

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def pipe(tiny_vqmodel) -> ImageGenerationPipeline:
    sequence = SequenceConfig(32, (4, 4), tokenizer_fingerprint=tiny_vqmodel.fingerprint())
    return ImageGenerationPipeline(tiny_vqmodel, make_prior(PriorConfig(**SIZES), sequence), sequence)


def retrained(pipe: ImageGenerationPipeline) -> ImageGenerationPipeline:
    with torch.no_grad():
        next(pipe.prior.parameters()).add_(1.0)
    return pipe


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.mark.parametrize(
    "theirs",
    [
        {"LICENSE": b"mine", "notes.md": b"n"},
        {"tokenizer/notes/a.txt": b"deep", ".gitattributes": b"*", "prior/.hidden": b"h"},
        {"evaluation.txt": b"no folder", "tokenizer.txt": b"t", "samples.png": b"p", "configs/config.json": b"{}"},
    ],
)
def test_written_files_of_others_stay(pipe, tmp_path, theirs):
    pipe.save_pretrained(tmp_path / "pipe")
    put(tmp_path / "pipe", theirs)
    retrained(pipe).save_pretrained(tmp_path / "pipe")
    after = contents(tmp_path / "pipe")
    assert {name: after[name] for name in theirs} == theirs
    assert set(after) == set(contents(pipe.save_pretrained(tmp_path / "fresh"))) | set(theirs)
    ImageGenerationPipeline.from_pretrained(tmp_path / "pipe")


@pytest.mark.parametrize("seed", [3, 33])
def test_drawn_files_of_others_stay_when_the_write_fails(pipe, tmp_path, seed, monkeypatch):
    draw = random.Random(seed)
    pipe.save_pretrained(tmp_path / "pipe")
    names = [f"{draw.choice(['', 'tokenizer/', 'prior/', 'a/b/'])}{draw.getrandbits(32):x}.txt" for _ in range(6)]
    put(tmp_path / "pipe", {name: name.encode() for name in names})
    before = contents(tmp_path / "pipe")
    place, name = draw.choice([(os, "link"), (replacing, "replace_folder"), (replacing.shutil, "copystat")])

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place, name, full)
        if name == "link":
            patch.setattr(replacing.shutil, "copy2", full)
        with pytest.raises((OSError, OutputError, replacing.shutil.Error)):
            retrained(pipe).save_pretrained(tmp_path / "pipe")
    assert contents(tmp_path / "pipe") == before, seed
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"], seed


def test_evaluations_stay_with_the_weights_they_are_of(pipe, tmp_path, capsys):
    folder = pipe.save_pretrained(tmp_path / "pipe")
    put(folder, {"evaluation/generation.json": b"{}"})
    table = "<!-- codegrid evaluation: generation -->\n## Evaluation\n<!-- codegrid evaluation: generation, end -->"
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\n" + table + "\n")
    pipe.save_pretrained(folder)
    assert table in (folder / "README.md").read_text()
    assert (folder / "evaluation" / "generation.json").is_file()
    assert "older" not in capsys.readouterr().out
    retrained(pipe).save_pretrained(folder)
    assert table not in (folder / "README.md").read_text()
    assert not (folder / "evaluation").exists()
    assert (folder / "evaluation-of-older-weights-1" / "generation.json").is_file()
    assert "The weights are others than before" in capsys.readouterr().out


@pytest.mark.parametrize("index", [None, "{}", "[]", "broken", json.dumps({"_class_name": "StableDiffusionPipeline"})])
def test_a_folder_of_something_else_is_refused(pipe, tmp_path, index):
    put(tmp_path / "theirs", {"thesis.tex": b"all"} | ({} if index is None else {"model_index.json": index.encode()}))
    before = contents(tmp_path)
    with pytest.raises(OutputError, match="holds no pipeline") as raised:
        pipe.save_pretrained(tmp_path / "theirs")
    assert "choose another folder" in raised.value.remedy.lower()
    assert contents(tmp_path) == before


def test_a_link_to_a_folder_stays_a_link(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "there")
    (tmp_path / "link").symlink_to("there")
    put(tmp_path / "there", {"LICENSE": b"mine"})
    retrained(pipe).save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "LICENSE").read_bytes() == b"mine"


@pytest.mark.parametrize(("before", "after"), [("200KB", "5GB"), ("5GB", "200KB"), ("300KB", "100KB")])
def test_no_weight_file_of_an_older_model_is_read(tmp_path, before, after):
    """A model of several shards leaves an index, which is read before the one file of the next model."""
    older, newer = (
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2
            )
        )
        for _ in range(2)
    )
    export(tmp_path, lambda aside: older.save_pretrained(aside, max_shard_size=before))
    (tmp_path / "notes.safetensors.txt").write_text("kept")
    export(tmp_path, lambda aside: newer.save_pretrained(aside, max_shard_size=after))
    read = LlamaForCausalLM.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(read.parameters(), newer.parameters(), strict=True))
    assert (tmp_path / "notes.safetensors.txt").exists()


def write_model(model, card: str):
    def write(aside: Path) -> None:
        model.save_pretrained(aside)
        (aside / "README.md").write_text(card)

    return write


@pytest.mark.parametrize("seed", [2, 12])
def test_a_model_exported_over_an_older_one_sets_its_evaluations_aside(tiny_vqmodel, tmp_path, capsys, seed):
    draw, folder = random.Random(seed), tmp_path / "run"
    folder.mkdir()
    table = "<!-- codegrid evaluation: x -->\n## Evaluation\n<!-- codegrid evaluation: x, end -->"
    export(folder, write_model(tiny_vqmodel, "# One\n"))
    put(folder, {"evaluation/x.json": b"{}", "training_config.json": b"{}"})
    (folder / "README.md").write_text(f"# One\n\n{table}\n")
    renamed = 0
    for number in range(5):
        changes = draw.random() < 0.5
        if changes:
            with torch.no_grad():
                tiny_vqmodel.decoder.conv_out.bias.add_(1.0)
        export(folder, write_model(tiny_vqmodel, f"# {number}\n"))
        said = capsys.readouterr().out
        assert ("of the older ones" in said) == changes, (seed, number)
        assert (table in (folder / "README.md").read_text()) != changes, (seed, number)
        renamed += changes
        aside = sorted(path.name for path in folder.glob("evaluation-of-older-weights-*"))
        assert aside == [f"evaluation-of-older-weights-{each}" for each in range(1, renamed + 1)], (seed, number)
        assert (folder / "evaluation").exists() == (not changes), (seed, number)
        assert (folder / "training_config.json").is_file()
        if changes:
            put(folder, {"evaluation/x.json": b"{}"})
            (folder / "README.md").write_text(f"# One\n\n{table}\n")


def test_a_push_asks_for_the_login_before_it_writes(tiny_vqmodel, monkeypatch):
    from codegrid.tokenizer.hub import push

    monkeypatch.setattr(push, "get_token", lambda: None)
    monkeypatch.setattr(type(tiny_vqmodel), "save_pretrained", lambda *_: pytest.fail("something was written"))
    monkeypatch.setattr(push, "HfApi", lambda *_, **__: pytest.fail("the Hub was asked"))
    for token in (None, False):
        with pytest.raises(push.PublishingError, match="There is no login"):
            tiny_vqmodel.push_to_hub("me/tokenizer", token=token)
    with pytest.raises(push.PublishingError, match="not in the repository"):
        tiny_vqmodel.push_to_hub("me/tokenizer", token="hf_x", subfolder="../x")
