"""What rounding a prior's weights costs: the cross-entropy of held-out codes, decoded step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.errors import require
from codegrid.pipelines.artifacts.loading import load_prior_and_sequence, local_folder
from codegrid.pipelines.benchmarks.options import Benchmark
from codegrid.pipelines.benchmarks.report import Row, print_row
from codegrid.prior.codes import open_codes
from codegrid.prior.decoder_weights import DecoderWeights
from codegrid.prior.decoding import Decoder, read_weights
from codegrid.prior.sequence import to_tokens

_WIDTHS = {"weights": 8, "nats a code": 12, "change": 10, "images": 7}
_FRACTION = 0.05  # held out, as by the presets of `codegrid train-prior`
_MOST_IMAGES = 240


@dataclass(frozen=True, kw_only=True)
class RoundedWeights(Benchmark):
    """Held-out cross-entropy of a prior whose weights are rounded to 16 and 8 bits (no times).

    A row for each format of the weights.

    Args:
        prior: its folder.
        codes: folder of the codes that it was trained on.
    """

    name = "rounded-weights"
    prior: str
    codes: str

    def measure(self) -> list[Row]:
        model, sequence = load_prior_and_sequence(local_folder(self.prior, "prior"))
        data = open_codes(self.codes)
        require(
            data.manifest.sequence_config() == sequence,
            f"{self.codes} are not the codes of {self.prior}.",
            "Give those that it was trained on.",
        )
        rows = data.split(_FRACTION)[1][:_MOST_IMAGES]
        require(len(rows) > 0, f"{self.codes} has too few images to hold any out.", "Tokenize more of them.")
        labels, unknown = data.condition_values(rows)
        tokens = to_tokens(torch.as_tensor(data.codes(rows).astype("int64")), labels, unknown, sequence)
        print_row({}, _WIDTHS, header=True)
        report: list[Row] = []
        for name in ("exact", "float16", "int8"):
            weights = read_weights(model, sequence.codebook_size, tokens.shape[1] - 1, weights=name)
            nats = cross_entropy(weights, tokens, sequence.prefix_length)
            change = nats - (report[0]["nats a code"] if report else nats)
            report.append({"weights": name, "nats a code": nats, "change": change, "images": len(rows)})
            print_row(report[-1], _WIDTHS)
        return report


@torch.inference_mode()
def cross_entropy(weights: DecoderWeights, tokens: Tensor, prefix_length: int = 1) -> float:
    """Of the codes of tokens [B, n + L], prefix first, in nats a code."""
    padding = -len(tokens) % weights.row_multiple
    fed = torch.cat([tokens, tokens[:1].expand(padding, -1)])
    decoder, total = Decoder(weights, len(fed)), 0.0
    for place, column in enumerate(fed.unbind(1)[:-1], 1):
        hidden = decoder.advance(column)
        if place >= prefix_length:
            logits = decoder.logits(hidden)[: len(tokens)].double()
            total += float(F.cross_entropy(logits, tokens[:, place]))
    return total / (tokens.shape[1] - prefix_length)
