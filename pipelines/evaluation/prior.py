"""`codegrid evaluate prior`: how likely a prior finds codes, in nats and bits."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from codegrid.errors import require
from codegrid.names import shown
from codegrid.pipelines.artifacts.loading import load_prior_and_sequence
from codegrid.pipelines.evaluation.results import circumstances, output_folder
from codegrid.pipelines.generation.to_folder import weights_fingerprint
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.pipelines.system.files import write_json
from codegrid.pipelines.system.numbers import number
from codegrid.prior import SequenceConfig, log_likelihood
from codegrid.prior.codes import CodeDataset, CodesError, CodesManifest, open_codes

_COMPARED = ("tokenizer_fingerprint", "codebook_size", "grid_shape", "depth", "order")


@dataclass(frozen=True)
class PriorScores:
    """Means over the rows of codes.

    Attributes:
        num_rows: rows of codes (variants of a picture count each).
        nats_per_code, nats_per_code_error: mean of -log p and its standard error over the rows.
        bits_per_code: the same in bits; guessing needs log2 of the codebook's size.
        perplexity: exp of the nats: as many equally likely codes would be as hard to guess.
        bits_per_image, bits_per_pixel: of a row's scored codes, and of a pixel of the tokenizer's pictures (None:
            size unknown, or not all codes scored).
    """

    num_rows: int
    nats_per_code: float
    nats_per_code_error: float
    bits_per_code: float
    perplexity: float
    bits_per_image: float
    bits_per_pixel: float | None


def evaluate_prior(
    prior: str,
    codes: str,
    output_dir: str | None = None,
    validation_fraction: float | None = None,
    unconditional: bool = False,
    batch_size: int | None = None,
    mixed_precision: str = "no",
    given: int = 0,
) -> Path:
    """Score a prior on codes: nats and bits a code, bits a picture and a pixel, perplexity; by class where there are.

    Args:
        prior: folder or Hub name; or a pipeline's folder /prior.
        codes: a code data set of the prior's tokenizer.
        output_dir: folder for prior.json; by default a folder beside the prior's.
        validation_fraction: score the rows that a training with this data.validation_fraction holds out; 0 scores all.
            By default the rows that the prior's own run held out, if these are its codes; of other codes all.
        unconditional: score without classes, by the null class.
        batch_size: rows at once; None: as many as fit.
        mixed_precision: "no" computes in the weights' dtype.
        given: the first codes of each row are known, and the others are scored: rows that overlap by so many score a
            long sequence with as many codes before each.

    Raises:
        CodesError: the codes are damaged, or the prior does not fit them.
        LoadingError: the prior cannot be loaded.
        CodegridError: a number is out of its range.
    """
    require(
        validation_fraction is None or 0 <= validation_fraction < 1,
        f"validation_fraction is {validation_fraction}.",
        "Give a number in [0, 1).",
    )
    accelerator = make_accelerator("auto", mixed_precision)
    model, sequence = load_prior_and_sequence(prior)
    data = open_codes(codes)
    check_fit(sequence, data.manifest, prior, codes)
    rows, said = _rows(prior, codes, data, validation_fraction)
    print(f"{said} of {data.manifest.source}")
    model.to(accelerator.device)
    nats, labels = _scored(model, sequence, data, rows, unconditional, batch_size, given)
    scores = _summary(nats, sequence.length - given, None if given else data.manifest)
    folder = output_folder(output_dir, prior)
    record: dict[str, Any] = {
        "kind": "prior",
        "results": [asdict(scores)],
        "by_class": _by_class(nats / (sequence.length - given), labels, sequence),
        "prior": prior,
        "prior_fingerprint": weights_fingerprint(model),
        "codes": codes,
        "codes_fingerprint": data.manifest.fingerprint(),
        "tokenizer_fingerprint": data.manifest.tokenizer_fingerprint,
        "rows": said,
        "unconditional": unconditional,
        "given": given,
        **circumstances(accelerator),
    }
    write_json(folder / "prior.json", record)
    unit = "picture" if sequence.axes is None else "row"
    print(
        f"{number(scores.nats_per_code)} nats a code (standard error {number(scores.nats_per_code_error, 2)}), "
        f"{number(scores.bits_per_code)} bits of {number(math.log2(sequence.codebook_size))}; perplexity "
        f"{number(scores.perplexity)}; {number(scores.bits_per_image)} bits a {unit}"
        + ("." if scores.bits_per_pixel is None else f", {number(scores.bits_per_pixel)} a pixel.")
    )
    print(f"The scores, by class as well, are in {folder / 'prior.json'}.")
    return folder


def check_fit(sequence: SequenceConfig, manifest: CodesManifest, prior: str, codes: str) -> None:
    """Refuse codes of another tokenizer, grid or set of classes.

    Raises:
        CodesError: the message names both.
    """
    own = {name: getattr(sequence, name) for name in _COMPARED}
    theirs = {name: getattr(manifest, name) for name in _COMPARED}
    different = [name for name in _COMPARED if own[name] is not None and own[name] != theirs[name]]
    if sequence.class_names is not None and sequence.class_names != manifest.class_names:
        different.append("class_names")
        own, theirs = own | {"class_names": sequence.class_names}, theirs | {"class_names": manifest.class_names}
    condition = manifest.sequence_config().conditioning
    if sequence.condition is not None and sequence.condition != condition:
        different.append("condition")
        own = own | {"condition": sequence.conditioning.describe()}
        theirs = theirs | {"condition": condition.describe()}
    if different:
        raise CodesError(
            f"The prior {shown(prior)} and the codes {shown(codes)} do not fit each other: "
            + "; ".join(f"{name} {own[name]} and {theirs[name]}" for name in different)
            + ".",
            "Score it on codes of the tokenizer (or the source) whose codes it was trained on, in the same shape.",
        )


def _rows(prior: str, codes: str, data: CodeDataset, fraction: float | None) -> tuple[np.ndarray, str]:
    """The rows to score, and a line that says which they are."""
    whose = f"validation_fraction {fraction}"
    if fraction is None:
        fraction = _own_fraction(prior, codes, data.manifest)
        whose = "as the prior's run did"
    if not fraction:
        return np.arange(len(data)), f"All {len(data):,} rows (nothing says that the prior has not seen them)"
    held_out = data.split(fraction)[1]
    require(
        len(held_out) > 0,
        f"No row of {shown(codes)} is held out by validation_fraction {fraction}.",
        "Give a larger --validation-fraction, or 0 for all rows.",
    )
    return held_out, f"The {len(held_out):,} rows of {len(data):,} that are held out ({whose})"


def _own_fraction(prior: str, codes: str, manifest: CodesManifest) -> float:
    """The share that the prior's run holds out of these codes; 0 if it is not known to have been trained on them."""
    folder = Path(prior)
    for file in (folder / "training_config.json", folder.parent / "training_config.json"):
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
            of = json.loads(file.with_name("made_from.json").read_text(encoding="utf-8"))["tokenizer_fingerprint"]
        except (OSError, ValueError, KeyError):
            continue
        same = Path(config["codes"]).resolve() == Path(codes).resolve()
        return float(config["validation_fraction"]) if same and of == manifest.tokenizer_fingerprint else 0.0
    return 0.0


def _scored(
    model: Any,
    sequence: SequenceConfig,
    data: CodeDataset,
    rows: np.ndarray,
    unconditional: bool,
    batch_size: int | None,
    given: int,
) -> tuple[np.ndarray, np.ndarray | None]:
    """-log p of each row in nats, float64 [N], and its class, -1 for unknown (None: no classes)."""
    nats, labels = np.empty(len(rows)), np.full(len(rows), -1)
    conditional = sequence.conditioning.vocab_size > 0 and not unconditional
    bar = tqdm(total=len(rows), unit="row", dynamic_ncols=True)
    at_once = 1024
    for first in range(0, len(rows), at_once):
        part = rows[first : first + at_once]
        codes = torch.from_numpy(data.codes(part))
        values, unknown = data.condition_values(part) if conditional else (None, None)
        drop = unknown if unknown is not None and unknown.any() else None
        require(
            drop is None or sequence.null_class,
            "Some of these rows have no class, and this prior has no null class.",
            "Score it on rows that have one.",
        )
        found = log_likelihood(model, sequence, codes, values, batch_size=batch_size, drop=drop, given=given)
        nats[first : first + at_once] = -found.numpy()
        if values is not None and unknown is not None and sequence.class_names is not None:
            labels[first : first + at_once] = torch.where(unknown, -1, values).numpy()
        bar.update(len(part))
    bar.close()
    return nats, labels if conditional and sequence.class_names is not None else None


def _summary(nats: np.ndarray, num_codes: int, manifest: CodesManifest | None) -> PriorScores:
    per_code = nats / num_codes
    mean = float(per_code.mean())
    error = float(per_code.std(ddof=1) / math.sqrt(len(nats))) if len(nats) > 1 else math.nan
    bits = mean / math.log(2)
    image = bits * num_codes
    size = ((manifest and manifest.preprocessing) or {}).get("image_size")
    height, width = (size, size) if isinstance(size, int) else size or (0, 0)
    pixels = height * width
    return PriorScores(len(nats), mean, error, bits, math.exp(mean), image, image / pixels if pixels else None)


def _by_class(per_code: np.ndarray, labels: np.ndarray | None, sequence: SequenceConfig) -> dict[str, dict[str, float]]:
    """Nats a code and rows of each class that occurs."""
    if labels is None:
        return {}
    return {
        name: {
            "num_rows": int((labels == index).sum()),
            "nats_per_code": float(per_code[labels == index].mean()),
        }
        for index, name in enumerate(sequence.class_names or ())
        if (labels == index).any()
    }
