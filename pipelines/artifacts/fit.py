"""Whether a tokenizer and a prior, or a tokenizer and codes, belong together: what each says of the codes, compared."""

from __future__ import annotations

from codegrid.prior import SequenceConfig
from codegrid.prior.codes import CodesManifest
from codegrid.tokenizer import VQModel

# What must be equal beside the fingerprint, with its name for people.
_FIELDS = {
    "codebook_size": "codes in the codebook",
    "grid_shape": "grid of codes",
    "depth": "codes a position",
    "order": "order of the codes",
}


def misfits(model: VQModel, other: SequenceConfig | CodesManifest, ours: str, theirs: str) -> str:
    """What of the tokenizer's codes is otherwise in `other`, as one sentence; "" if nothing is.

    A prior without a fingerprint (an imported one) is compared by codebook, grid, depth and order alone: that it was
    trained on codes of this very tokenizer cannot be known (`unknown_origin` says so).

    Args:
        model: the tokenizer.
        other: of a prior, or of a code data set.
        ours, theirs: what the two are called, for the sentence.
    """
    if other.axes is not None:
        return f"No tokenizer decodes {theirs}: they are of `codegrid import-codes`, codes without pictures."
    quantizer = model.config.quantizer_config
    made = {
        "codebook_size": quantizer.codebook_size,
        "grid_shape": tuple(model.config.grid_shape),
        "depth": quantizer.depth,
        "order": "grids" if quantizer.stride > 1 else "positions",
    }
    wanted = {name: getattr(other, name) for name in made}
    found = [
        f"{title} {_shown(made[name])} and {_shown(wanted[name])}"
        for name, title in _FIELDS.items()
        if made[name] != wanted[name]
    ]
    fingerprint = model.codes_fingerprint()
    if other.tokenizer_fingerprint not in (None, fingerprint):
        found.append(f"fingerprint of the tokenizer {fingerprint[:12]} and {other.tokenizer_fingerprint[:12]}")
    return f"{ours[0].upper()}{ours[1:]} and {theirs} do not fit each other: {'; '.join(found)}." if found else ""


def unknown_origin(sequence: SequenceConfig) -> str:
    """A line on what cannot be known of a prior's codes; "" if it names its tokenizer."""
    if sequence.tokenizer_fingerprint is not None:
        return ""
    return (
        "The prior does not say which tokenizer made its codes. Codebook, grid, depth and order are those of this "
        "tokenizer; whether a code means the same to both only the images can show."
    )


def called(kind: str, name: object) -> str:
    """Such as "the tokenizer runs/tokenizer", or "the tokenizer" for one without a place of its own."""
    return f"the {kind} {name}" if name else f"the {kind}"


def _shown(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)
