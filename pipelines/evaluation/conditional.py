"""`codegrid evaluate conditional`: what a prior makes of pictures or texts, beside plain ways and a bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from codegrid.errors import require
from codegrid.pipelines.codes.conditions import COLUMN, FOLDER, open_conditions
from codegrid.pipelines.data.batches import CENTRE, Pictures, picture_reader
from codegrid.pipelines.data.degradations import degradation, is_known, tells_a_part, with_part
from codegrid.pipelines.data.records import DataConfig, DataError, ImageSource
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.evaluation.conditional_scores import Pairs, Scorer
from codegrid.pipelines.evaluation.features import FeatureCache, FeatureNetName, load_feature_net
from codegrid.pipelines.evaluation.floors import floors_of, nearest_pairs
from codegrid.pipelines.evaluation.ledger import Ledger
from codegrid.pipelines.evaluation.left_out import describe_few, describe_left_out, left_out
from codegrid.pipelines.evaluation.picture_sets import check_number, spread
from codegrid.pipelines.evaluation.results import circumstances, describe_data, output_folder
from codegrid.pipelines.evaluation.run_pictures import Part, choose_pictures
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.generation.to_folder import weights_fingerprint
from codegrid.pipelines.generation.wanted import condition_model, picture_part
from codegrid.pipelines.pictures.grids import labelled_rows
from codegrid.pipelines.system.devices import evaluating, make_accelerator
from codegrid.pipelines.system.files import write_atomically
from codegrid.pipelines.system.numbers import number
from codegrid.prior.conditions import TextCondition, parts_of
from codegrid.prior.sampling import image_generator
from codegrid.tokenizer.images import check_colours, to_model, to_pil, to_uint8
from codegrid.tokenizer.moving import to_device

NAME = "conditional"
_LEAST, _MOST_TRAINING, _IN_SHEET, _BATCH = 4, 10_000, 10, 32


@dataclass(frozen=True)
class _Way:
    """How the conditions are made, for all sources of pictures."""

    condition: str | None
    captions: str | None
    pipe: ImageGenerationPipeline

    def read(self, source: ImageSource, data: DataConfig, most: int) -> tuple[Pairs, dict[str, str]]:
        """At most `most` pictures of a source with their conditions, and why others were left out."""
        pipe, text = self.pipe, self.text
        found = open_conditions(self.condition, self.captions, source, data, pipe.tokenizer, text=text)
        if (part := picture_part(pipe.sequence.conditioning)) is not None:
            model = condition_model(pipe, part)
            found = replace(found, model=None if model is pipe.tokenizer else model)
        read = found.reader(pipe.tokenizer, picture_reader(pipe.tokenizer, CENTRE), list(CENTRE))
        kept, skipped = [], {}
        for picture in Pictures(source, read).in_order(spread(len(source), most)):
            if picture.pixels is None:
                skipped[picture.source_id] = f"{picture.reason}: {picture.detail}"
            else:
                kept.append(picture)
        if not kept:
            raise DataError(
                " ".join(["No picture could be used with its condition.", *describe_left_out(left_out(skipped))]),
                "Give other pictures; `codegrid look` shows what is read.",
            )
        pairs = Pairs(
            [picture.source_id for picture in kept],
            np.concatenate([picture.pixels for picture in kept]),
            None if self.condition is None else np.concatenate([picture.condition for picture in kept]),
            None if self.captions is None else [str(picture.text) for picture in kept],
            np.array([picture.label for picture in kept]),
        )
        return pairs, skipped

    @property
    def text(self) -> TextCondition | None:
        parts = parts_of(self.pipe.sequence.conditioning)
        return next((part for part in parts if isinstance(part, TextCondition)), None)


def evaluate_conditional(
    pipeline: str,
    data: DataConfig,
    output_dir: str | None = None,
    condition: str | None = None,
    captions: str | None = None,
    num_images: int = 200,
    num_samples: int = 1,
    class_labels: bool = True,
    guidance_scale: float | None = None,
    part_guidance: tuple[float, ...] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    training_split: str | None = None,
    feature_net: FeatureNetName = "inception",
    feature_weights: str | None = None,
    cache_dir: str | None = None,
    part: Part = "auto",
) -> Path:
    """Score what a pipeline makes of pictures or texts that it follows, beside plain ways and the tokenizer's bound.

    A row for each way: "pipeline"; the plain ways of the kind of condition (bicubic and Lanczos, non-local means, mean
    chroma); "nearest training pair", the training picture whose condition is nearest (of the picture's class, where the
    prior is given it); and "reconstruction", the tokenizer's of the true picture, a bound. Of downscale and grey the
    pipeline and the bound are there again with "condition kept", as `pipe(keep_condition=True)` gives it.

    Args:
        pipeline: folder or Hub name of a pipeline whose prior follows pictures, texts, or both.
        data: the true pictures; they should be none that the pipeline was trained on.
        output_dir: folder for conditional.json and conditional.png. None is a folder beside the pipeline's.
        condition: how the pictures to follow are made, as in `codegrid tokenize-dataset`; None is as in training.
        captions: where the texts come from, as in `codegrid tokenize-dataset`; a prior of texts needs it.
        num_images: at most so many pictures, spread evenly over the data.
        num_samples: results a picture.
        class_labels: give each picture's class, too, where the prior follows both.
        guidance_scale: scale of classifier-free guidance; None is the pipeline's, as for the next three.
        part_guidance: a scale for each part of what the prior follows.
        temperature: divides the logits.
        top_p: sample from the likeliest codes that together reach this probability.
        seed: result i of a picture depends on seed, the picture's place in the data and i alone.
        batch_size: images drawn at once; None is as in `codegrid generate`.
        training_split: split of the training pictures, for "nearest training pair"; --part held_out knows them.
        feature_net: inception gives FID; another net's distance carries its name.
        feature_weights: the net's weights file; by default it is looked for in torch hub's downloads.
        cache_dir: cache folder for features, keyed by image content; by default ~/.cache/codegrid/features.
        part: which of the pictures, as in `codegrid evaluate reconstruction`.

    Raises:
        DataError: the pictures or their conditions cannot be read, or too few could be used.
        LoadingError: the pipeline or the feature net cannot be loaded.
        OutputError: the output folder holds something else of these names.
        CodegridError: the prior follows neither pictures nor texts, or an option is out of its range.
    """
    for name, value, least in [("num_images", num_images, _LEAST), ("num_samples", num_samples, 1)]:
        require(value >= least, f"{name} is {value}.", f"Give at least {least}.")
    given = {"guidance_scale": guidance_scale, "part_guidance": part_guidance}
    given |= {"temperature": temperature, "top_p": top_p}
    request = _Request(
        *(pipeline, data, condition, captions, num_images, num_samples, class_labels),
        *({name: value for name, value in given.items() if value is not None}, seed, batch_size, training_split, part),
    )
    return _evaluate(request, output_folder(output_dir, pipeline), (feature_net, feature_weights, cache_dir))


@dataclass(frozen=True)
class _Request:
    """The options of `evaluate_conditional`."""

    pipeline: str
    data: DataConfig
    condition: str | None
    captions: str | None
    num_images: int
    num_samples: int
    class_labels: bool
    sampling: dict[str, Any]
    seed: int
    batch_size: int | None
    training_split: str | None
    part: Part


def _evaluate(request: _Request, folder: Path, net: tuple[Any, Any, Any]) -> Path:
    Ledger(NAME, {}).check(folder)
    accelerator, data = make_accelerator(), request.data
    processes = accelerator.num_processes
    require(processes == 1, f"This evaluation was started in {processes} processes.", "Start it in one.")
    pipe = ImageGenerationPipeline.from_pretrained(request.pipeline).to(accelerator.device)
    check_colours(pipe.tokenizer.config.backbone_config.in_channels, "`codegrid evaluate conditional`")
    pipe.sampling = replace(pipe.sampling, **request.sampling)
    way = _way(pipe, request.condition, request.captions)
    chosen = choose_pictures(data, str(Path(request.pipeline) / "tokenizer"), request.part)
    check_number(len(chosen.source), "pictures", _LEAST)
    cache = FeatureCache(load_feature_net(*net[:2], accelerator.device), net[2])
    following = f"Following {pipe.sequence.conditioning.describe()}: {chosen.source.description}."
    tqdm.write("\n".join([following, *chosen.said]))
    pairs, skipped = way.read(chosen.source, data, request.num_images)
    known = _training(request, way, chosen.training) if pairs.given is not None else None
    made = None
    if way.condition is not None and not way.condition.startswith((COLUMN, FOLDER)):
        made = degradation(way.condition)
    scorer = Scorer(pairs, cache, made)
    notes = [*describe_left_out(left_out(skipped))]
    notes += describe_few({"pictures": len(pairs.names)}, scorer.real.shape[1], cache.net.names[0])
    labels = _labels(pipe, chosen.source, pairs) if request.class_labels else None
    made_with = {
        "tokenizer_fingerprint": pipe.tokenizer.fingerprint(),
        "prior_fingerprint": weights_fingerprint(pipe.prior),
        **{"condition": way.condition, "captions": request.captions, "sampling": pipe.sampling.to_dict()},
        **{"num_samples": request.num_samples, "class_labels": labels is not None, "seed": request.seed},
        "pictures": {"fingerprint": chosen.source.fingerprint, "num_images": len(pairs.names), "part": chosen.part},
        "feature_net": cache.net.describe(),
    }
    described = describe_data(chosen.source, data.source, data.split, pipe.tokenizer)
    record = {"pipeline": request.pipeline, **made_with, "data": described, "notes": notes}
    ledger, shown = Ledger(NAME, made_with, ("method",)), {}
    for method, results in _results(request, way, pairs, known, labels):
        row = {"method": method, **scorer.row(results)}
        ledger.add(folder, [row], {**record, **circumstances(accelerator)})
        tqdm.write(_said(row))
        shown[method] = results[:_IN_SHEET]
    _write_sheet(folder / f"{NAME}.png", pairs, shown)
    tqdm.write("\n".join([*notes, *ledger.said]))
    tqdm.write(f"The table is in {folder / f'{NAME}.json'}, pictures in {NAME}.png.")
    return folder


def _training(request: _Request, way: _Way, training: ImageSource | None) -> Pairs | None:
    """Training pictures with their conditions; None where nothing says which they are."""
    data = request.data
    if request.training_split is not None:
        data = replace(data, split=request.training_split, limit=None)
        training = open_images(data)
    return None if training is None else way.read(training, data, _MOST_TRAINING)[0]


def _way(pipe: ImageGenerationPipeline, condition: str | None, captions: str | None) -> _Way:
    part = picture_part(pipe.sequence.conditioning)
    way = _Way(condition, captions, pipe)
    kind = pipe.sequence.conditioning.describe()
    require(
        part is not None or way.text is not None,
        f"This pipeline's images follow {kind}, neither pictures nor texts.",
        "Take `codegrid evaluate generation`.",
    )
    require(
        (way.text is not None) == (captions is not None),
        f"This pipeline's images follow {kind}, and captions is {captions!r}.",
        "Give --captions where the prior follows texts, and only there.",
    )
    if part is None:
        require(condition is None, f"This pipeline's images follow {kind}.", "Leave --condition out.")
        return way
    made_by = condition or part.made_by
    require(
        condition is not None or (made_by is not None and (made_by.startswith(COLUMN) or is_known(made_by))),
        f"This pipeline's pictures to follow are made by {made_by!r}, which only you can say.",
        "Give --condition, as in `codegrid tokenize-dataset`.",
    )
    return replace(way, condition=made_by)


def _labels(pipe: ImageGenerationPipeline, source: ImageSource, pairs: Pairs) -> list[int] | None:
    """The pictures' classes in the prior, where it follows classes, too, and has all of these."""
    part = next((part for part in parts_of(pipe.sequence.conditioning) if part.type == "class"), None)
    own, theirs = getattr(part, "class_names", ()), source.class_names
    if theirs is None or (pairs.labels < 0).any() or not {theirs[label] for label in pairs.labels} <= set(own):
        return None
    return [own.index(theirs[label]) for label in pairs.labels]


def _results(
    request: _Request, way: _Way, pairs: Pairs, known: Pairs | None, labels: list[int] | None
) -> Iterator[tuple[str, np.ndarray]]:
    """(method, uint8 [N, samples, H, W, C]) one after the other, the bound first."""
    pipe, number_of, samples = way.pipe, len(pairs.names), request.num_samples
    bound = _reconstructed(pipe, pairs.pixels)
    yield "reconstruction", bound[:, None]
    keep = None
    if pairs.given is not None and way.condition is not None and tells_a_part(way.condition):
        keep = degradation(way.condition)
        yield "reconstruction, condition kept", with_part(keep, bound, pairs.given)[:, None]
    if pairs.given is not None:
        floors = floors_of(way.condition) if pairs.given.shape == pairs.pixels.shape else {}
        for name, floor in floors.items():
            yield name, floor(pairs.pixels, pairs.given)[:, None]
        if known is not None and known.given is not None:
            classes = None if labels is None else (pairs.labels, known.labels)  # the results are of their classes
            yield "nearest training pair", known.pixels[nearest_pairs(pairs.given, known.given, classes)][:, None]
    asked: dict[str, Any] = {} if labels is None else {"class_labels": labels}
    asked |= {} if pairs.given is None else {"condition": list(pairs.given)}
    asked |= {} if pairs.texts is None else {"prompt": pairs.texts}
    streams = [image_generator(request.seed, index) for index in range(number_of * samples)]
    options = {"num_images_per_label": samples, "generator": streams, "batch_size": request.batch_size}
    made = pipe(**asked, **options, output_type="np").images
    assert isinstance(made, np.ndarray)
    yield "pipeline", made.reshape(number_of, samples, *made.shape[1:])
    if keep is not None and pairs.given is not None:
        kept = with_part(keep, made, np.repeat(pairs.given, samples, 0))
        yield "pipeline, condition kept", kept.reshape(number_of, samples, *made.shape[1:])


@torch.no_grad()
def _reconstructed(pipe: ImageGenerationPipeline, pixels: np.ndarray) -> np.ndarray:
    made = []
    with evaluating(pipe.tokenizer):
        for first in range(0, len(pixels), _BATCH):
            few = torch.from_numpy(pixels[first : first + _BATCH])
            images = to_model(to_device(few, pipe.device))
            made.append(to_uint8(pipe.tokenizer.decode(pipe.tokenizer.encode(images)).clamp(-1, 1)).cpu().numpy())
    return np.concatenate(made)


def _said(row: dict[str, Any]) -> str:
    shown = {
        name: value if isinstance(value, str) else number(value) for name, value in row.items() if value is not None
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _write_sheet(path: Path, pairs: Pairs, shown: dict[str, np.ndarray]) -> None:
    """A row a way: the true pictures, the conditions, and the results."""
    rows = [("true", pairs.pixels[:_IN_SHEET])]
    rows += [] if pairs.given is None else [("condition", pairs.given[:_IN_SHEET])]
    for method, results in shown.items():
        rows += [(method if not index else "", results[:, index]) for index in range(min(results.shape[1], 3))]
    sheet = labelled_rows(
        [(name, to_pil(to_model(torch.from_numpy(np.ascontiguousarray(part))))) for name, part in rows]
    )
    write_atomically(path, lambda aside: sheet.save(aside, format="PNG"))
