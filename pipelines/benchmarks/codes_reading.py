"""Rows of a code data set in shuffled order: as training reads them, beside Hugging Face's reader."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import load_dataset

from codegrid.pipelines.benchmarks.options import Timed
from codegrid.pipelines.benchmarks.report import Row, in_turn, print_row
from codegrid.pipelines.system.randomness import SampleOrder
from codegrid.prior.codes import CodeDataset, CodesManifest, Shard

_ROWS, _READ, _LENGTH, _CODES, _BATCH = 100_000, 65_536, 256, 16_384, 256
_WIDTHS = {"reader": 28, "rows": 7, "batch": 6, "ms": 8, "spread": 6, "rows/s": 9, "ratio": 6}


@dataclass(frozen=True, kw_only=True)
class CodesReading(Timed):
    """Shuffled rows of a code data set, beside Hugging Face's reader.

    A row for each reader; each reads the same rows, batch by batch, in the order of training.
    """

    name = "codes-reading"

    def measure(self) -> list[Row]:
        order = SampleOrder(_ROWS, 0)
        starts = range(0, _READ, _BATCH)
        with tempfile.TemporaryDirectory() as folder:
            codes, peer = _written(Path(folder))

            def batches():
                for start in starts:
                    yield order.indices(start, _BATCH)

            def hugging_face() -> torch.Tensor:
                for rows in batches():
                    read = peer[rows]["codes"]
                return read

            def ours() -> torch.Tensor:
                for rows in batches():
                    read = torch.from_numpy(codes.codes(rows))
                return read

            runs = {"datasets, torch format": hugging_face, "ours": ours}
            if not torch.equal(*(run().long() for run in runs.values())):
                raise RuntimeError("The readers give different codes.")
            print_row({}, _WIDTHS, header=True)
            found = []
            for name, timing in in_turn(runs, self.repeats).items():
                number = len(starts) * _BATCH
                row = {"reader": name, "rows": number, "batch": _BATCH, "rows/s": number / timing.seconds}
                found.append({**row, **timing.columns()})
                print_row(found[-1], _WIDTHS)
        return found


def _written(folder: Path) -> tuple[CodeDataset, object]:
    """Random codes as this project stores them, and the same file as Hugging Face's datasets read it."""
    values = np.random.default_rng(0).integers(0, _CODES, (_ROWS, _LENGTH), dtype=np.uint16)
    path, side = folder / "codes.parquet", int(_LENGTH**0.5)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), _LENGTH)
    pq.write_table(pa.table({"codes": column, "label": np.zeros(_ROWS, np.int64)}), path)
    manifest = CodesManifest(
        tokenizer="none",
        tokenizer_fingerprint="none",
        codebook_size=_CODES,
        grid_shape=(side, side),
        class_names=("all",),
        source="random",
        source_fingerprint="none",
        num_rows=_ROWS,
        num_images=_ROWS,
        shards=(Shard(path.name, _ROWS, path.stat().st_size, ""),),
    )
    cache = str(folder / "cache")
    peer = load_dataset("parquet", data_files=str(path), split="train", cache_dir=cache).with_format("torch")
    return CodeDataset(manifest, [path]), peer
