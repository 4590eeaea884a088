"""The documents work as written: blocks that are marked are run on tiny data, and so is all Python, page by page.

Beside the words of a block stand only those that make it small: two steps, few pictures, a feature net of random
weights.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as HubImage
from documents import DOCUMENTS, ROOT, Block, blocks, codegrid_words, name_of, read, snippets_of, split
from PIL import Image
from safetensors.torch import safe_open, save_file
from torchvision.models import squeezenet1_1

from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.codes.conditions import picture_condition
from codegrid.pipelines.commands import main
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import EMBEDDED_IMAGES, open_images
from codegrid.pipelines.importing.parity import random_weights
from codegrid.prior import PriorConfig, SequenceConfig, make_prior, save_prior
from codegrid.prior.conditions import CombinedCondition, TextCondition
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.feature_nets.efficientnet_lite import EfficientNetLite0

SAVED = ROOT / "tests" / "saved_by_be0a219"
GOLDEN = ROOT / "tests" / "tokenizer" / "golden" / "taming.safetensors"
# Lines of marked blocks that make the environment, which the tests run in.
ENVIRONMENT = ("python -m venv .venv", ". .venv/bin/activate", "pip install ")
LITE = ["--feature-net", "efficientnet_lite0"]
SMALL = {
    "train-tokenizer": ["--max-steps", "2", "--batch-size", "4", "--tracking"],
    "train-prior": ["--max-steps", "2", "--batch-size", "4", "--model.num-hidden-layers", "1", "--tracking"],
    "generate": ["--num-images", "2"],
    "evaluate reconstruction": ["--lpips", "none", *LITE],
    "evaluate conditional": [*LITE, "--num-images", "4"],
    "evaluate generation": [*LITE, "--num-images", "10", "--num-reference", "10", "--guidance-scales", "1"],
}
# What a snippet takes from its reader.
READERS = {
    "pictures": [Image.new("RGB", (24, 24), colour) for colour in ("red", "green")],
    "labels": ["Sandal", 3],
    "images": torch.zeros(2, 3, 16, 16),
    "codebook_size": 32,
    "label": 1,
}
MARKED = [
    pytest.param(document, [block for block in blocks(read(document)) if block.is_run], id=name_of(document))
    for document in DOCUMENTS
    if any(block.is_run for block in blocks(read(document)))
]


def unmarked_snippets(document: Path) -> list[str]:
    """Python that needs nothing of its page's commands; what is marked runs among these."""
    return snippets_of([block for block in blocks(read(document)) if not block.is_run])


# The Python of onnx.md runs in tests/pipelines/test_onnx_files.py, which has its files.
WITH_SNIPPETS = [document for document in DOCUMENTS if unmarked_snippets(document) and document.name != "onnx.md"]


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with runs/quickstart, of a small tokenizer, a prior of its classes, and some of its images."""
    run = tmp_path / "runs" / "quickstart"
    for name in ("tokenizer", "codes"):
        shutil.copytree(SAVED / name, run / name)
    table = pq.read_table(EMBEDDED_IMAGES)
    (run / "images").mkdir()
    for split_name, first in (("train", 0), ("validation", 100)):
        pq.write_table(table.slice(first, 20), run / "images" / f"{split_name}.parquet")
    tokenizer = VQModel.from_pretrained(run / "tokenizer").eval()
    names = open_images(DataConfig(str(EMBEDDED_IMAGES))).class_names
    sequence = SequenceConfig(
        32,
        tokenizer.config.grid_shape,
        class_names=tuple(names or ()),
        tokenizer_fingerprint=tokenizer.fingerprint(),
    )
    prior = make_prior(PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), sequence)
    ImageGenerationPipeline(tokenizer, prior, sequence).save_pretrained(run / "pipeline")
    config = PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, architecture="any_order_gpt2")
    any_order = ImageGenerationPipeline(tokenizer, make_prior(config, sequence), sequence)
    any_order.save_pretrained(tmp_path / "ANY_ORDER")
    picture = picture_condition(tokenizer, "downscale:4")
    follows = SequenceConfig(
        *(32, tokenizer.config.grid_shape),
        tokenizer_fingerprint=tokenizer.fingerprint(),
        condition=CombinedCondition((picture, TextCondition(16))),
    )
    config = PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ImageGenerationPipeline(tokenizer, make_prior(config, follows), follows).save_pretrained(tmp_path / "FOLLOWS")
    for name, side in (("PICTURE", 16), ("MASK", 16), ("mask.png", 24)):
        Image.new("L", (side, side), "white").save(tmp_path / name, format="PNG")
    monkeypatch.chdir(tmp_path)
    return run


def few_emoji(folder: Path) -> None:
    """A data set as emoji64 is: pictures of code points in three styles, with their names."""
    folder.mkdir()
    draw = random.Random(1)
    for split_name, points in (("train", 8), ("validation", 4)):
        rows = []
        for point in range(points):
            for style in range(3):
                picture, file = Image.new("RGB", (16, 16), "white"), io.BytesIO()
                picture.paste(tuple(draw.randrange(200) for _ in range(3)), (2, 3, 6 + point, 10 + style))
                picture.save(file, "PNG")
                image = {"bytes": file.getvalue(), "path": None}
                rows.append({"image": image, "label": point % 2, "style": style, "codepoint": f"1F44{point}"})
                rows[-1]["name"] = f"{('round', 'square')[point % 2]} thing {point}"
        labels = {"label": ClassLabel(names=["Objects", "Flags"])}
        labels["style"] = ClassLabel(names=["noto", "twemoji", "fluent"])
        texts = {"codepoint": Value("string"), "name": Value("string")}
        table = Dataset.from_list(rows, features=Features({"image": HubImage(), **labels, **texts}))
        table.to_parquet(str(folder / f"{split_name}-00000-of-00001.parquet"))


def small(words: list[str]) -> list[str]:
    """A command line with the options that make it small."""
    name, rest = split(words)
    name = f"{name} {rest[0]}" if name == "evaluate" else name
    added = SMALL.get(name, [])
    if "--max-steps" in words:  # a longer run stays the longer one
        added = ["--max-steps", "3", *added[2:]]
    return [*words, *added]


def lines_of(block: Block) -> list[str]:
    """The commands of a block, less those that make the environment."""
    lines = [part.strip() for line in block.text.replace("\\\n", " ").split("\n") for part in line.split(" && ")]
    return [line for line in lines if line and not line.startswith(ENVIRONMENT)]


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with what blocks take from their reader, and a feature net in torch hub's folder."""
    draw = random.Random(0)
    for index in range(12):
        folder = tmp_path / "IMAGES" / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (64, 72), tuple(draw.randrange(256) for _ in range(3)))
        picture.paste((255, 255, 255), (index, index, index + 20, index + 30))
        picture.save(folder / f"{index:02}.png")
    tokenizers = [(name, "tokenizer") for name in ("DIR", "RUN", "TOKENIZER")]
    for name, saved in (*tokenizers, ("PIPELINE", "pipeline"), ("NEW_CODES", "codes")):
        shutil.copytree(SAVED / saved, tmp_path / name)
    few_emoji(tmp_path / "emoji64")
    model = VQModel.from_pretrained(SAVED / "tokenizer").eval()
    sequence = SequenceConfig(
        *(model.config.quantizer_config.codebook_size, model.config.grid_shape),
        tokenizer_fingerprint=model.fingerprint(),
        condition=picture_condition(model, "downscale:4"),
    )
    config = PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    save_prior(make_prior(config, sequence), sequence, tmp_path / "RESTORATION")
    sequence = replace(sequence, condition=None, class_names=("Objects", "Flags"))
    save_prior(make_prior(config, sequence), sequence, tmp_path / "CLASS_PRIOR")
    (tmp_path / "SHAPES").mkdir()
    Image.new("RGB", (20, 20), "black").save(tmp_path / "SHAPES" / "square.png")
    hub = tmp_path / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    save_file(EfficientNetLite0().state_dict(), hub / "efficientnet_lite0.safetensors")
    save_file(squeezenet1_1(weights=None).state_dict(), tmp_path / "squeezenet1_1_caffe.safetensors")
    for name in ("a.jpg", "b.png"):
        Image.new("RGB", (40, 30), "teal").save(tmp_path / name)
    with safe_open(GOLDEN, framework="pt") as file:
        golden = file.metadata()
    shapes = {key: tuple(shape) for key, shape in json.loads(golden["shapes"]).items()}
    torch.save({"state_dict": random_weights(shapes)}, tmp_path / "last.ckpt")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(json.loads(golden["settings"])))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("CODEGRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("document", "marked"), MARKED)
def test_marked_blocks_run(document: Path, marked: list[Block], quickstart: Path, readers_folder: Path) -> None:
    for block in marked:
        if block.language == "python":
            exec(compile(block.text, name_of(document), "exec"), {})
            continue
        for line in lines_of(block):
            words = codegrid_words(line)
            assert words is not None, f"{line} is no command of this project"
            main(small(words))


def test_marks_are_seen() -> None:
    assert [name_of(document) for (document,) in ((param.values[0],) for param in MARKED)] >= ["README.md"]
    found = blocks("<!-- run -->\n\n    codegrid look A && codegrid look B\n\ntext\n\n    codegrid look C\n")
    assert [block.is_run for block in found] == [True, False]
    assert lines_of(found[0]) == ["codegrid look A", "codegrid look B"]


@pytest.mark.parametrize("document", WITH_SNIPPETS, ids=name_of)
def test_snippets_run_one_after_the_other(document: Path, quickstart: Path, readers_folder: Path) -> None:
    """In one namespace a page. `READERS` has what they take from their reader."""
    shutil.copytree(SAVED / "prior", readers_folder / "runs" / "prior")
    shutil.copytree(SAVED / "pipeline", readers_folder / "runs" / "pipeline-with-context")
    names: dict[str, Any] = {}
    for snippet in unmarked_snippets(document):
        names |= READERS
        exec(compile(snippet, name_of(document), "exec"), names)
    if document.name == "README.md":
        assert len(names["completed"]) == 2
        assert names["model"].config.grid_shape == (2, 2)
        assert names["codes"].num_rows > 0
    if document.name == "priors.md":
        assert (readers_folder / "runs" / "adapted" / "model.safetensors").exists()


def test_pages_with_snippets() -> None:
    assert {"README.md", "docs/pictures.md", "docs/priors.md"} <= {name_of(document) for document in WITH_SNIPPETS}
