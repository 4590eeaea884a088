"""Compares imported models with the code that they come from."""

from __future__ import annotations

import importlib.util
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from codegrid.errors import require
from codegrid.pipelines.importing.peers import PEERS, PRIOR_PEERS, Peer, PriorPeer
from codegrid.pipelines.system.files import write_atomically
from codegrid.prior import sample_codes
from codegrid.prior.importers import PRIOR_FAMILIES, convert_prior
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.importers import TOKENIZER_FAMILIES

# Pixels count as equal within this share of the output's range, in float32.
_MEND = "Compare the importer with the clone's network, or take the commit that the importer was written for."
PIXEL_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Parity:
    """Result of a comparison.

    Attributes:
        codes, equal_codes: number of compared codes, and of equal ones.
        pixel_difference: the largest difference, as a share of the output's range.
    """

    codes: int
    equal_codes: int
    pixel_difference: float

    @property
    def holds(self) -> bool:
        return self.codes == self.equal_codes and self.pixel_difference <= PIXEL_TOLERANCE


def import_parity(name: str, /, repository: str = "", num_images: int = 64, golden: str | None = None) -> None:
    """Compare an imported tokenizer or prior with the project's own code, on random weights and images (codes).

    Args:
        name: one of `PEERS` or `PRIOR_PEERS`; "all" runs every comparison whose project is available.
        repository: a clone of the project; for diffusers, the installed package is used instead. With "all": the folder
            of the clones, each named after its repository.
        num_images: number of images to compare, or of sequences for a prior.
        golden: write the first images' codes and pixels (tokens and logits), and the names and shapes of the weights,
            to this .safetensors file, for tests without a clone.

    Raises:
        CodegridError: `name` is unknown, or codes or pixels differ by more than rounding.
    """
    known = [*PEERS, *PRIOR_PEERS]
    require(name in (*known, "all"), f"There is no comparison {name!r}.", f"Name all, or one of {', '.join(known)}.")
    if name != "all":
        compare(name, Path(repository), num_images, golden)
        return
    for each in known:
        clone = Path(repository) / _repository(each)
        if clone.is_dir() or (each == "diffusers" and importlib.util.find_spec("diffusers")):
            compare(each, clone, num_images)


def _repository(name: str) -> str:
    """The name of the repository with a comparison's network: that of the family at the start of `name`."""
    families = TOKENIZER_FAMILIES | PRIOR_FAMILIES
    return families[max((family for family in families if name.startswith(family)), key=len)].peer.split("/")[1]


def compare(name: str, repository: Path, num_images: int = 64, golden: str | None = None) -> Parity:
    """One comparison: see `import_parity`."""
    torch.manual_seed(0)
    if name in PRIOR_PEERS:
        return _compare_prior(name, PRIOR_PEERS[name](repository), num_images, golden)
    peer = PEERS[name](repository)
    weights = random_weights({key: tuple(value.shape) for key, value in peer.module.state_dict().items()})
    peer.module.load_state_dict({key: weights.get(key, value) for key, value in peer.module.state_dict().items()})
    average = getattr(peer.module, "model_ema", None)
    if average is not None:
        average.copy_to(peer.module)
    model = VQModel.from_foreign(peer.family, {**peer.module.state_dict(), **weights}, peer.settings)
    images = random_images(num_images, peer.image_size)
    with torch.no_grad():
        codes = _their_codes(peer, images)
        pixels = _their_pixels(peer, codes)
        ours = model.encode(images)
        difference = (model.decode(codes) - pixels).abs().max() / (pixels.max() - pixels.min())
    found = Parity(codes.numel(), int((ours == codes).sum()), float(difference))
    print(f"{name}: {found.equal_codes} of {found.codes} codes equal, pixels within {found.pixel_difference:.1e}.")
    require(
        found.holds,
        f"The import of {name} differs from {TOKENIZER_FAMILIES[peer.family].peer} by more than rounding.",
        _MEND,
    )
    if golden:
        _write_golden(Path(golden), peer, weights, codes[:4], pixels[:1])
    return found


def _compare_prior(name: str, peer: PriorPeer, number: int, golden: str | None) -> Parity:
    """Compare logits of `number` sequences of random codes (all classes and null), and greedy codes of every class."""
    weights = random_weights({key: tuple(value.shape) for key, value in peer.module.state_dict().items()})
    peer.module.load_state_dict({**peer.module.state_dict(), **weights})
    model, sequence = convert_prior(peer.family, weights, 4, heads=4, settings=peer.settings)
    codes = torch.from_numpy(np.random.RandomState(0).randint(0, 64, (number, 16)))
    labels = torch.arange(number) % max(1, peer.num_labels)  # the last can be the null class
    with torch.no_grad():
        logits = peer.logits(labels, codes)
        # Label 0 of an unconditional prior is its null token here.
        tokens = torch.cat([labels[:, None] + sequence.codebook_size, codes[:, :-1]], dim=1)
        ours = model(tokens).logits[..., : sequence.codebook_size]
        # The first code of each sequence, then the likeliest codes.
        classes = torch.arange(number) % max(1, sequence.num_classes)
        theirs = codes.clone()
        for place in range(1, sequence.length):
            theirs[:, place] = peer.logits(classes, theirs)[:, place].argmax(-1)
    classes = None if sequence.class_names is None else classes
    greedy = sample_codes(model, sequence, classes, prefix_codes=codes[:, :1], temperature=0, seeds=range(number))
    difference = float((ours - logits).abs().max() / (logits.max() - logits.min()))
    equal = greedy[:, 1:] == theirs[:, 1:]
    found = Parity(equal.numel(), int(equal.sum()), difference)
    print(f"{name}: {found.equal_codes} of {found.codes} greedy codes equal, logits within {difference:.1e}.")
    require(
        found.holds,
        f"The import of {name} differs from {PRIOR_FAMILIES[peer.family].peer} by more than rounding.",
        _MEND,
    )
    if golden:
        shapes = json.dumps({key: list(value.shape) for key, value in weights.items()})
        settings = json.dumps(peer.settings)
        tensors = {"tokens": tokens[:6].contiguous(), "logits": logits[:6].contiguous()}
        metadata = {"shapes": shapes, "settings": settings}
        write_atomically(Path(golden), lambda aside: save_file(tensors, aside, metadata))
    return found


def random_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights that depend only on their names and shapes, so that a test can reproduce them without the project.

    Each has its own generator, whose stream is the same in all versions of numpy. Integer buffers, and tensors not
    named a weight, a bias or the like, are left out.
    """
    weights = {}
    for name, shape in shapes.items():
        if name.endswith(("weight", "bias", "pos_emb")) and (shape or name.endswith("bias")):
            draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
            fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
            # Scales are around 1: if a channel is scaled to 0 before a norm, its output is nothing but rounding.
            is_norm_weight = len(shape) == 1 and name.endswith(("weight", "gamma.bias", "gammabias"))
            scale = 0.1 if len(shape) == 1 else 1.0 if "embed" in name else fan_in**-0.5
            weights[name] = torch.from_numpy(draw * np.float32(scale) + np.float32(is_norm_weight))
    return weights


def random_images(number: int, size: int) -> Tensor:
    """Noise in [-1, 1]: float32 [number, 3, size, size]."""
    pixels = np.random.RandomState(0).uniform(-1, 1, (number, 3, size, size))
    return torch.from_numpy(pixels.astype(np.float32))


def _their_codes(peer: Peer, images: Tensor) -> Tensor:
    black, white = peer.pixel_range
    peer.module.eval()
    return peer.encode((images + 1) / 2 * (white - black) + black if (black, white) != (-1.0, 1.0) else images)


def _their_pixels(peer: Peer, codes: Tensor) -> Tensor:
    black, white = peer.pixel_range
    return (peer.decode(codes) - black) / (white - black) * 2 - 1


def _write_golden(path: Path, peer: Peer, weights: dict[str, Tensor], codes: Tensor, pixels: Tensor) -> None:
    metadata = {
        "family": peer.family,
        "image_size": str(peer.image_size),
        "settings": json.dumps(peer.settings),
        "shapes": json.dumps({key: list(value.shape) for key, value in weights.items()}),
    }
    tensors = {"codes": codes.to(torch.int32).contiguous(), "pixels": pixels.contiguous()}
    write_atomically(path, lambda aside: save_file(tensors, aside, metadata))
