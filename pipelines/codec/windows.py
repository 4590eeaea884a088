"""The prior on grids larger than it was trained on: codes are coded window by window (`codegrid.prior.windows`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from codegrid.pipelines.codec.entropy import BitDecoder
from codegrid.pipelines.codec.models import CodeModel
from codegrid.pipelines.codec.prior import BLOCK, PriorModel, exact_products
from codegrid.prior.window_coding import CodingStep, logits_to_read, logits_to_write
from codegrid.prior.windows import WindowPlan, window_plan


class WindowedModel(CodeModel):
    """The prior's probabilities of each code, given the codes of its window that come before.

    Args:
        prior: the model of grids of the trained size.
        overlap: rows and columns that neighbouring windows have in common; None is half a window.
    """

    number = 3

    def __init__(self, prior: PriorModel, overlap: tuple[int, int] | None = None) -> None:
        rows, columns = prior.sequence.grid_shape
        self.prior, self.overlap = prior, overlap or (rows // 2, columns // 2)
        self.fingerprint, self.bound = prior.fingerprint, prior.bound

    def write(self, codes: np.ndarray, labels: Sequence[int | None]) -> list[bytes]:
        plan = self._plan(codes.shape[1:3])
        return [self._written(plan, *image) for image in zip(codes, labels, strict=True)]

    def read(self, payloads: Sequence[bytes], shape: tuple[int, int, int], labels: Sequence[int | None]) -> np.ndarray:
        plan = self._plan(shape[:2])
        grids = [self._read(plan, *image) for image in zip(payloads, labels, strict=True)]
        return np.stack(grids).reshape(-1, *shape) if grids else np.empty((0, *shape), dtype=np.int64)

    def _plan(self, grid: Sequence[int]) -> WindowPlan:
        return window_plan(self.prior.sequence, (grid[0], grid[1]), overlap=self.overlap)

    def _written(self, plan: WindowPlan, codes: np.ndarray, label: int | None) -> bytes:
        """One image: codes [h, w, depth]."""
        angles, coded = [], []
        with exact_products(), torch.inference_mode():
            prefixes = self.prior.prefixes([label])
            for step in logits_to_write(self.prior.model, plan, torch.from_numpy(codes)[None], prefixes):
                coded.append(codes.reshape(-1)[step.places.numpy()])  # [m]
                angles.append(self.prior.path_angles(_logits(step), coded[-1]))
        return self.prior.coded(np.concatenate(angles), np.concatenate(coded))

    def _read(self, plan: WindowPlan, payload: bytes, label: int | None) -> np.ndarray:
        """One image: codes [h, w(, depth)]."""
        reader, number, shift = BitDecoder(payload), 0, 0
        with exact_products(), torch.inference_mode():
            reading = logits_to_read(self.prior.model, plan, self.prior.prefixes([label]))
            step = next(reading)
            while True:
                found = np.empty((1, len(step.places)), dtype=np.int64)
                for place, logits in enumerate(_logits(step)):
                    if number % BLOCK == 0:
                        shift = self.prior.next_shift(reader)
                    found[0, place] = self.prior.next_code(reader, logits, shift)
                    number += 1
                try:
                    step = reading.send(torch.from_numpy(found))
                except StopIteration as end:
                    return end.value[0].numpy()


def _logits(step: CodingStep) -> np.ndarray:
    """float64 [m, K] of the one image of a step."""
    return step.logits[0].float().cpu().numpy().astype(np.float64)
