"""Converts another project's checkpoint into a folder for this toolkit, and a tokenizer into diffusers' layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.pipelines.artifacts.export import export, export_prior, export_tokenizer
from codegrid.pipelines.artifacts.fit import misfits
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.evaluation.reconstruct import reconstruct
from codegrid.pipelines.system.files import OutputError, sha256, write_json
from codegrid.prior import SequenceConfig
from codegrid.prior.importers import PRIOR_FAMILIES, convert_prior, guess_prior_family
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.importers import (
    TOKENIZER_FAMILIES,
    ForeignCheckpointError,
    guess_tokenizer_family,
    read_settings,
    read_weights,
)
from codegrid.tokenizer.importers.diffusers import to_diffusers


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
) -> Path:
    """Turn another project's checkpoint into a folder that `from_pretrained` reads.

    The commands, by family (a prior's tokenizer is imported first, from its own file or the same one):

        FAMILIES

    Files are read as weights only: no code in them runs. If a file holds EMA weights (model_ema) beside the trained
    ones, the EMA weights are used.

    Args:
        family: one of the above.
        checkpoint: the file (.ckpt, .pt, .bin, .safetensors), or a folder with such a file and its config.json.
        output_dir: folder for the tokenizer or prior.
        config: the family's yaml or json, if there is one; it must agree with the weights.
        verify_images: images to reconstruct after the import; scores and a picture go into OUTPUT_DIR/verification.
        pixel_range: the network's values for black and white, if they differ from the family's.
        tokenizer: for a prior: folder or Hub name of the imported tokenizer that made its codes, for generation.
        grid_size: for a prior: rows, and columns, of its code grid.
        class_names: for a prior: a text file with one class name per line; by default numbers are the names.
        heads: for a prior: number of attention heads, if neither a published size nor the config defines it.

    Raises:
        ForeignCheckpointError: the file cannot be read, belongs to another family, or is incomplete.
    """
    file, found = _file_and_config(Path(checkpoint))
    settings_file = Path(config) if config else found
    if family not in TOKENIZER_FAMILIES and family not in PRIOR_FAMILIES:
        raise ForeignCheckpointError(_no_family(family, file))
    folder = Path(output_dir)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise OutputError(f"{folder} is not empty and holds no model: choose another --output-dir.")
    weights = read_weights(file)
    _check_kind(family, weights)
    settings = read_settings(settings_file) if settings_file else None
    if family in PRIOR_FAMILIES:
        names = _lines(class_names) if class_names else None
        model, sequence = convert_prior(family, weights, grid_size, names, heads, settings)
        return _write_prior(model, sequence, file, folder, tokenizer)
    model = VQModel.from_foreign(family, weights, settings, pixel_range)
    model.config.provenance |= {"file": file.name, "sha256": sha256(file)}
    folder.mkdir(parents=True, exist_ok=True)
    export_tokenizer(model, folder, source="", scores={})
    print(_report(model, weights, file, folder))
    if verify_images:
        reconstruct(str(folder), DataConfig(source=verify_images), str(folder / "verification"))
    return folder


def _examples() -> str:
    """A line per family: its name, a description, and its command."""
    lines = []
    for name, family in (TOKENIZER_FAMILIES | PRIOR_FAMILIES).items():
        lines.append(f"{name}: {family.title}")
        lines.append(f"    codegrid import-checkpoint {name} {family.example} --output-dir DIR")
    return "\n        ".join(lines)


import_checkpoint.__doc__ = (import_checkpoint.__doc__ or "").replace("FAMILIES", _examples())


def _lines(file: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip())


def _write_prior(
    model: PreTrainedModel, sequence: SequenceConfig, file: Path, folder: Path, tokenizer: str | None
) -> Path:
    made_by = load_tokenizer(tokenizer) if tokenizer else None
    if made_by:
        if sentence := misfits(made_by, sequence, f"The tokenizer {tokenizer}", f"the prior in {file}"):
            raise ForeignCheckpointError(
                sentence,
                "Name the tokenizer that made its codes; rows and columns of the codes are given by --grid-size.",
            )
        sequence = replace(sequence, tokenizer_fingerprint=made_by.fingerprint())
    folder.mkdir(parents=True, exist_ok=True)
    export_prior(model, sequence, folder, f"of another project ({file.name}, sha256 {sha256(file)})", {})
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    unguided = "" if sequence.null_class else "It has no null class: its guidance_scale is always 1.\n"
    print(
        f"{file.name}: a prior of {parameters:.1f}M parameters on "
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
        raise ForeignCheckpointError(f"These are not weights of the family {family}: by their keys use {guess}.")


def export_diffusers(tokenizer: str, output_dir: str) -> Path:
    """Write a tokenizer as diffusers' VQModel: config.json and diffusion_pytorch_model.safetensors.

    Args:
        tokenizer: folder or Hub name of a tokenizer with a plain codebook and a backbone like taming's.
        output_dir: folder that `diffusers.VQModel.from_pretrained` reads.

    Raises:
        CodegridError: diffusers' VQModel cannot represent this tokenizer; the message names the field.
    """
    model = load_tokenizer(tokenizer)
    settings, weights = to_diffusers(model.config, model.state_dict())
    folder = Path(output_dir)

    def write(aside: Path) -> None:
        save_file(weights, aside / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        write_json(aside / "config.json", settings)

    export(folder, write)
    black, white = model.config.backbone_config.pixel_range
    print(f"diffusers' VQModel is in {folder}. Give it pixels in [{black:g}, {white:g}].")
    return folder


def _file_and_config(path: Path) -> tuple[Path, Path | None]:
    """A folder's weights and config.json, or the file itself."""
    if not path.is_dir():
        return path, None
    names = ("diffusion_pytorch_model.safetensors", "model.safetensors", "diffusion_pytorch_model.bin")
    file = next((path / name for name in names if (path / name).is_file()), None)
    if file is None:
        raise ForeignCheckpointError(f"{path} holds none of {', '.join(names)}: name the checkpoint's file itself.")
    return file, path / "config.json" if (path / "config.json").is_file() else None


def _no_family(family: str, file: Path) -> str:
    keys = read_weights(file)
    guesses = [guess for guess in (guess_tokenizer_family(keys), guess_prior_family(keys)) if guess]
    hint = f" By its keys {file} is of the family {' and of '.join(guesses)}." if guesses else ""
    return f"There is no family {family!r}: it is one of {', '.join(TOKENIZER_FAMILIES | PRIOR_FAMILIES)}.{hint}"


def _report(model: VQModel, weights: Mapping[str, Tensor], file: Path, folder: Path) -> str:
    config, provenance = model.config, model.config.provenance
    parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    shape = "x".join(map(str, config.codes_shape))
    chosen = "the averaged weights (model_ema)" if provenance.get("weights") == "ema" else "the weights"
    black, white = config.backbone_config.pixel_range
    lines = [
        f"{file.name}: {len(weights)} tensors, of which {chosen} make a tokenizer of {parameters:.2f}M parameters.",
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
