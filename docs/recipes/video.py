"""Clips as rows of frames, and the frames that come next (docs/recipes/video.md).

`python docs/recipes/video.py COMMAND --help`. Frames lie in FRAMES/{train,validation}/CLIP/NNNNN.png, 64 x 64 pixels.
"""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import tyro
from PIL import Image
from tqdm import tqdm

from codegrid.errors import CodegridError, require
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.prior import load_prior, sample_codes, to_codes, to_tokens
from codegrid.prior.codes import read_manifest
from codegrid.prior.likelihood import code_logits
from codegrid.tokenizer import Preprocessing, VQModel
from codegrid.tokenizer.images import to_model, to_square, to_uint8

SIDE = 64


def velocities(by: int, fastest: int) -> list[tuple[int, int]]:
    """Pixels a frame, down and to the right: multiples of `by` up to `fastest` times it, together at least 2 pixels."""
    steps = range(-by * fastest, by * fastest + 1, by)
    return [(down, right) for down in steps for right in steps if down**2 + right**2 >= 4]


def paths(frames: int, size: int, by: int, fastest: int) -> list[tuple[tuple[int, int], ...]]:
    """All ways of a square through as many frames, evenly and back from the edges, whose places all differ.

    A place is (top, left). A way that comes back to a place is left out: to go on from there, memory would be enough.
    """
    room, found = SIDE - size, set()
    for way in velocities(by, fastest):
        for first in product(range(0, room + 1, by), repeat=2):
            places = tuple(
                tuple(
                    room - abs((start + time * step) % (2 * room) - room)
                    for start, step in zip(first, way, strict=True)
                )
                for time in range(frames)
            )
            if len(set(places)) == frames:
                found.add(places)
    require(
        bool(found), f"A picture of {size} pixels comes back within {frames} frames.", "Give a smaller size, or fewer."
    )
    return sorted(found)


def moving(picture: np.ndarray, path: tuple[tuple[int, int], ...], background: int) -> np.ndarray:
    """picture uint8 [s, s, 3] -> frames uint8 [T, SIDE, SIDE, 3] in which it is at each place of the path."""
    size, clip = len(picture), np.full((len(path), SIDE, SIDE, 3), background, np.uint8)
    for frame, (top, left) in zip(clip, path, strict=True):
        frame[top : top + size, left : left + size] = picture
    return clip


def move(
    source: str,
    output: Path,
    split: str | None = None,
    validation_split: str | None = None,
    clips: int = 8000,
    validation_clips: int = 200,
    frames: int = 12,
    size: int = 16,
    by: int = 8,
    fastest: int = 1,
    background: int = 255,
) -> None:
    """Write clips in which a picture of SOURCE (as `--data.source`) moves evenly.

    Args:
        split, validation_split: of SOURCE. Without the latter every tenth picture is held out.
        clips, validation_clips: how many of each.
        frames: of a clip.
        size: of the picture in a frame, in pixels.
        by: places and pixels a frame are multiples of it; 8 is what the tokenizer makes one code of.
        fastest: how many times `by` a frame at most, down and to the right.
        background: grey level around it; that of the pictures themselves.
    """
    images = open_images(DataConfig(source, **({} if split is None else {"split": split})))
    others = images if validation_split is None else open_images(DataConfig(source, split=validation_split))
    rows = {"train": range(len(images)), "validation": range(len(others))}
    if validation_split is None:
        rows = {part: [row for row in rows[part] if (row % 10 == 0) == (part == "validation")] for part in rows}
    ways, draw = paths(frames, size, by, fastest), random.Random(0)
    prepared = Preprocessing(image_size=size, smaller="upscale")
    for part, number, of in (("train", clips, images), ("validation", validation_clips, others)):
        for index in tqdm(range(number), mininterval=5, desc=part):
            picture = to_square(of[draw.choice(rows[part])].data, prepared)
            write(moving(picture, draw.choice(ways), background), output / part / f"{index:05}")
    print(f"{clips:,} and {validation_clips:,} clips of {frames} frames, on {len(ways)} paths, are in {output}.")


def cut(video: Path, output: Path, held_out: float = 0.1) -> None:
    """Write the frames of a video, squares of its middle; the last part of it is held out.

    Args:
        held_out: share of the frames.
    """
    import av

    with av.open(str(video)) as file:
        small = Preprocessing(image_size=SIDE, smaller="upscale")
        frames = np.stack([to_square(frame.to_image(), small) for frame in file.decode(video=0)])
    first = round(len(frames) * (1 - held_out))
    for part, some in (("train", frames[:first]), ("validation", frames[first:])):
        write(some, output / part / "00000")
    print(f"{first:,} frames to train on and {len(frames) - first:,} held out are in {output}.")


def write(frames: np.ndarray, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index:05}.png")


def rows_of(clips: dict[str, list], frames: int, every: int) -> list[list]:
    """Windows of `frames` frames, `every` frames of the clip apart; a clip as long as a window is one."""
    span = (frames - 1) * every + 1
    return [clip[i : i + span : every] for clip in clips.values() for i in range(len(clip) - span + 1)]


def clips(codes: Path, output: Path, frames: int = 6, every: int = 1) -> None:
    """Codes of frames (`codegrid tokenize-dataset`) -> an array uint16 [N, frames, h, w] for `codegrid import-codes`.

    Args:
        frames, every: of a row, and how many frames of the clip lie from one to the next.
    """
    height, width = read_manifest(codes).grid_shape
    table, found = pq.read_table(codes / "data", columns=["codes", "source_id"]), defaultdict(list)
    stored = np.stack(table["codes"].to_numpy()).astype(np.uint16).reshape(-1, height, width)
    for row, name in enumerate(table["source_id"].to_pylist()):
        found[name.rpartition("/")[0]].append((name, row))
    ordered = {clip: [row for _, row in sorted(pairs)] for clip, pairs in sorted(found.items())}
    rows = np.array(rows_of(ordered, frames, every))  # [N, T]
    require(rows.size > 0, f"No clip has {frames} frames, {every} apart.", "Give fewer.")
    with output.open("wb") as file:
        np.save(file, stored[rows])
    print(f"{len(rows):,} rows of {frames} frames, from {len(ordered):,} clips, are in {output}.")


def next_frames(model, sequence, known: torch.Tensor, number: int, temperature: float) -> torch.Tensor:
    """Codes of frames [B, n, h, w] -> codes of the `number` frames after them, [B, number, h, w].

    The prior's rows have T frames: the last n known ones begin a row, the prior draws its T - n others, and so on.
    """
    batch, given, height, width = known.shape
    total = sequence.grid_shape[0] // height
    require(given < total, f"{given} frames are given, and a row has {total}.", "Give fewer.")
    frames, round_ = known, 0
    while frames.shape[1] < given + number:
        prefix = frames[:, -given:].reshape(batch, given * height, width)
        seeds = [10_000 * round_ + index for index in range(batch)]
        drawn = sample_codes(model, sequence, seeds=seeds, prefix_codes=prefix, temperature=temperature)
        row = to_codes(drawn, sequence).reshape(batch, total, height, width)
        frames, round_ = torch.cat([frames, row[:, given:]], 1), round_ + 1
    return frames[:, given : given + number]


@torch.no_grad()
def frame_bits(model, sequence, codes: torch.Tensor) -> np.ndarray:
    """Codes [N, T, h, w] -> bits of each frame given those before it in a row, [T], the mean of the clips."""
    known, found = sequence.length // codes[0, 0].numel(), []
    for start in range(codes.shape[1] - known + 1):
        bits = []
        for row in codes[:, start : start + known].flatten(1).split(8):
            logits = code_logits(model, to_tokens(row, None, None, sequence), sequence).double()  # [b, L, K]
            nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), row, reduction="none")  # [b, L]
            bits.append(nats.reshape(len(row), known, -1).sum(-1) / np.log(2))
        found.append(torch.cat(bits).mean(0)[-1 if start else 0 :])
    return torch.cat(found).numpy() if found else np.empty(0)


def centroids(frames: np.ndarray) -> np.ndarray:
    """frames uint8 [..., H, W, 3] -> row and column [..., 2] of the mean of what differs from the edges' colour."""
    edges = [frames[..., 0, :, :], frames[..., -1, :, :], frames[..., :, 0, :], frames[..., :, -1, :]]
    ground = np.median(np.concatenate(edges, -2), -2)[..., None, None, :]
    weight = np.abs(frames - ground).sum(-1)
    weight = np.where(weight > 60, weight, 0) + 1e-9  # of 765: the tokenizer's noise is no picture
    rows, columns = np.arange(weight.shape[-2]), np.arange(weight.shape[-1])
    total = weight.sum((-1, -2))
    return np.stack([(weight.sum(-1) * rows).sum(-1) / total, (weight.sum(-2) * columns).sum(-1) / total], -1)


def psnr(frames: np.ndarray, true: np.ndarray) -> np.ndarray:
    """uint8 [N, T, H, W, 3] -> dB of each frame's place in time, [T]: of the mean squared error of all clips."""
    return 10 * np.log10(255**2 / ((frames.astype(float) - true) ** 2).mean((0, 2, 3, 4)))


def predict(
    prior: Path,
    tokenizer: Path,
    frames: Path,
    output: Path,
    given: int = 4,
    predicted: int = 8,
    every: int = 1,
    number: int = 64,
    temperature: float = 1.0,
) -> None:
    """Predict the frames of clips below FRAMES (a part, as FRAMES/validation), print how near they come, write a GIF.

    Args:
        given, predicted: frames of a clip that are known, and that are drawn after them.
        every: as in `clips`.
        number: of clips, evenly chosen.
        temperature: divides the logits; 0 takes the likeliest code.
    """
    found = {folder.name: sorted(folder.glob("*.png")) for folder in sorted(frames.iterdir()) if folder.is_dir()}
    rows = rows_of(found, given + predicted, every)
    require(bool(rows), f"No clip of {frames} has {given + predicted} frames.", "Give fewer.")
    rows = [rows[index] for index in np.linspace(0, len(rows) - 1, min(number, len(rows))).astype(int)]
    true = np.stack([[np.asarray(Image.open(path).convert("RGB")) for path in row] for row in rows])  # [N, T, H, W, 3]
    vq, (model, sequence) = VQModel.from_pretrained(tokenizer).eval(), load_prior(prior)
    with torch.no_grad():
        codes = torch.stack([vq.encode(to_model(clip)) for clip in true])  # [N, T, h, w]
        drawn = next_frames(model, sequence, codes[:, :given], predicted, temperature)
        ours, best = (
            np.stack([to_uint8(vq.decode(clip)).numpy() for clip in each]) for each in (drawn, codes[:, given:])
        )
    later, last = true[:, given:], true[:, given - 1 : given].repeat(predicted, 1)
    aim = centroids(later)
    print(f"{len(rows)} clips; in dB of PSNR, and pixels from the true centroid (mean, median, share within 2):")
    for name, each in (("predicted", ours), ("the last known frame, copied", last), ("the true codes, decoded", best)):
        away, noise = np.linalg.norm(centroids(each) - aim, axis=-1), psnr(each, later)
        for time in range(predicted):
            where = f"{np.mean(away[:, time]):.2f}, {np.median(away[:, time]):.2f}, {np.mean(away[:, time] <= 2):.0%}"
            print(f"  frame {time + 1} {name}: {noise[time]:.2f} dB; {where}")
    print("Bits of each frame given those before it:", *(f"{bits:.0f}" for bits in frame_bits(model, sequence, codes)))
    film(true, np.concatenate([true[:, :given], ours], 1), given, output)
    print(f"True clips above predicted ones, a bar below what is predicted: {output}.")


def film(true: np.ndarray, predicted: np.ndarray, given: int, output: Path, most: int = 8) -> None:
    """Write [N, T, H, W, 3] twice as a GIF, the first clips side by side."""
    pictures = []
    for time in range(true.shape[1]):
        above, below = (np.concatenate(list(each[:most, time]), 1) for each in (true, predicted))
        bar = np.full((4, above.shape[1], 3), (220, 40, 40) if time >= given else (200, 200, 200), np.uint8)
        pictures.append(Image.fromarray(np.concatenate([above, below, bar])))
    pictures[0].save(output, save_all=True, append_images=pictures[1:], duration=250, loop=0)


def main(words: list[str] | None = None) -> None:
    commands = {"move": move, "cut": cut, "clips": clips, "predict": predict}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, args=words, config=(tyro.conf.PositionalRequiredArgs,))
    except CodegridError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
