"""docs/recipes/book.md: windows of a text as rows of bytes, samples as text, and nanoGPT's own model on the same."""

from __future__ import annotations

import argparse
import math
import pickle
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

LENGTH, KNOWN = 256, 128  # characters of a window, and those that a score knows before it


def split(path: str) -> tuple[np.ndarray, int]:
    """A text's bytes, and where the last tenth begins, which is held out."""
    text = np.fromfile(path, np.uint8)
    return text, len(text) * 9 // 10


def windows(text: str, training: str, held_out: str, number: int = 100_000) -> None:
    """Windows from anywhere in the first nine tenths; and those that score each character of the last tenth once."""
    array, cut = split(text)
    starts = np.random.default_rng(0).integers(0, cut - LENGTH, number)
    np.save(training, array[starts[:, None] + np.arange(LENGTH)])
    behind = np.lib.stride_tricks.sliding_window_view(array[cut - KNOWN :], LENGTH)[:: LENGTH - KNOWN]
    np.save(held_out, behind)
    print(f"{len(array):,} bytes, the last {len(array) - cut:,} held out: {len(behind):,} windows.")


def show(codes: str) -> None:
    for row in np.load(codes, allow_pickle=False):
        print(row.astype(np.uint8).tobytes().decode("utf-8", errors="replace"), end="\n\n")


def nanogpt(text: str, clone: str) -> None:
    """What nanoGPT's train.py reads, in its own clone; and train_bf16.py, which computes in bf16 on a CPU as well."""
    (array, cut), folder = split(text), Path(clone) / "data" / "text"
    folder.mkdir(parents=True, exist_ok=True)
    array[:cut].astype(np.uint16).tofile(folder / "train.bin")
    array[cut:].astype(np.uint16).tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 128}))
    script = (Path(clone) / "train.py").read_text()
    (Path(clone) / "train_bf16.py").write_text(script.replace("nullcontext() if device_type == 'cpu' else ", ""))


@torch.no_grad()
def score_nanogpt(clone: str, checkpoint: str, held_out: str) -> None:
    """Bits a character of the second halves of the held-out windows, as of `codegrid evaluate prior --given 128`."""
    sys.path.insert(0, clone)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]  # nanoGPT's

    saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
    model = GPT(GPTConfig(**saved["model_args"]))
    model.load_state_dict(saved["model"])
    model.eval()
    nats, rows = 0.0, torch.from_numpy(np.load(held_out, allow_pickle=False).astype(np.int64))
    for part in rows.split(32):
        logits, _ = model(part[:, :-1], part[:, 1:].contiguous())  # with targets it gives the logits of all positions
        scores = logits[:, KNOWN - 1 :].flatten(0, 1).double()
        nats += F.cross_entropy(scores, part[:, KNOWN:].flatten(), reduction="sum").item()
    scored = len(rows) * (LENGTH - KNOWN)
    print(f"{nats / scored / math.log(2):.4f} bits a character over {scored:,}, step {saved['iter_num']}.")


def main(words: list[str] | None = None) -> None:
    steps = {"windows": windows, "show": show, "nanogpt": nanogpt, "score-nanogpt": score_nanogpt}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=steps)
    parser.add_argument("arguments", nargs="*")
    given = parser.parse_args(words)
    steps[given.step](*given.arguments)


if __name__ == "__main__":
    main()
