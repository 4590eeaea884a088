"""Sounds as pictures and back (docs/recipes/sound.md): `python docs/recipes/sound.py COMMAND --help`.

A picture is a log-mel spectrogram, uint8 [BANDS, FRAMES]: high bands above, time to the right, black 80 dB below the
loudest value of the sound, white that value. The way back is non-negative least squares from bands to frequencies and
Griffin-Lim for the phases (librosa).
"""

from __future__ import annotations

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile
import torch
import tyro
from PIL import Image
from tqdm import tqdm

from codegrid.errors import CodegridError, require
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.images import to_model, to_uint8

RATE, FFT, HOP, BANDS, FRAMES = 16_000, 1024, 192, 64, 64
SAMPLES = (FRAMES - 1) * HOP  # of a window: 0.756 s
RANGE = 80.0  # dB from black to white
SILENT, QUIET = 40.0, 60.0  # dB below the loudest: ends that are cut off, and windows that are left out
ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def mel_power(sound: np.ndarray) -> np.ndarray:
    """sound float [n] at RATE -> power in mel bands [BANDS, 1 + n // HOP]."""
    return librosa.feature.melspectrogram(y=sound, sr=RATE, n_fft=FFT, hop_length=HOP, n_mels=BANDS, norm=None)


def to_picture(power: np.ndarray) -> np.ndarray:
    """power [BANDS, FRAMES] with 1 for white -> uint8 [BANDS, FRAMES]. What lies outside of the range is cut."""
    decibels = 10 * np.log10(np.maximum(power[::-1], 1e-12))
    return np.clip(np.round(255 * (1 + decibels / RANGE)), 0, 255).astype(np.uint8)


def to_power(picture: np.ndarray) -> np.ndarray:
    """The inverse of `to_picture`: exact for every picture, and within half a level (0.16 dB) for a power in range."""
    return 10 ** (RANGE / 10 * (picture[::-1] / 255 - 1))


def to_sound(picture: np.ndarray) -> np.ndarray:
    """uint8 [BANDS, FRAMES] -> float32 [SAMPLES] at RATE. Black is silence."""
    power = np.where(picture[::-1] > 0, to_power(picture), 0)
    filters = {"n_fft": FFT, "power": 2.0, "norm": None}
    magnitude = librosa.feature.inverse.mel_to_stft(power.astype(np.float32), sr=RATE, **filters)
    return librosa.griffinlim(magnitude, hop_length=HOP, n_fft=FFT, length=SAMPLES, random_state=0).astype(np.float32)


def load(path: Path) -> np.ndarray | None:
    """A sound at RATE, the mean of its channels, without silent ends, its loudest mel power 1. None: all is silent."""
    sound, _ = librosa.load(path, sr=RATE, mono=True)
    sound = librosa.effects.trim(sound, top_db=SILENT, frame_length=FFT, hop_length=HOP)[0] if sound.any() else sound
    return None if not sound.any() else scaled(sound)


def scaled(sound: np.ndarray) -> np.ndarray:
    loudest = mel_power(np.pad(sound, (0, max(0, SAMPLES - len(sound))))).max()
    return sound / np.sqrt(max(loudest, 1e-12))


def windows(sound: np.ndarray) -> list[np.ndarray]:
    """Parts of SAMPLES, the last filled up with silence; a rest below a quarter and quiet ones are left out."""
    starts = [start for start in range(0, len(sound), SAMPLES) if not start or len(sound) - start >= SAMPLES / 4]
    parts = [np.pad(part, (0, SAMPLES - len(part))) for part in (sound[s : s + SAMPLES] for s in starts)]
    return [part for part in parts if mel_power(part).max() > 10 ** (-QUIET / 10)]


def speak(output: Path, accents: int = len(ACCENTS), voices: int = 1000) -> None:
    """Let espeak-ng say the ten digits: OUTPUT/{train,validation}/DIGIT/*.wav. Every seventh voice is held out.

    Args:
        accents, voices: so many of each; a voice is a variant of espeak-ng (its timbre), whatever the accent.
    """
    listed = subprocess.run(["espeak-ng", "--voices=variant"], check=True, capture_output=True, text=True).stdout
    names = sorted(line.partition("!v/")[2].split("  ")[0].strip() for line in listed.splitlines()[1:])[:voices]
    draw, asked = random.Random(0), []
    for number, name in enumerate(names):
        for accent in ACCENTS[:accents]:
            for digit in range(10):
                pitch, speed = draw.randrange(20, 81), draw.randrange(140, 221)
                folder = output / ("validation" if number % 7 == 3 else "train") / str(digit)
                folder.mkdir(parents=True, exist_ok=True)
                path = folder / f"{accent}+{name.replace(' ', '_')}-p{pitch}-s{speed}.wav"
                options = ["-v", f"{accent}+{name}", "-p", str(pitch), "-s", str(speed), "-w", str(path)]
                asked.append(["espeak-ng", *options, DIGITS[digit]])
    with ThreadPoolExecutor(4) as pool:
        list(tqdm(pool.map(lambda words: subprocess.run(words, check=True), asked), total=len(asked), mininterval=5))
    print(f"{len(asked):,} clips of {len(names)} voices in {min(accents, len(ACCENTS))} accents are in {output}.")


def pictures(sounds: Path, output: Path) -> None:
    """Write a PNG of each window of each sound below SOUNDS to the same place below OUTPUT."""
    paths = sorted(path for path in sounds.rglob("*") if path.suffix.lower() in (".wav", ".flac", ".ogg", ".mp3"))
    require(bool(paths), f"{sounds} has no sounds.", "Give a folder of .wav, .flac, .ogg or .mp3 files.")
    kinds: dict[str, int] = {}
    written, silent = 0, []
    for path in tqdm(paths, mininterval=5):
        about = soundfile.info(path)
        kind = f"{about.samplerate:,} Hz {'mono' if about.channels == 1 else f'{about.channels} channels'}"
        kinds[kind] = kinds.get(kind, 0) + 1
        sound = load(path)
        if sound is None:
            silent.append(path.name)
            continue
        parts = windows(sound)
        for number, part in enumerate(parts):
            place = (output / path.relative_to(sounds)).with_suffix("")
            place.parent.mkdir(parents=True, exist_ok=True)
            name = place.name if len(parts) == 1 else f"{place.name}-{number:03}"
            Image.fromarray(to_picture(mel_power(part))).save(place.with_name(name + ".png"))
            written += 1
    print(f"Read: {', '.join(f'{number:,} of {kind}' for kind, number in kinds.items())}.")
    print(
        f"Made {RATE:,} Hz, the mean of the channels, without what is {SILENT:g} dB below the loudest at both ends; "
        f"{written:,} windows of {SAMPLES / RATE:.3f} s, {BANDS} bands x {FRAMES} frames, are in {output}."
    )
    print(f"{len(silent)} silent sounds left out{': ' if silent else ''}{', '.join(silent[:5])}.")


def read(path: Path) -> np.ndarray:
    """A picture of this script, uint8 [BANDS, FRAMES].

    Raises:
        CodegridError: it has another size.
    """
    picture = np.asarray(Image.open(path).convert("L"))
    if picture.shape != (BANDS, FRAMES):
        raise CodegridError(f"{path} has {picture.shape} pixels.", f"Give pictures of {BANDS} x {FRAMES}.")
    return picture


def sounds(pictures: Path, output: Path, limit: int | None = None) -> None:
    """Write a .wav, 16 bits, of each picture below PICTURES to the same place below OUTPUT; samples.png is no picture.

    Args:
        limit: only the first so many.
    """
    paths = sorted(path for path in pictures.rglob("*.png") if path.name != "samples.png")[:limit]
    for path in tqdm(paths, mininterval=5):
        place = (output / path.relative_to(pictures)).with_suffix(".wav")
        place.parent.mkdir(parents=True, exist_ok=True)
        sound = to_sound(read(path))
        soundfile.write(place, 0.9 * sound / max(np.abs(sound).max(), 1e-9), RATE, subtype="PCM_16")
    print(f"{len(paths):,} sounds are in {output}.")


def spectral_distance(one: np.ndarray, other: np.ndarray) -> float:
    """Log-spectral distance in dB of two sounds [n]: the root mean square over frequencies, the mean over frames. Both
    are cut RANGE below the loudest value of `one`; frames where that is silent do not count."""
    powers = [np.abs(librosa.stft(sound, n_fft=FFT, hop_length=HOP)) ** 2 for sound in (one, other)]
    least = powers[0].max() * 10 ** (-RANGE / 10)
    a, b = (10 * np.log10(np.maximum(power, least)) for power in powers)
    return float(np.sqrt(((a - b) ** 2).mean(0))[a.max(0) > 10 * np.log10(least)].mean())


def classifier(inputs: np.ndarray, labels: np.ndarray, steps: int, seed: int = 0) -> Any:
    """A small network of three convolutions trained on pictures uint8 [N, BANDS, FRAMES]; it gives labels [n]."""
    torch.manual_seed(seed)
    layers: list[torch.nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [torch.nn.Conv2d(before, after, 3, 2, 1), torch.nn.BatchNorm2d(after), torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d((2, 4)), torch.nn.Flatten(), torch.nn.Linear(512, 10))
    optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    values, wanted = torch.from_numpy(inputs)[:, None], torch.from_numpy(labels)
    for _ in tqdm(range(steps), mininterval=5, desc="judge"):
        rows = torch.randint(len(values), (64,))
        loss = torch.nn.functional.cross_entropy(net(values[rows].float() / 128 - 1), wanted[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    net.eval()

    def name(pictures: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            parts = torch.from_numpy(pictures)[:, None].split(256)
            return torch.cat([net(part.float() / 128 - 1).argmax(1) for part in parts]).numpy()

    return name


def labelled(folder: Path) -> tuple[list[Path], np.ndarray]:
    """The pictures of FOLDER/DIGIT/ and their digits [N]."""
    paths = sorted(path for path in folder.rglob("*.png") if path.parent.name in "0123456789")
    require(bool(paths), f"{folder} has no pictures in folders 0 to 9.", "Give the folder that `pictures` wrote.")
    return paths, np.array([int(path.parent.name) for path in paths])


def heard(picture: np.ndarray) -> np.ndarray:
    """The picture of the sound of a picture: what is left of it after Griffin-Lim."""
    return to_picture(mel_power(scaled(to_sound(picture))))


def judge(
    spoken: Path, pictures: Path, tokenizer: Path, samples: Path, steps: int = 2000, distances: int = 200
) -> None:
    """Print the figures of docs/recipes/sound.md, by sounds of voices that no network was trained on.

    Args:
        spoken, pictures: what `speak` and `pictures` wrote.
        samples: what `codegrid generate` wrote.
        steps: of the judge's training.
        distances: held-out clips whose log-spectral distance is taken.
    """
    paths, labels = labelled(pictures / "train")
    name = classifier(np.stack([read(path) for path in paths]), labels, steps)
    paths, labels = labelled(pictures / "validation")
    held_out = np.stack([read(path) for path in paths])
    print(f"Judge: right on {np.mean(name(held_out) == labels):.1%} of {len(labels):,} clips of held-out voices.")
    model = VQModel.from_pretrained(tokenizer).eval()
    with torch.no_grad():
        batches = to_model(held_out[..., None]).split(64)
        decoded = to_uint8(torch.cat([model.decode(model.encode(batch)) for batch in batches])).numpy()[..., 0]
    print(f"Judge of the tokenizer's reconstructions: {np.mean(name(decoded) == labels):.1%}.")
    chosen, ways = random.Random(0).sample(range(len(paths)), min(distances, len(paths))), []
    for index in tqdm(chosen, mininterval=5, desc="distances"):
        sound = load((spoken / paths[index].relative_to(pictures)).with_suffix(".wav"))
        if sound is not None and len(windows(sound)) == 1:
            true = windows(sound)[0]
            ways.append([spectral_distance(true, to_sound(each[index])) for each in (held_out, decoded)])
    real, ours = np.mean(ways, 0)
    print(
        f"Log-spectral distance: {real:.2f} dB of the real mel's sound, {ours:.2f} dB of the codes': {ours / real:.2f}."
    )
    files = sorted(path for path in samples.glob("*-*.png"))
    asked = np.array([int(path.stem.rpartition("-")[2]) for path in files])
    drawn = np.stack([read(path) for path in files])
    print(f"Samples: the judge hears the asked digit in {np.mean(name(drawn) == asked):.1%} of {len(files)} pictures, ")
    again = np.stack([heard(picture) for picture in tqdm(drawn, mininterval=5, desc="samples")])
    print(f"and in {np.mean(name(again) == asked):.1%} of their sounds. By digit:")
    right = [f"{digit} {np.mean(name(again)[asked == digit] == digit):.0%}" for digit in np.unique(asked)]
    print(", ".join(right))


def main(words: list[str] | None = None) -> None:
    commands = {"speak": speak, "pictures": pictures, "sounds": sounds, "judge": judge}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, args=words, config=(tyro.conf.PositionalRequiredArgs,))
    except CodegridError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
