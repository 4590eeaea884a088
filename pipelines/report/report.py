"""`codegrid report`: shows a run as one self-contained page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from codegrid.pipelines.artifacts.index import MODEL_INDEX_NAME
from codegrid.pipelines.artifacts.loading import LoadingError, load_tokenizer, refuse_without_pictures
from codegrid.pipelines.compression.beside import NAME as COMPRESSION
from codegrid.pipelines.compression.beside import curves, sheet_name
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.data.sources import split_images
from codegrid.pipelines.evaluation.generation import sweep_charts
from codegrid.pipelines.evaluation.results import FOLDER_NAME, circumstances
from codegrid.pipelines.evaluation.tokenizer import bits_per_pixel
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.pictures import markup
from codegrid.pipelines.pictures.charts import Chart, Series
from codegrid.pipelines.pictures.grids import class_sheet
from codegrid.pipelines.report.codes import code_sheet, codebook_atlas, coded_images, enlarged, usage
from codegrid.pipelines.report.summary import summary
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.system.files import write_text
from codegrid.pipelines.system.numbers import share
from codegrid.pipelines.training.claim import CONFIG_NAME, IDENTITY_NAME
from codegrid.pipelines.training.run import read_metrics
from codegrid.prior import load_prior
from codegrid.prior.codes import CodesError, read_manifest
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.fields import from_dict

_EXAMPLES = 256  # images for the atlas and the usage
_ATLAS = 96
_CLASSES, _PER_CLASS = 20, 8
_SWEPT = {"guidance_scale", "temperature"}  # of a pipeline's samples; pictures of a folder have neither
_NOT_CHARTED = {"num_images", "num_skipped"}

Section = tuple[str, str]


def report(run: str, /, output: str | None = None) -> Path:
    """Write a run's page: curves, pictures, maps and atlas of the codes, samples by class, evaluations, configuration.

    Args:
        run: folder of a training run of either stage, of a pipeline, or one that holds them, such as runs/quickstart.
        output: the page's file; by default report.html in the run's folder.

    Raises:
        LoadingError: the folder holds no run.
    """
    folder = Path(run)
    accelerator = make_accelerator()
    parts = {part: folder / part for part in ("tokenizer", "prior", "pipeline") if (folder / part).is_dir()}
    is_pipeline = (folder / MODEL_INDEX_NAME).is_file()
    if is_pipeline or (folder / CONFIG_NAME).is_file():
        stage = "pipeline" if is_pipeline else str(_read(folder / CONFIG_NAME).get("stage"))
        parts, title = {stage: folder}, f"{folder.resolve().name}: {stage}"
    elif parts:
        title = folder.resolve().name
    else:
        raise LoadingError(
            f"{folder} holds no run.",
            f"Name a folder with {CONFIG_NAME} or {MODEL_INDEX_NAME}, or one of such folders.",
        )
    sections: list[Section] = []
    if (folder / "report.json").is_file():
        sections.append(("Summary", summary(_read(folder / "report.json"), _pictures(parts))))
    makers = {"tokenizer": _tokenizer_sections, "prior": _prior_sections, "pipeline": _pipeline_sections}
    for part, path in parts.items():
        print(f"Looking at {path}.")
        several = len(parts) > 1
        found = makers[part](path, accelerator.device, alone=not several)
        sections += [(f"{part.capitalize()}: {name}" if several else name, body) for name, body in found]
    sections.sort(key=_place)  # stable: samples first, settings last
    made = circumstances(accelerator)
    subtitle = f"{folder}, codegrid {made['versions'].get('codegrid', '')}, commit {made['commit'] or 'unknown'}"
    path = Path(output) if output else folder / "report.html"
    write_text(path, markup.page(title, subtitle, sections))
    print(f"The page is {path}.")
    return path


def _place(section: Section) -> int:
    """Summary and samples come first, and settings last: a reader looks before he reads."""
    name = section[0].rpartition(": ")[2]
    return {"Summary": 0, "Samples": 1, "Configuration": 3}.get(name, 2)


def _pictures(parts: dict[str, Path]) -> str:
    """What the first run with a note of it was made from, for people; "" if none has one."""
    for path in parts.values():
        if (path / IDENTITY_NAME).is_file():
            return str(_read(path / IDENTITY_NAME).get("description", ""))
    return ""


def _tokenizer_sections(folder: Path, device: Any, alone: bool) -> list[Section]:
    config = _read(folder / CONFIG_NAME)
    sections = _training_sections(folder)
    if not (folder / "config.json").is_file():
        return [("Codes", markup.paragraph("Training is not finished: there is no model to show.")), *sections]
    model = load_tokenizer(folder).to(device)
    sections.insert(0, ("Model", markup.tiles(_tokenizer_facts(model, folder))))
    if (channels := model.config.backbone_config.in_channels) not in (1, 3):
        text = f"The pictures have {channels} channels: there are maps of codes for grey and colour."
        return [*sections, ("Codes", markup.paragraph(text))]
    try:
        train, held_out = split_images(from_dict(DataConfig, config["data"], "data"))
        coded = coded_images(model, held_out or train, _EXAMPLES)
    except (DataError, ValueError, OSError) as error:
        return [*sections, ("Codes", markup.paragraph(f"The images cannot be read, so there are no maps: {error}"))]
    if coded is None:
        return [*sections, ("Codes", markup.paragraph("None of the images could be used."))]
    size = model.config.quantizer_config.codebook_size
    maps = markup.paragraph("A colour is a code, the same in all maps.")
    maps += markup.picture(code_sheet(coded), "images, code maps, reconstructions and differences")
    shares = usage(coded, size)
    used = max(1, int((shares > 0).sum()))
    points = [(rank, 100 * shares[rank].item()) for rank in range(0, used, max(1, used // 400))]
    rank_chart = Chart(f"Share of each code in {len(coded.images)} images, %", "rank", [Series("share", points)])
    entries = codebook_atlas(coded, _ATLAS)
    text = "The most used codes" + (" of the first level" if coded.codes.shape[-1] > 1 else "")
    text += (
        ": on the left, the mean of the image patches that each stands for; on the right, a reconstruction with a "
        "frame around a place with this code, the one whose patch is nearest to that mean; below, the code and its "
        "share of the positions."
    )
    atlas = markup.paragraph(text) + f'<div class="atlas">{"".join(map(_atlas_cell, entries))}</div>'
    body = maps + markup.subheading("Usage") + markup.charts([rank_chart])
    return [*sections[:-1], ("Codes", body), ("Codebook atlas", atlas), sections[-1]]


def _atlas_cell(entry: Any) -> str:
    images = markup.picture(enlarged(entry.mean), f"mean patch of code {entry.code}")
    images += markup.picture(entry.context, f"code {entry.code} in a reconstruction")
    return f"<figure><div>{images}</div><figcaption>{entry.code} · {share(entry.share)}</figcaption></figure>"


def _tokenizer_facts(model: VQModel, folder: Path) -> dict[str, Any]:
    last = [line for line in read_metrics(folder) if line["kind"] == "validation"][-1:]
    return {
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M",
        "codes an image": "x".join(map(str, model.config.codes_shape)),
        "codebook": model.config.quantizer_config.codebook_size,
        "bits a pixel": bits_per_pixel(model),
        **{name: line[key] for line in last for name, key in _SHOWN.items() if key in line},
    }


_SHOWN = {"PSNR, dB": "psnr", "SSIM": "ssim", "LPIPS": "lpips", "codes in use": "code_usage"}


def _prior_sections(folder: Path, device: Any, alone: bool) -> list[Section]:
    sections = _training_sections(folder)
    if not alone:  # the pipeline beside it shows the samples
        return sections
    try:
        prior, sequence = load_prior(folder)
        manifest = read_manifest(Path(_read(folder / CONFIG_NAME)["codes"]))
        refuse_without_pictures(folder)
        tokenizer = load_tokenizer(_read(folder / CONFIG_NAME)["tokenizer"] or manifest.tokenizer)
        pipe = ImageGenerationPipeline(tokenizer, prior, sequence)
    except (LoadingError, CodesError, ValueError, OSError) as error:
        return [("Samples", markup.paragraph(f"There are no samples: {error}")), *sections]
    return [("Samples", _samples(pipe.to(device))), *sections]


def _pipeline_sections(folder: Path, device: Any, alone: bool) -> list[Section]:
    try:
        samples = _samples(ImageGenerationPipeline.from_pretrained(folder).to(device))
    except LoadingError as error:
        samples = markup.paragraph(f"There are no samples: {error}")
    return [("Samples", samples), *_evaluations(folder)]


def _samples(pipe: ImageGenerationPipeline) -> str:
    """Samples with fixed seeds, a row per class."""
    names = pipe.class_names
    labels = None if names is None else [label for label in range(len(names))[:_CLASSES] for _ in range(_PER_CLASS)]
    images = pipe(labels, num_images=None if labels else 4 * _PER_CLASS, seed=0, progress=False).images
    sheet = class_sheet(images, None if names is None else [names[label] for label in labels or ()], labels)
    settings = ", ".join(f"{name} {markup.show(value)}" for name, value in vars(pipe.sampling).items())
    return markup.paragraph(f"Seed 0; {settings}.") + markup.picture(sheet, "samples")


def _training_sections(folder: Path) -> list[Section]:
    """Curves, the training's pictures, evaluations and, last, the configuration."""
    sections: list[Section] = []
    curves = metric_charts(read_metrics(folder))
    sections.append(("Curves", markup.charts(curves) if curves else markup.paragraph("There are no metrics yet.")))
    pictures = sorted((folder / "pictures").glob("*.png"))
    newest = {path.stem.rpartition("-")[0]: path for path in pictures}
    if newest:
        shown = (
            markup.picture(Image.open(path), path.stem, f"{name}, step {int(path.stem.rpartition('-')[2])}")
            for name, path in newest.items()
        )
        sections.append(("Pictures of training", "".join(shown)))
    sections += _evaluations(folder)
    return [*sections, ("Configuration", markup.folded("All settings", markup.pairs(_read(folder / CONFIG_NAME))))]


def metric_charts(lines: list[dict[str, Any]]) -> list[Chart]:
    """A chart per metric, with lines for training and validation if both have it."""
    names = dict.fromkeys(name for line in lines for name in line if name not in {"step", "kind", *_NOT_CHARTED})
    charts = []
    for name in names:
        series = [
            Series(kind, [(line["step"], line[name]) for line in lines if line["kind"] == kind and name in line])
            for kind in ("train", "validation")
        ]
        if any(value for one in series for _, value in one.points):  # leave out charts of zeros: few runs skip steps
            charts.append(Chart(name, "step", [one for one in series if one.points]))
    return charts


def _evaluations(folder: Path) -> list[Section]:
    found = []
    for path in sorted((folder / FOLDER_NAME).glob("*.json")):
        result = _read(path)
        rest = {name: value for name, value in result.items() if name not in ("kind", "results", "notes")}
        rows = result["results"]
        about = result.get("data", {}).get("description") or result.get("rows", "")
        body = markup.paragraph(f"On {about}.") if about else ""
        is_sweep = result["kind"] == "generation" and len(rows) > 1 and all(row.keys() >= _SWEPT for row in rows)
        charts = sweep_charts(rows) if is_sweep else curves(rows) if result["kind"] == COMPRESSION else []
        body += (markup.charts(charts) if charts else "") + markup.table(rows)
        body += "".join(map(markup.paragraph, result.get("notes", ())))
        sheet = path.with_name(sheet_name(path.stem))
        if result["kind"] == COMPRESSION and sheet.is_file():
            body += markup.picture(Image.open(sheet), "pictures by each codec, at the bytes nearest to ours")
        title = f"Evaluation of {result['kind']}" + (", pictures in their own size" if result.get("whole") else "")
        found.append((title, body + markup.folded("How it was made", markup.pairs(rest))))
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LoadingError(f"{path} cannot be read: {str(error).rstrip('.')}.", "Mend it, or move it away.") from error
