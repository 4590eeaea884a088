"""Model cards and data set cards: they say what a folder is, how it was made, and show a snippet that runs.

A card is YAML for the Hub and a few sections; one function makes each section. The card is written with the folder.
A push completes the copy that it uploads (`completed`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from codegrid.names import shown
from codegrid.pipelines.data.labels import numeric_order_note
from codegrid.pipelines.system.numbers import number
from codegrid.prior import ARCHITECTURES, SequenceConfig
from codegrid.prior.codes import CodesManifest
from codegrid.prior.conditions import parts_of
from codegrid.tokenizer.hub.card import PLACEHOLDER, description, usage

TRAINING = "Training"
_INSTALL = """
## Install

The snippet needs the package `codegrid` (and, for code data sets alone, only `datasets`): in a checkout of the project

```sh
pip install -e .
```
"""
_MOST_NAMES = 200  # classes that the card of a code data set lists; manifest.json has all
_REPO_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class CardFacts:
    """Facts that only a push knows: the repository, its subfolder, the licence, the base tokenizer and the pictures.

    `license` is the Hub's identifier, `base_tokenizer` a repository's name, `pictures` are names of files.
    """

    repo_id: str
    subfolder: str | None = None
    license: str | None = None
    base_tokenizer: str | None = None
    pictures: tuple[str, ...] = ()


def tokenizer_card(config: Any, source: str | None = None, scores: Mapping[str, float] | None = None) -> str:
    """Model card of a tokenizer. `config` is its VQModelConfig, `source` its training data."""
    return _card(
        {"library_name": "codegrid", "tags": ["codegrid", "vqgan", "image-tokenizer"]},
        "Image tokenizer",
        description(config),
        training_section(f"Trained on the images `{source}`." if source else "", scores, "Validation"),
        usage(config),
    )


def prior_card(
    sequence: SequenceConfig,
    codes: str | None = None,
    scores: Mapping[str, float] | None = None,
    tokenizer: str | None = None,
    model_type: str = "llama",
) -> str:
    """Model card of a prior. `codes` is its training data, `tokenizer` the place of the tokenizer that made the codes.

    `model_type` comes from the prior's config.
    """
    imported = sequence.axes is not None
    gives = "a row, position by position" if imported else "a grid for the tokenizer's decode"
    network = next(record for record in ARCHITECTURES.values() if record.model_type == model_type)
    auto = "AutoModelForMaskedLM" if network.reads == "around" else "AutoModelForCausalLM"
    return _card(
        {
            "library_name": "codegrid",
            "tags": ["codegrid", network.name, "code-prior" if imported else "image-prior"],
            **_base_model(tokenizer),
        },
        "Prior of imported codes" if imported else "Prior of image codes",
        f"A {network.title} that predicts sequences of {sequence.length} {'' if imported else 'image '}codes of "
        f"{sequence.codebook_size}, with {sequence.conditioning.describe()}.\n"
        + (
            f"Its codes were imported and have no pictures; the axes of a row are {_sizes(sequence.axes)}.\n"
            if sequence.axes is not None
            else f"Its codes are those of the tokenizer with fingerprint `{sequence.tokenizer_fingerprint}`.\n"
        ),
        training_section(_trained_on_codes(codes, tokenizer, imported), scores, "Held-out codes"),
        f"""## Use

```python
from codegrid.prior import load_prior, sample_codes, to_codes

model, sequence = load_prior("{PLACEHOLDER}")
sampled = sample_codes(model, sequence, seeds=[0])
codes = to_codes(sampled, sequence)  # {gives}
```

`{auto}.from_pretrained("{PLACEHOLDER}")` gives the same model; `sequence_config.json` says what its
tokens mean.
""",
    )


def pipeline_card(sequence: SequenceConfig, cards: Mapping[str, str] | None = None) -> str:
    """Model card of a generation pipeline. `cards` holds the cards of its parts "tokenizer" and "prior"."""
    labels = (
        f"class_labels=[{sequence.class_names[0]!r}], num_images_per_label=4"
        if sequence.class_names
        else "num_images=4"
    )
    if sequence.condition is not None:
        labels = _call(sequence)
    names = f"Classes: {', '.join(sequence.class_names)}.\n" if sequence.class_names else ""
    if note := numeric_order_note(sequence.class_names):
        names += f"{note}\n"
    if sequence.condition is not None:
        names = f"It follows {sequence.conditioning.describe()}.\n"
    parts = [
        f"## The {part}'s training\n\n{text}\n" for part, card in (cards or {}).items() if (text := _training_of(card))
    ]
    return _card(
        {
            "library_name": "codegrid",
            "pipeline_tag": "unconditional-image-generation",
            "tags": ["codegrid", "image-generation"],
            **_base_model_of((cards or {}).get("prior", "")),
        },
        "Image generation from codes",
        f"A prior samples {sequence.length} codes, a tokenizer's decoder turns them into an image. {names}",
        *parts,
        f"""## Use

```python
from codegrid.pipelines import ImageGenerationPipeline

pipe = ImageGenerationPipeline.from_pretrained("{PLACEHOLDER}")
images = pipe({labels}, seed=0).images  # PIL images
```
""",
    )


def _call(sequence: SequenceConfig) -> str:
    """The arguments that say what an image of another condition than a class is to follow."""
    kinds = {"class": "class_labels=wanted", "picture": "condition=pictures", "text": 'prompt="some text"'}
    parts = parts_of(sequence.conditioning)
    if not all(part.type in kinds for part in parts):
        return "class_labels=wanted"  # a value that the condition's `parse` takes
    return ", ".join(kinds[part.type] for part in parts)


def codes_card(manifest: CodesManifest) -> str:
    """Data set card of a code data set. Its YAML tells `datasets` where the shards are."""
    height, width = manifest.grid_shape
    classes = f"{len(manifest.class_names)} classes" if manifest.class_names else "no labels"
    note = numeric_order_note(manifest.class_names)
    changed = ""
    if manifest.num_compared:
        changed = (
            f" in {manifest.precision} ({manifest.num_changed / manifest.num_compared:.1%} others than in float32)"
        )
    follows = ""
    if manifest.condition is not None:
        follows = f"\nA prior of them follows {manifest.sequence_config().conditioning.describe()}."
    # `datasets` keys its cache of a folder by the folder's base name and this entry. Without the description it would
    # read another set of that name, or this one before it grew.
    entry = {
        "config_name": "default",
        "description": f"fingerprint {manifest.fingerprint()}",
        "data_files": [{"split": "train", "path": "data/*.parquet"}],
    }
    made = f"made by the tokenizer `{manifest.tokenizer}` with fingerprint\n`{manifest.tokenizer_fingerprint}`{changed}"
    if manifest.axes is not None:
        sizes = _sizes(manifest.axes)
        made = f"imported: `{manifest.tokenizer}` made them, and they have no pictures (axes of a row: {sizes})"
    codes, images = ("image codes", "images") if manifest.axes is None else ("imported codes", "sequences")
    return _card(
        {
            "configs": [entry],
            "tags": ["codegrid", codes.replace(" ", "-")],
        },
        codes.capitalize(),
        f"""{manifest.num_rows} rows from {manifest.num_images} {images} of `{manifest.source}`,
{manifest.num_skipped} left out, {classes}. A row is {height}x{width} codes of {manifest.codebook_size} in raster order
({manifest.depth} a position), {made}.{follows}
`manifest.json` has the rest.{f" {note}" if note else ""}
""",
        _ids(manifest.class_names),
        f"""## Use

```python
from datasets import load_dataset

codes = load_dataset("{PLACEHOLDER}", split="train")
```
""",
    )


def samples_card(path: str, settings: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Data set card of samples of a pipeline: where the rows are (`path`, a pattern), and what drew them.

    Args:
        settings: generation.json of `codegrid generate`.
        classes: of the labels, in their order; empty if there are none.
    """
    number, seed = settings["num_images"], settings["seed"]
    drawn = f"prior {settings['prior_fingerprint']}, seed {seed}, {number} images"  # `datasets` caches by it
    entry = {"config_name": "default", "description": drawn, "data_files": [{"split": "train", "path": path}]}
    sampling = ", ".join(f"{name} {value}" for name, value in settings["sampling"].items() if value is not None)
    return _card(
        {"configs": [entry], "tags": ["codegrid", "synthetic"]},
        "Samples of a model",
        f"""{number} pictures that a model drew, none of them real: by the pipeline `{settings["pipeline"]}` (tokenizer
`{settings["tokenizer_fingerprint"]}`,
prior `{settings["prior_fingerprint"]}`), seed {seed}, {sampling}.
What the model was trained on says its own card. `generation.json` has all settings, with which the pictures come again.
""",
        _ids(classes).replace("(`class_names` in `manifest.json`)", "").rstrip(),
        f"""## Use

```python
from datasets import load_dataset

samples = load_dataset("{PLACEHOLDER}", split="train")
```
""",
    )


def _ids(class_names: Sequence[str] | None) -> str:
    """Which id is which class."""
    if not class_names:
        return ""
    lines = [f"- {label}: {shown(name)}" for label, name in enumerate(class_names[:_MOST_NAMES])]
    more = len(class_names) - _MOST_NAMES
    lines += [f"- and {more:,} more (`class_names` in `manifest.json`)"] if more > 0 else []
    return "## Classes\n\nThe column `label` has their ids.\n\n" + "\n".join(lines) + "\n"


def training_section(text: str, scores: Mapping[str, float] | None, title: str) -> str:
    """The section on training data and scores; empty if neither is known."""
    table = _table(scores or {}, title)
    return f"## {TRAINING}\n\n{text}\n\n{table}".rstrip() + "\n" if text or table else ""


def completed(card: str, facts: CardFacts) -> str:
    """The card as published: the snippet names the repository, and licence, tokenizer and pictures are filled in."""
    metadata, text = _split(card)
    if "configs" not in metadata:
        metadata.setdefault("library_name", "codegrid")
    if facts.license:
        metadata["license"] = facts.license
    if facts.base_tokenizer and "configs" not in metadata:  # a data set has no base model
        metadata["base_model"] = facts.base_tokenizer
    text = _naming(text, facts)
    shown = [f"![{Path(name).stem}]({name})" for name in facts.pictures if f"({name})" not in text]
    if shown:
        head, mark, rest = text.partition("\n## ")  # insert after the first paragraph
        text = f"{head.rstrip()}\n\n" + "\n\n".join(shown) + f"\n{mark}{rest}"
    if "\n## Install" not in text and "\n## Use\n" in text:
        head, mark, rest = text.partition("\n## Use\n")
        text = f"{head}{_INSTALL}{mark}{rest}"
    sections = [text.rstrip()]
    if facts.base_tokenizer:
        sections.append(f"The tokenizer is [{facts.base_tokenizer}](https://huggingface.co/{facts.base_tokenizer}).")
    if "\n## Licence" not in text:
        stated = f"`{metadata['license']}`." if metadata.get("license") else "Not stated."
        sections.append(f"## Licence\n\n{stated}")
    return _with_metadata(metadata, "\n\n".join(sections) + "\n")


def with_evaluation(
    card: str, name: str, rows: Sequence[Mapping[str, Any]], data: str, notes: Sequence[str] = ()
) -> str:
    """The card with an evaluation's table at its end; it replaces an older table of that name.

    Args:
        name: name of the evaluation, such as "generation". `evaluation/NAME.json` has all that is needed to repeat it.
        rows: one row is shown as lines of name and value, several as lines of a table.
        data: the images that it was computed on.
        notes: sentences below the table, such as which pictures were left out.
    """
    begin, end = (f"<!-- codegrid evaluation: {name}{mark} -->" for mark in ("", ", end"))
    title = f"Evaluation of {name}"
    table = _table({key: value for key, value in rows[0].items() if value is not None}, title)
    if len(rows) > 1:
        table = wide_table(rows)
    said = "".join(f"\n{note}\n" for note in notes)
    section = f"{begin}\n## {title}\n\nOn `{data}` (`evaluation/{name}.json` says how).\n\n{table}{said}{end}\n"
    older = re.compile(re.escape(begin) + ".*?" + re.escape(end) + r"\n?", re.DOTALL)
    return f"{older.sub('', card).rstrip()}\n\n{section}"


def wide_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a line per row, of numbers and words. A column that is None in all rows is dropped."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    cells = [[_cell(row[name]) for name in names] for row in rows]
    lines = [names, ["---"] * len(names), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _naming(text: str, facts: CardFacts) -> str:
    """The text with the repository's name in its snippets; each library has its own way to name a subfolder."""
    data_files = f', data_files="{facts.subfolder}/data/*.parquet"' if facts.subfolder else ""
    text = text.replace(f'load_dataset("{PLACEHOLDER}"', f'load_dataset("{facts.repo_id}"{data_files}')
    subfolder = f', subfolder="{facts.subfolder}"' if facts.subfolder else ""
    return text.replace(f'"{PLACEHOLDER}"', f'"{facts.repo_id}"{subfolder}')


def _trained_on_codes(codes: str | None, tokenizer: str | None, imported: bool) -> str:
    if codes is None:
        return ""
    by = f", made by {'' if imported else 'the tokenizer '}`{tokenizer}`." if tokenizer else "."
    return f"Trained on the codes `{codes}`{by}"


def _sizes(axes: Mapping[str, int]) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in axes.items())


def _training_of(card: str) -> str:
    """The text of a card's section on training."""
    _, mark, rest = card.partition(f"\n## {TRAINING}\n")
    return rest.split("\n## ")[0].strip() if mark else ""


def _base_model(tokenizer: str | None) -> dict[str, str]:
    """The Hub's link to the tokenizer, if the name is a repository's and not that of a local folder."""
    on_hub = tokenizer is not None and _REPO_NAME.fullmatch(tokenizer) and not Path(tokenizer).exists()
    return {"base_model": tokenizer} if on_hub else {}


def _base_model_of(card: str) -> dict[str, str]:
    base_model = _split(card)[0].get("base_model")
    return {"base_model": base_model} if base_model else {}


def _split(card: str) -> tuple[dict[str, Any], str]:
    """A card's metadata and its text."""
    found = re.match(r"---\n(.*?)\n---\n+", card, re.DOTALL)
    if not found:
        return {}, card
    metadata = yaml.safe_load(found[1])
    return (metadata if isinstance(metadata, dict) else {}), card[found.end() :]


def _card(metadata: dict[str, Any], title: str, *sections: str) -> str:
    text = "\n".join(section for section in sections if section)
    return _with_metadata(metadata, f"# {title}\n\n{text}")


def _with_metadata(metadata: dict[str, Any], text: str) -> str:
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---\n\n{text}"


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else number(value)


def _table(scores: Mapping[str, Any], title: str) -> str:
    kept = {name: value for name, value in scores.items() if isinstance(value, str) or math.isfinite(value)}
    rows = [f"| {name} | {_cell(value)} |" for name, value in kept.items()]
    return "\n".join([f"| {title} | |", "|---|---|", *rows, ""]) if rows else ""


def cards_of(folders: dict[str, Path]) -> dict[str, str]:
    """The cards of folders by the names of the parts, of those that have one."""
    files = {part: folder / "README.md" for part, folder in folders.items()}
    return {part: file.read_text(encoding="utf-8") for part, file in files.items() if file.is_file()}
