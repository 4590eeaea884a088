"""docs/recipes/sound.py, on tones in place of speech: what the recipe's commands do between two sounds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from recipe_pages import recipe_of, run_page

from codegrid.errors import CodegridError

pytest.importorskip("librosa", reason="needs the extra audio")
soundfile = pytest.importorskip("soundfile", reason="needs the extra audio")


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return recipe_of("sound.md")


def tone(hertz: float, seconds: float, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def test_pictures_and_powers_are_each_others_inverse(recipe: dict[str, Any]) -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(16).reshape(64, 64)
    assert (recipe["to_picture"](recipe["to_power"](levels)) == levels).all()
    power = 10 ** np.random.default_rng(0).uniform(-8, 0, (64, 64))  # the whole range, 80 dB
    there_and_back = recipe["to_power"](recipe["to_picture"](power))
    assert np.abs(10 * np.log10(there_and_back / power)).max() <= 80 / 255 / 2 + 1e-9
    beyond = recipe["to_picture"](np.full((64, 64), 10.0))
    assert (beyond == 255).all()
    assert (recipe["to_picture"](np.zeros((64, 64))) == 0).all()


def test_a_sound_keeps_its_pitch_and_its_end(recipe: dict[str, Any]) -> None:
    """A tone of the first half of a window, through the picture: the loudest frequency, and silence after it."""
    samples, rate = recipe["SAMPLES"], recipe["RATE"]
    sound = np.pad(tone(1000, samples / 2 / rate, rate), (0, samples - samples // 2))
    back = recipe["to_sound"](recipe["to_picture"](recipe["mel_power"](recipe["scaled"](sound))))
    assert back.shape == (samples,)
    loudest = np.fft.rfftfreq(samples, 1 / rate)[np.abs(np.fft.rfft(back)).argmax()]
    assert abs(loudest - 1000) < 60  # a band is 80 Hz wide there
    assert np.square(back[: samples // 2]).mean() > 1000 * np.square(back[samples * 3 // 4 :]).mean()
    assert np.abs(recipe["to_sound"](np.zeros((64, 64), np.uint8))).max() == 0


def test_the_distance_is_that_of_a_gain(recipe: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).standard_normal(recipe["SAMPLES"])
    assert recipe["spectral_distance"](noise, noise) == 0
    assert recipe["spectral_distance"](noise, 2 * noise) == pytest.approx(20 * np.log10(2), abs=0.05)


def test_rate_channels_and_silence_are_said(recipe: dict[str, Any], tmp_path: Path, capsys) -> None:
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    seconds = recipe["SAMPLES"] / recipe["RATE"]
    stereo = np.stack([tone(440, 2.5 * seconds, 44_100), np.zeros(int(2.5 * seconds * 44_100))], 1)
    soundfile.write(sounds / "stereo.flac", np.pad(stereo, ((44_100, 0), (0, 0))), 44_100)
    soundfile.write(sounds / "short.wav", tone(440, 0.2, 8_000), 8_000)
    soundfile.write(sounds / "silent.wav", np.zeros(8_000), 8_000)
    recipe["pictures"](sounds, tmp_path / "pictures")
    said = capsys.readouterr().out
    assert "2 of 8,000 Hz mono" in said
    assert "1 of 44,100 Hz 2 channels" in said
    assert "1 silent sounds left out: silent.wav" in said
    names = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert names == ["short.png", *(f"stereo-{number:03}.png" for number in range(3))]  # a second of silence is cut
    with pytest.raises(CodegridError, match="has no sounds"):
        recipe["pictures"](tmp_path / "pictures", tmp_path / "none")
    Image.new("L", (8, 8)).save(tmp_path / "pictures" / "small.png")
    with pytest.raises(CodegridError, match="8, 8"):
        recipe["sounds"](tmp_path / "pictures", tmp_path / "back")


def test_espeak_says_digits_of_held_out_voices(recipe: dict[str, Any], tmp_path: Path) -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("needs espeak-ng")
    recipe["speak"](tmp_path, accents=1, voices=4)
    clips = list(tmp_path.rglob("*.wav"))
    assert len(clips) == 40
    voices = [
        {clip.name.split("-p")[0] for clip in (tmp_path / part).rglob("*.wav")} for part in ("train", "validation")
    ]
    assert len(voices[0]) == 3
    assert len(voices[1] - voices[0]) == 1


def test_the_page_in_two_steps(recipe: dict[str, Any], tmp_path: Path, capsys, monkeypatch) -> None:
    """The commands of docs/recipes/sound.md; a digit is a tone here, so that nothing need be installed."""
    monkeypatch.chdir(tmp_path)
    for part, number in (("train", 3), ("validation", 1)):
        for digit in range(10):
            Path("SPOKEN", part, str(digit)).mkdir(parents=True)
            for index in range(number):
                sound = tone(200 * (digit + 1), 0.4 + 0.1 * index, 16_000)
                soundfile.write(f"SPOKEN/{part}/{digit}/{index}.wav", sound, 16_000)
    small = {"speak": None, "judge": ["--steps", "2", "--distances", "2"], "sounds": ["--limit", "2"]}
    small["generate"] = ["--num-images", "10"]
    ran = run_page("sound.md", small, {"/usr/share/sonic-pi/samples": "SPOKEN/train/3"})
    assert set(ran) >= {"pictures", "train-tokenizer", "train-prior", "generate", "sounds", "judge"}
    assert soundfile.info("HEARD/000000-0.wav").frames == recipe["SAMPLES"]
    said = capsys.readouterr().out
    assert "of 10 clips of held-out voices" in said
    assert "dB of the real mel's sound" in said
    assert "of 10 pictures" in said
