"""Converts another project's checkpoint into a folder for this toolkit, and a tokenizer into diffusers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.downloads import read_json
from codegrid.errors import CodegridError, MissingFileError
from codegrid.names import shown
from codegrid.pipelines.artifacts.export import export, export_prior, export_tokenizer
from codegrid.pipelines.artifacts.fit import misfits
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.evaluation.reconstruct import reconstruct
from codegrid.pipelines.system.files import OutputError, write_json
from codegrid.pipelines.system.folders import what_it_holds
from codegrid.prior import SequenceConfig
from codegrid.prior.importers import NO_REMEDY, PRIOR_FAMILIES, convert_prior, guess_prior_family, why_not_imported
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.importers import (
    TOKENIZER_FAMILIES,
    ForeignCheckpointError,
    guess_tokenizer_family,
    locate,
    read_settings,
    takes_averages,
)
from codegrid.tokenizer.importers.containers import Kind
from codegrid.tokenizer.importers.diffusers import to_diffusers
from codegrid.tokenizer.importers.locating import Found


def import_checkpoint(
    family: str,
    /,
    checkpoint: str,
    output_dir: str,
    config: str | None = None,
    verify_images: str | None = None,
    pixel_range: tuple[float, float] | None = None,
    tokenizer: str | None = None,
    grid_size: int = 16,
    class_names: str | None = None,
    heads: int | None = None,
    kind: Kind = "family",
) -> Path:
    """Turn another project's checkpoint into a folder that `from_pretrained` reads.

    The commands, by family (a prior's tokenizer is imported first, from its own file or the same one):

        FAMILIES

    Files are read as weights only: no code in them runs. What was chosen is said: a variant (fp16), a pipeline's part,
    wrappers that were taken off the weights' names, averaged or trained weights.

    Args:
        family: one of the above.
        checkpoint: the file (.ckpt, .pt, .bin, .safetensors), an index of shards, a folder with one of them and its
            config.json, or a pipeline's folder with a vqvae/, vqmodel/ or movq/.
        output_dir: folder for the tokenizer or prior; a new one, or that of the same import.
        config: the family's yaml or json, if there is one; it must agree with the weights.
        verify_images: images to reconstruct after the import; scores and a picture go into OUTPUT_DIR/verification.
        pixel_range: the network's values for black and white, if they differ from the family's.
        tokenizer: for a prior: folder or Hub name of the imported tokenizer that made its codes, for generation.
        grid_size: for a prior: rows, and columns, of its code grid.
        class_names: for a prior: a text file with one class name per line; by default numbers are the names.
        heads: for a prior: number of attention heads, if neither a published size nor the config defines it.
        kind: where a file has averages (EMA) beside the trained weights: those that the family's own code takes, or
            trained or averaged ones.

    Raises:
        ForeignCheckpointError: the file cannot be read, belongs to another family, or is incomplete.
        OutputError: the folder holds something else.
    """
    found = locate(checkpoint)
    if family not in TOKENIZER_FAMILIES and family not in PRIOR_FAMILIES:
        raise ForeignCheckpointError(*_no_family(family, found))
    is_prior, folder = family in PRIOR_FAMILIES, Path(output_dir)
    for_tokenizers = {"pixel_range": pixel_range, "verify_images": verify_images}
    for_priors = {"tokenizer": tokenizer, "class_names": class_names, "heads": heads}
    _check_options(family, "prior" if is_prior else "tokenizer", for_tokenizers if is_prior else for_priors)
    digest = found.sha256()
    _check_target(folder, digest)
    made_by = load_tokenizer(tokenizer) if tokenizer else None
    names = _lines(class_names) if class_names else None
    if verify_images:
        open_images(DataConfig(source=verify_images))  # said before the work, not after it
    settings_file = config or found.config
    settings = read_settings(settings_file) if settings_file else None
    averaged = kind == "averaged" if is_prior else takes_averages(TOKENIZER_FAMILIES[family], settings, kind)
    read = found.read(averaged)
    _check_kind(family, read.weights)
    for line in (*found.notes, *read.said()):
        print(line)
    if is_prior:
        model, sequence = convert_prior(family, read.weights, grid_size, names, heads, settings)
        return _write_prior(model, sequence, found.name, digest, folder, tokenizer, made_by)
    model = VQModel.from_foreign(family, read.weights, settings, pixel_range, kind)
    if read.beside:
        model.config.provenance["weights"] = "ema" if read.averaged else "trained"
    model.config.provenance |= {"file": found.name, "sha256": digest}
    folder.mkdir(parents=True, exist_ok=True)
    export_tokenizer(model, folder, source="", scores={})
    print(_report(model, read.weights, found.name, folder))
    if verify_images:
        reconstruct(str(folder), DataConfig(source=verify_images), str(folder / "verification"))
    return folder


def _check_options(family: str, what: str, others: Mapping[str, Any]) -> None:
    """Refuse options of the other kind of families, which would do nothing."""
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ForeignCheckpointError(
            f"{', '.join(given)} {'is' if len(given) == 1 else 'are'} given, and {family} is a {what}'s family, which "
            "takes none.",
            "Leave it out.",
        )


def _check_target(folder: Path, digest: str) -> None:
    """Refuse a folder that holds anything but an import of the same file.

    Raises:
        OutputError: a run's weights, or somebody's files, would be overwritten.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{shown(folder)} is a file.", "Choose another --output-dir.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    same = False
    if not (folder / "training_config.json").exists():  # a run that started from an import names it, too
        texts = (folder / name for name in ("config.json", "README.md"))
        same = any(digest in text.read_text(encoding="utf-8", errors="replace") for text in texts if text.is_file())
    if not same:
        raise OutputError(
            f"{shown(folder)} is not empty and holds no import of this checkpoint, but {what_it_holds(folder)}.",
            "Choose another --output-dir.",
        )


def _examples() -> str:
    """A line per family: its name, a description, and its command."""
    lines = []
    for name, family in (TOKENIZER_FAMILIES | PRIOR_FAMILIES).items():
        lines.append(f"{name}: {family.title}")
        lines.append(f"    codegrid import-checkpoint {name} {family.example} --output-dir DIR")
    return "\n        ".join(lines)


import_checkpoint.__doc__ = (import_checkpoint.__doc__ or "").replace("FAMILIES", _examples())


def _lines(file: str) -> tuple[str, ...]:
    if not Path(file).is_file():
        raise MissingFileError(f"There is no file {shown(file)}.", "Name a text file with a class in each line.")
    return tuple(line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip())


def _write_prior(
    model: PreTrainedModel,
    sequence: SequenceConfig,
    file: str,
    digest: str,
    folder: Path,
    tokenizer: str | None,
    made_by: VQModel | None,
) -> Path:
    if made_by:
        if sentence := misfits(made_by, sequence, f"The tokenizer {tokenizer}", f"the prior in {file}"):
            raise ForeignCheckpointError(
                sentence,
                "Name the tokenizer that made its codes; rows and columns of the codes are given by --grid-size.",
            )
        sequence = replace(sequence, tokenizer_fingerprint=made_by.fingerprint())
    folder.mkdir(parents=True, exist_ok=True)
    export_prior(model, sequence, folder, f"of another project ({file}, sha256 {digest})", {})
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    unguided = "" if sequence.null_class else "It has no null class: its guidance_scale is always 1.\n"
    print(
        f"{file}: a prior of {parameters:.1f}M parameters on "
        f"{'x'.join(map(str, sequence.grid_shape))} codes of {sequence.codebook_size}, with {sequence.num_classes} "
        f"classes.\n{unguided}The prior is in {folder}."
    )
    return folder


def _check_kind(family: str, weights: Mapping[str, Tensor]) -> None:
    """Refuse a prior's file under a tokenizer's family, and vice versa."""
    if (TOKENIZER_FAMILIES | PRIOR_FAMILIES)[family].fits(weights):
        return
    prior, tokenizer = guess_prior_family(weights), guess_tokenizer_family(weights)
    guess = tokenizer or prior if family in TOKENIZER_FAMILIES else prior or tokenizer
    if guess:
        raise ForeignCheckpointError(
            f"These are not weights of the family {family}.", f"By their keys use {guess}: its example is in --help."
        )
    if reason := why_not_imported(weights):
        raise ForeignCheckpointError(reason, NO_REMEDY)


def export_diffusers(tokenizer: str, output_dir: str) -> Path:
    """Write a tokenizer as diffusers' VQModel: config.json and diffusion_pytorch_model.safetensors.

    Args:
        tokenizer: folder or Hub name of a tokenizer with a plain codebook and a backbone like taming's.
        output_dir: folder that `diffusers.VQModel.from_pretrained` reads.

    Raises:
        CodegridError: diffusers' VQModel cannot represent this tokenizer; the message names the field.
        OutputError: the folder holds something other than an earlier export.
    """
    folder = Path(output_dir)
    _check_export_target(folder)
    model = load_tokenizer(tokenizer)
    settings, weights = to_diffusers(model.config, model.state_dict())

    def write(aside: Path) -> None:
        save_file(weights, aside / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        write_json(aside / "config.json", settings)

    export(folder, write)
    black, white = model.config.backbone_config.pixel_range
    print(f"diffusers' VQModel is in {folder}. Give it pixels in [{black:g}, {white:g}].")
    return folder


def _check_export_target(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{shown(folder)} is a file.", "Choose another --output-dir.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    try:
        ours = read_json(folder / "config.json").get("_class_name") == "VQModel"
    except CodegridError:
        ours = False
    if not ours:
        raise OutputError(
            f"{shown(folder)} is not empty and holds no VQModel of diffusers, but {what_it_holds(folder)}.",
            "Choose another --output-dir.",
        )


def _no_family(family: str, found: Found) -> tuple[str, str]:
    keys = found.read().weights
    guesses = [guess for guess in (guess_tokenizer_family(keys), guess_prior_family(keys)) if guess]
    known = ", ".join(TOKENIZER_FAMILIES | PRIOR_FAMILIES)
    if not guesses and (reason := why_not_imported(keys)):
        return reason, NO_REMEDY
    if guesses:
        return (
            f"There is no family {family!r}.",
            f"By its keys {found.name} is of the family {' and of '.join(guesses)}.",
        )
    return f"There is no family {family!r}.", f"Choose one of {known}."


def _report(model: VQModel, weights: Mapping[str, Tensor], file: str, folder: Path) -> str:
    config, provenance = model.config, model.config.provenance
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    shape = "x".join(map(str, config.codes_shape))
    kinds = {"ema": "the averaged weights", "trained": "the trained weights (not the averaged ones beside them)"}
    chosen = kinds.get(provenance.get("weights", ""), "the weights")
    black, white = config.backbone_config.pixel_range
    lines = [
        f"{file}: {len(weights)} tensors, of which {chosen} make a tokenizer of {parameters:.2f}M parameters.",
        f"An image of {config.preprocessing_config.size_text} pixels becomes {shape} codes of "
        f"{config.quantizer_config.codebook_size} ({_lookup(config)}); the network works on pixels in "
        f"[{black:g}, {white:g}], `encode` takes [-1, 1].",
    ]
    if "remap" in provenance:
        lines.append(f"The codebook is the {len(provenance['remap'])} codes of its remap, in their new order.")
    return "\n".join([*lines, f"The tokenizer is in {folder} (VQModel.from_pretrained)."])


def _lookup(config: Any) -> str:
    quantizer = config.quantizer_config
    rules = {"ibq": "largest dot product", "gumbel": "largest logit", "lfq": "signs"}
    nearest = "nearest on the sphere" if getattr(quantizer, "l2_normalize", False) else "nearest"
    return rules.get(quantizer.type, nearest)
