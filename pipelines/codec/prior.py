"""Probabilities by the transformer, rounded so that another machine's floats read the same codes.

The writer computes all logits of an image in one parallel pass, the reader one code at a time, on another machine
perhaps. Their logits differ by rounding. As long as no logit differs by more than 2^-bound, every decision of a file
has the same integer weight on both sides (`angles.py`). Beyond it the checksum of the codes refuses the file.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from codegrid.errors import CodegridError, require
from codegrid.pipelines.codec import angles
from codegrid.pipelines.codec.decisions import ONE, halves, path, path_halves, tree_sums
from codegrid.pipelines.codec.entropy import BitDecoder, BitDecoders, encoded
from codegrid.pipelines.codec.models import CodeModel, images_at_once, read_codes
from codegrid.prior import SequenceConfig, to_codes, to_tokens
from codegrid.prior.decoding import Decoder, read_weights
from codegrid.prior.likelihood import code_logits
from codegrid.prior.orders import place_pairs
from codegrid.prior.window_coding import checked_reads

BLOCK = 64  # codes that share a shift of the cells
# Ten times the largest difference of logits that was measured between two ways of computing them: docs/compression.md.
BOUND = 13
MOST_BOUND = 24
_MOST_ROWS = 64  # images decoded at once
_COMPARED = 4  # shifts of a block that a writer compares


class PriorModel(CodeModel):
    """The prior's probabilities, of float32 weights, with the class of an image or the null class.

    Args:
        model: the bare prior. Weights of another dtype are widened to float32.
        sequence: its sequence.
        fingerprint: of its weights.
        bound: logits of writer and reader may differ by at most 2^-bound. It stands in the file.
    """

    number = 2

    def __init__(self, model: PreTrainedModel, sequence: SequenceConfig, fingerprint: str, bound: int = BOUND) -> None:
        require(
            1 <= bound <= MOST_BOUND,
            f"bound is {bound}: the logits may differ by 2^-bound.",
            f"Give 1 to {MOST_BOUND}.",
        )
        reads = checked_reads(model)
        # A prior of any order codes in raster order, and is told so.
        self._order = torch.arange(sequence.length) if reads == "any order" else None
        self.model = model if model.dtype == torch.float32 else _widened(model)
        self.sequence, self.bound = sequence, bound
        self._epsilon = 2.0**-bound
        self.fingerprint = bytes.fromhex(fingerprint)[:4]

    def write(self, codes: np.ndarray, labels: Sequence[int | None]) -> list[bytes]:
        self._check_shape(codes.shape[1:])
        payloads: list[bytes] = []
        at_once = images_at_once(self.sequence.codebook_size, self.sequence.length)
        for first in range(0, len(codes), at_once):
            tokens = self._tokens(codes[first : first + at_once], labels[first : first + at_once])
            logits = self.logits(tokens)
            target = tokens[:, self.sequence.prefix_length :].numpy()
            payloads += [self.coded(self.path_angles(*image), image[1]) for image in zip(logits, target, strict=True)]
        return payloads

    @torch.inference_mode()
    def logits(self, tokens: Tensor) -> np.ndarray:
        """Token sequences [B, n + L] -> logits float64 [B, L, K] of every code, given those before it."""
        with exact_products():
            logits = code_logits(self.model.eval(), tokens, self.sequence, self._order)
        return logits.float().cpu().numpy().astype(np.float64)

    def read(self, payloads: Sequence[bytes], shape: tuple[int, int, int], labels: Sequence[int | None]) -> np.ndarray:
        self._check_shape(shape)
        if not payloads:
            return np.empty((0, *shape), dtype=np.int64)
        positions = self.sequence.prefix_length + self.sequence.length - 1
        weights = read_weights(self.model, self.sequence.codebook_size, positions)
        rows = -(-min(len(payloads), _MOST_ROWS) // weights.row_multiple) * weights.row_multiple
        decoder = Decoder(weights, rows)
        tokens = [
            self._read_batch(decoder, payloads[first : first + rows], labels[first : first + rows])
            for first in range(0, len(payloads), rows)
        ]
        return to_codes(torch.from_numpy(np.concatenate(tokens)), self.sequence).reshape(-1, *shape).numpy()

    @torch.inference_mode()
    def _read_batch(self, decoder: Decoder, payloads: Sequence[bytes], labels: Sequence[int | None]) -> np.ndarray:
        """Codes int64 [b, L] in the order of the sequence; b is at most the decoder's rows."""
        readers = BitDecoders(payloads)
        count, length = len(payloads), self.sequence.length
        prefix = self.prefixes(labels)
        rows = torch.arange(decoder.rows) % count  # the rest of the rows repeats images
        codes = np.empty((count, length), dtype=np.int64)
        with exact_products(), torch.autocast(self.model.device.type, enabled=False):
            decoder.restart()
            *before, tokens = prefix[rows].to(self.model.device).unbind(1)
            for token in before:
                decoder.advance(token, self._places(decoder))
            shifts = np.zeros(count, dtype=np.int64)
            for place in range(length):
                if place % BLOCK == 0:
                    shifts = self.next_shifts(readers)
                hidden = decoder.advance(tokens, self._places(decoder))
                logits = decoder.logits(hidden)[:count].cpu().numpy().astype(np.float64)
                codes[:, place] = self.next_codes(readers, logits, shifts)
                tokens = torch.from_numpy(codes[:, place])[rows].to(self.model.device)
        return codes

    def _places(self, decoder: Decoder) -> tuple[Tensor, Tensor] | None:
        """Own and target place of the next token of each row; None for a prior of raster order."""
        if self._order is None:
            return None
        own, target = place_pairs(self._order[None], self.sequence.prefix_length)
        at = decoder.position
        own, target = (part[:, at].expand(decoder.rows).to(self.model.device) for part in (own, target))
        return own, target

    def next_codes(self, readers: BitDecoders, logits: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """The next code of each image, int64 [b], by its logits float64 [b, K] and the shift of its block [b]."""
        weigh = functools.partial(self._weigh, tree_sums(_weights(logits)), shifts)
        return read_codes(readers, self.sequence.codebook_size, weigh)

    def next_code(self, reader: BitDecoder, logits: np.ndarray, shift: int) -> int:
        """`next_codes` of one image, by plain numbers: logits float64 [K]."""
        levels, number = tree_sums(_weights(logits)), angles.cells(self.bound)
        node, size = 0, self.sequence.codebook_size
        for depth, below in enumerate(levels[1:]):
            node *= 2
            if (node + 1) << (len(levels) - 2 - depth) < size:  # the upper half holds a code
                halves_of_node = below.item(node), below.item(node + 1)
                weight = ONE // 2 if shift < 0 else angles.one_weight(*halves_of_node, shift, number)
                node += reader.read(weight)
        return node

    def next_shift(self, reader: BitDecoder) -> int:
        """`next_shifts` of one image."""
        vain = angles.fits_weight(self.bound)
        for attempt in range(angles.TRIES):
            if not reader.read(vain):
                return angles.shift(attempt)
        return -1

    def _weigh(self, levels: list[np.ndarray], shifts: np.ndarray, nodes: np.ndarray, depth: int) -> np.ndarray:
        """Weights of bit 1 of nodes [b] at a depth; a negative shift is that of a block that is not compressed."""
        number = angles.cells(self.bound)
        theta = angles.angles(*halves(levels, nodes, depth))
        weights = angles.cell_weight(angles.cell(theta, shifts, number), shifts, number)
        return np.where(shifts < 0, ONE // 2, weights)

    def next_shifts(self, readers: BitDecoders) -> np.ndarray:
        """The shifts of the next blocks, int64 [B]; -1 where a block's codes are not compressed."""
        vain = np.full(readers.number, angles.fits_weight(self.bound))
        found, asked = np.full(readers.number, -1), np.ones(readers.number, dtype=bool)
        for attempt in range(angles.TRIES):
            fits = asked & (readers.read(vain, asked) == 0)
            found[fits] = angles.shift(attempt)
            asked &= ~fits
            if not asked.any():
                break
        return found

    def path_angles(self, logits: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Logits [L, K], codes [L] -> the angles of the decisions on the codes' paths, float64 [L, D]."""
        return angles.angles(*path_halves(tree_sums(_weights(logits)), codes))

    def coded(self, theta: np.ndarray, codes: np.ndarray) -> bytes:
        """The payload of an image: its codes [L] in the order in which they are coded, and their `path_angles`."""
        bits, decided = path(codes, self.sequence.codebook_size)
        vain, all_bits, all_weights = angles.fits_weight(self.bound), [], []
        for first in range(0, len(codes), BLOCK):
            block = slice(first, first + BLOCK)
            on_path, asked = theta[block][decided[block]], bits[block][decided[block]]
            attempt, weights = self.cheapest(on_path, asked)
            flags = np.ones(attempt + 1, dtype=np.int64)
            if attempt == angles.TRIES:  # no shift fits
                flags = flags[:-1]
            else:
                flags[-1] = 0
            all_bits += [flags, asked]
            all_weights += [np.full(len(flags), vain), weights]
        return encoded(np.concatenate(all_bits), np.concatenate(all_weights))

    def cheapest(self, theta: np.ndarray, bits: np.ndarray) -> tuple[int, np.ndarray]:
        """The shift of a block by its decisions: angles [n] and bits [n] -> the number of the try, and the weights [n].

        A shift will do if it leaves all angles away from the borders: of the first few, the one of the fewest bits is
        taken. If there is none, the number is TRIES and every decision weighs a half.
        """
        number, epsilon, found = angles.cells(self.bound), self._epsilon, 0
        vain = angles.fits_weight(self.bound) / ONE
        best = (math.inf, angles.TRIES, np.full(len(bits), ONE // 2))
        for attempt in range(angles.TRIES):
            shift = angles.shift(attempt)
            if not angles.is_safe(theta, shift, number, epsilon).all():
                continue
            weights = angles.cell_weight(angles.cell(theta, shift, number), shift, number)
            # What tells the shift costs log2(vain) bits for each try in vain; the last flag costs the same in all.
            cost = -attempt * math.log2(vain) - float(np.log2(np.where(bits == 1, weights, ONE - weights) / ONE).sum())
            if cost < best[0]:
                best = (cost, attempt, weights)
            found += 1
            if found == _COMPARED:
                break
        return best[1], best[2]

    def prefixes(self, labels: Sequence[int | None]) -> Tensor:
        """The tokens before the codes, [B, n] int64."""
        nothing = np.zeros((len(labels), *self._shape), dtype=np.int64)
        return self._tokens(nothing, labels)[:, : self.sequence.prefix_length]

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (*self.sequence.grid_shape, self.sequence.depth)

    def _check_shape(self, shape: Sequence[int]) -> None:
        if tuple(shape) != self._shape:
            found, own = (" x ".join(map(str, numbers)) for numbers in (shape, self._shape))
            raise CodegridError(
                f"The codes of a picture are {found}, and this prior knows grids of {own}.",
                "Take --model context or --model fixed for other sizes.",
            )

    def _tokens(self, codes: np.ndarray, labels: Sequence[int | None]) -> Tensor:
        """Codes [B, h, w, depth] -> [B, n + L] int64; None is the null class."""
        absent = torch.tensor([label is None for label in labels])
        kind = self.sequence.conditioning
        if kind.vocab_size == 0:
            classes, drop = None, None
        elif self.sequence.num_classes == 0:  # another condition, which a file does not hold: null
            classes, drop = torch.zeros(len(codes), *kind.value_shape, dtype=torch.int64), absent | True
        else:
            classes = torch.tensor([0 if label is None else label for label in labels])
            drop = absent if bool(absent.any()) else None
        return to_tokens(torch.from_numpy(codes).flatten(1), classes, drop, self.sequence)


def _weights(logits: np.ndarray) -> np.ndarray:
    """Weights of codes: exp of the logits [..., K] above the greatest, float64."""
    return np.exp(logits - logits.max(-1, keepdims=True))


def _widened(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).float()


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """float32 products in full: TF32's error of 1e-3 is far beyond any bound."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
