"""`codegrid evaluate inpainting`: how well a pipeline fills holes, beside simpler ways and the tokenizer's bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from codegrid.errors import require
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.evaluation import hole_filling
from codegrid.pipelines.evaluation.features import FeatureCache, FeatureNetName, load_feature_net
from codegrid.pipelines.evaluation.hole_scores import HoleResults, Pictures, Scorer, read_pictures
from codegrid.pipelines.evaluation.holes import HoleName, hole_masks
from codegrid.pipelines.evaluation.ledger import Ledger
from codegrid.pipelines.evaluation.left_out import describe_few, describe_left_out
from codegrid.pipelines.evaluation.picture_sets import check_number
from codegrid.pipelines.evaluation.results import circumstances, describe_data, output_folder, save_rows
from codegrid.pipelines.evaluation.run_pictures import Part, choose_pictures
from codegrid.pipelines.evaluation.sweep import check_settings
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.generation.to_folder import weights_fingerprint
from codegrid.pipelines.pictures.grids import labelled_rows
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.system.files import write_atomically
from codegrid.pipelines.system.numbers import number
from codegrid.prior.architectures import architecture_of
from codegrid.prior.sampling import SamplingConfig
from codegrid.prior.way import way_to_draw
from codegrid.tokenizer.images import check_colours, to_model, to_pil

NAME = "inpainting"
_LEAST = 4
_MOST_TRAINING = 10_000  # training pictures, spread evenly
_IN_SHEET, _GREY = 8, 128  # pictures of a sheet, and the colour of what is drawn again


@dataclass(frozen=True)
class Request:
    """The options of an evaluation of inpainting; see `evaluate_inpainting`.

    Raises:
        CodegridError: a number is out of its range, or a hole is unknown.
    """

    pipeline: str
    data: DataConfig
    holes: tuple[HoleName, ...]
    keep: tuple[float, ...]
    num_images: int
    num_samples: int
    class_labels: bool
    sampling: dict[str, float]
    order: str | None
    num_steps: int | None
    seed: int
    batch_size: int
    biharmonic: bool
    training_split: str | None

    def __post_init__(self) -> None:
        known = get_args(HoleName)
        unknown = [hole for hole in self.holes if hole not in known]
        require(not unknown, f"holes names {', '.join(unknown)}.", f"Choose of {', '.join(known)}.")
        is_something = bool(self.holes or self.keep)
        require(is_something, "There is nothing to score: no hole, and no share to keep.", "Give --holes or --keep.")
        for share in self.keep:
            require(0 <= share < 1, f"keep has {share}.", "Give shares of at least 0 and below 1.")
        for name, least in {"num_images": _LEAST, "seed": 0, "batch_size": 1}.items():
            value = getattr(self, name)
            require(value >= least, f"{name} is {value}.", f"Give at least {least}.")
        samples, most = self.num_samples, hole_filling.MOST_SAMPLES
        require(1 <= samples <= most, f"num_samples is {samples}.", f"Give 1 to {most}.")

    def check_pipeline(self, pipe: ImageGenerationPipeline) -> SamplingConfig:
        """The settings of sampling, if this pipeline can fill holes so.

        Raises:
            CodegridError: it cannot.
        """
        check_colours(pipe.tokenizer.config.backbone_config.in_channels, "`codegrid evaluate inpainting`")
        settings = replace(pipe.sampling, **self.sampling)
        check_settings([settings], pipe.sequence, pipe.prior)
        record = architecture_of(pipe.prior)
        reads = "before" if record is None else record.reads
        require(
            reads != "before",
            f"This pipeline's prior ({type(pipe.prior).__name__}) knows raster order only, and cannot fill a hole.",
            "Train one that does: `codegrid train-prior ... --order annealed`.",
        )
        way_to_draw(reads, pipe.sequence, 1, self.order, self.num_steps, 0.0)
        return settings


def evaluate_inpainting(
    pipeline: str,
    data: DataConfig,
    output_dir: str | None = None,
    holes: tuple[HoleName, ...] = ("centre", "right", "random", "strokes"),
    keep: tuple[float, ...] = (0.25, 0.5, 0.75),
    num_images: int = 200,
    num_samples: int = 4,
    class_labels: bool = True,
    guidance_scale: float | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    order: Literal["raster", "random", "halton"] | None = None,
    num_steps: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    biharmonic: bool = True,
    training_split: str | None = None,
    feature_net: FeatureNetName = "inception",
    feature_weights: str | None = None,
    cache_dir: str | None = None,
    part: Part = "auto",
) -> Path:
    """Score how a pipeline fills holes, beside biharmonic inpainting and the tokenizer's reconstruction.

    A row for each hole and way to fill it, and one for each share of --keep (variations). "reconstruction" is the
    tokenizer's of the true picture, a bound; "nearest training" is the training picture that is nearest outside of the
    hole: a real picture, and no target. The same command resumes after a stop.

    Args:
        pipeline: folder or Hub name; its prior was trained with --order annealed or random, or is masked.
        data: the pictures; they should be none that the pipeline was trained on.
        output_dir: folder for inpainting.json, a picture of results for each hole, and the results. None is a folder
            beside the pipeline's. The pipeline's card gets the table.
        holes: centre (the middle half of each side), right (the right half), random (half of the cells of the code
            grid), strokes (thin lines).
        keep: shares of the codes that variations keep.
        num_images: at most so many pictures, spread evenly over the data.
        num_samples: results a picture.
        class_labels: draw as the picture's own class, where the pipeline has it; else as the null class.
        guidance_scale: scale of classifier-free guidance, with classes; None is the pipeline's, as for the next two.
        temperature: divides the logits.
        top_p: sample from the likeliest codes that together reach this probability.
        order: in which the codes are drawn; None is raster order, and halton with num_steps.
        num_steps: draw several codes a step, in this many steps; None is a code a step (of a masked prior 12 steps).
        seed: result i of a picture depends on seed, the picture's place in the data and i alone; so do random holes.
        batch_size: results drawn at once.
        biharmonic: compare with scikit-image's biharmonic inpainting.
        training_split: split of the training pictures, for "nearest training"; --part held_out knows them.
        feature_net: inception gives FID; another net's distance carries its name.
        feature_weights: the net's weights file; by default it is looked for in torch hub's downloads.
        cache_dir: cache folder for features, keyed by image content; by default ~/.cache/codegrid/features.
        part: which of the pictures, as in `codegrid evaluate reconstruction`.

    Raises:
        DataError: the pictures cannot be read as configured, or too few could be used.
        LoadingError: the pipeline, the feature net or scikit-image cannot be loaded.
        OutputError: the output folder holds something else of these names.
        CodegridError: the prior knows raster order only, or an option is out of its range.
    """
    given = {"guidance_scale": guidance_scale, "temperature": temperature, "top_p": top_p}
    given = {name: value for name, value in given.items() if value is not None}
    request = Request(
        *(pipeline, data, tuple(holes), tuple(keep), num_images, num_samples, class_labels, given),
        *(order, num_steps, seed, batch_size, biharmonic, training_split),
    )
    return _evaluate(request, output_folder(output_dir, pipeline), part, (feature_net, feature_weights, cache_dir))


def _evaluate(request: Request, folder: Path, part: Part, net: tuple[Any, Any, Any]) -> Path:
    Ledger(NAME, {}).check(folder)
    if request.biharmonic and request.holes:
        hole_filling.biharmonic_of_scikit_image()
    accelerator = make_accelerator()
    processes = accelerator.num_processes
    require(processes == 1, f"This evaluation was started in {processes} processes.", "Start it in one.")
    pipe = ImageGenerationPipeline.from_pretrained(request.pipeline).to(accelerator.device)
    settings = request.check_pipeline(pipe)
    chosen = choose_pictures(request.data, str(Path(request.pipeline) / "tokenizer"), part)
    check_number(len(chosen.source), "pictures", _LEAST)
    others = chosen.training
    if request.training_split is not None:
        others = open_images(replace(request.data, split=request.training_split, limit=None))
    cache = FeatureCache(load_feature_net(*net[:2], accelerator.device), net[2])
    tqdm.write("\n".join([f"Filling holes in {chosen.source.description}.", *chosen.said]))
    pictures = read_pictures(pipe, chosen.source, request.num_images, _LEAST, request.class_labels)
    training = None
    if others is not None and request.holes:
        training = read_pictures(pipe, others, _MOST_TRAINING, 1, False).pixels
    made_with = _made_with(request, pipe, settings, pictures, chosen.source.fingerprint)
    scorer = Scorer(pictures, cache, chosen.source.class_names)
    notes = [*describe_left_out(pictures.without), *pictures.said, *scorer.said]
    notes += describe_few({"pictures": len(pictures.rows)}, scorer.real.shape[1], cache.net.names[0])
    record = {
        **{"pipeline": request.pipeline, **made_with, "batch_size": request.batch_size, "judge": scorer.judged()},
        "data": {
            **describe_data(chosen.source, request.data.source, request.data.split, pipe.tokenizer),
            "part": chosen.part,
        },
        **{"feature_net": cache.net.describe(), "left_out": pictures.without, "notes": notes},
        **circumstances(accelerator),
    }
    identity = {**made_with, "feature_net": cache.net.describe(), "part": chosen.part}
    ledger = Ledger(NAME, {**identity, "num_training": None if training is None else len(training)}, ("hole", "method"))
    results = HoleResults(folder, pictures, made_with)
    for job in _jobs(request, pipe, pictures, training):
        made = results.of(job.hole, job.method, job.masks, job.make, job.samples)
        row = {"hole": job.hole, "method": job.method, **scorer.row(made, job.masks)}
        save_rows(ledger, [row], record, folder, request.pipeline, notes)
        tqdm.write(_said(row))
        if job.method in ("pipeline", "variations"):
            _write_sheet(folder / f"{job.hole.replace(' ', '-')}.png", pictures, job.masks, made)
    tqdm.write("\n".join([*notes, *ledger.said]))
    tqdm.write(f"The table, and with what it was made, is in {folder / f'{NAME}.json'}.")
    return folder


def _made_with(
    request: Request, pipe: ImageGenerationPipeline, settings: SamplingConfig, pictures: Pictures, fingerprint: str
) -> dict[str, Any]:
    """What the results depend on."""
    return {
        "tokenizer_fingerprint": pipe.tokenizer.fingerprint(),
        "prior_fingerprint": weights_fingerprint(pipe.prior),
        "sampling": settings.to_dict(),
        "order": request.order,
        "num_steps": request.num_steps,
        "num_samples": request.num_samples,
        "class_labels": pictures.conditions is not None,
        "seed": request.seed,
        "device_type": pipe.device.type,
        "pictures": {"fingerprint": fingerprint, "num_images": len(pictures.rows)},
    }


def _said(row: dict[str, Any]) -> str:
    shown = {name: value if isinstance(value, str) else number(value) for name, value in row.items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items() if row[name] is not None)


@dataclass(frozen=True)
class _Job:
    """A row: a hole (or "keep 0.5"), a way to fill it, and the function that does it for some of the pictures."""

    hole: str
    method: str
    masks: np.ndarray | None
    make: Callable[[slice], Tensor]
    samples: int


def _jobs(request: Request, pipe: ImageGenerationPipeline, pictures: Pictures, training: Tensor | None) -> list[_Job]:
    """The rows in order."""
    options = {**request.sampling, "order": request.order, "num_steps": request.num_steps}
    options |= {"batch_size": request.batch_size}
    samples, seed = request.num_samples, request.seed
    size, grid = pipe.tokenizer.config.preprocessing_config.size, pipe.sequence.grid_shape
    jobs = []

    def drawn(hole: np.ndarray | float) -> Callable[[slice], Tensor]:
        def make(some: slice) -> Tensor:
            part, labels = hole if isinstance(hole, float) else hole[some], pictures.conditions_of(some)
            settings = options if labels is not None else {**options, "guidance_scale": None}  # none leads to no class
            rows = pictures.rows[some]
            return hole_filling.drawn_again(pipe, pictures.pixels[some], part, rows, labels, samples, seed, settings)

        return make

    for hole in request.holes:
        masks = hole_masks(hole, pictures.rows, size, grid, seed)

        def whole(some: slice, masks: np.ndarray = masks) -> Tensor:
            return hole_filling.reconstructed(pipe, pictures.pixels[some], masks[some], pictures.conditions_of(some))

        def smooth(some: slice, masks: np.ndarray = masks) -> Tensor:
            return hole_filling.biharmonic(pictures.pixels[some], masks[some])

        def copied(some: slice, masks: np.ndarray = masks) -> Tensor:
            assert training is not None
            return hole_filling.nearest_training(pictures.pixels[some], masks[some], training)

        jobs.append(_Job(hole, "reconstruction", masks, whole, 1))
        jobs += [_Job(hole, "biharmonic", masks, smooth, 1)] * request.biharmonic
        jobs += [_Job(hole, "nearest training", masks, copied, 1)] * (training is not None)
        jobs.append(_Job(hole, "pipeline", masks, drawn(masks), samples))
    return jobs + [_Job(f"keep {share:g}", "variations", None, drawn(float(share)), samples) for share in request.keep]


def _write_sheet(path: Path, pictures: Pictures, masks: np.ndarray | None, results: Tensor) -> None:
    """A row a picture: the picture, what was given (grey is drawn again), and the results."""
    lines = []
    for place in range(min(_IN_SHEET, len(results))):
        picture = pictures.pixels[place]
        shown = [picture]
        if masks is not None:
            shown.append(picture.masked_fill(torch.from_numpy(masks[place])[..., None], _GREY))
        images = to_pil(to_model(torch.stack([*shown, *results[place]])))
        lines.append((pictures.name_of(place), images))
    sheet = labelled_rows(lines)
    write_atomically(path, lambda aside: sheet.save(aside, format="PNG"))
