"""Row "more or fewer channels; not square": pictures of any number of channels are trained on, tokenized and verified.

How files are read: tests/tokenizer/test_bands.py. Not square: tests/pipelines/test_not_square.py.
"""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.codes.verify import VerificationConfig, verify_codes
from codegrid.pipelines.data.records import DataConfig, PicturesConfig
from codegrid.pipelines.data.sources import open_images
from codegrid.pipelines.evaluation.reconstruct import reconstruct
from codegrid.pipelines.evaluation.tokenizer import evaluate_tokenizer
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.pipelines.training.look import LookConfig, look
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer import BackboneConfig, Preprocessing, VectorQuantizerConfig
from codegrid.tokenizer.losses import ObjectiveConfig


def config(data: Path, run: Path, channels: int, **preprocessing) -> TokenizerTrainingConfig:
    return TokenizerTrainingConfig(
        data=DataConfig(str(data)),
        output_dir=str(run),
        backbone=BackboneConfig(
            in_channels=channels,
            resolution=16,
            ch=8,
            ch_mult=(1, 2),
            num_res_blocks=1,
            attn_resolutions=(),
            mid_attention=False,
            z_channels=8,
            patch_size=2,
            norm_groups=4,
        ),
        quantizer=VectorQuantizerConfig(codebook_size=32, code_dim=4),
        preprocessing=Preprocessing(**{"image_size": 16, **preprocessing}),
        objective=ObjectiveConfig(perceptual_weight=0, adversarial_weight=0),
        batch_size=4,
        max_steps=2,
        save_every=2,
        log_every=2,
        eval_every=2,
        num_workers=0,
        device="cpu",
        tracking=(),
    )


def rgba(path: Path, random: np.random.Generator) -> None:
    Image.fromarray(random.integers(0, 256, (20, 24, 4), dtype=np.uint8)).save(path.with_suffix(".png"))


def array_of(channels: int, dtype: type, most: int):
    def write(path: Path, random: np.random.Generator) -> None:
        np.save(path.with_suffix(".npy"), random.integers(0, most, (20, 24, channels)).astype(dtype))

    return write


def pages(path: Path, random: np.random.Generator) -> None:
    frames = [Image.fromarray(random.integers(0, 4096, (20, 24)).astype(np.uint16)) for _ in range(5)]
    frames[0].save(path.with_suffix(".tif"), save_all=True, append_images=frames[1:])


DRAW = np.random.default_rng(20261126)
DRAWN = int(DRAW.integers(5, 12))
CASES = {
    "rgba": (4, rgba, {}),
    "arrays of 12 bits": (7, array_of(7, np.uint16, 4096), {"white": 4095}),
    "pages, not square": (5, pages, {"white": 4095, "image_size": (8, 16)}),
    f"drawn {DRAWN}": (DRAWN, array_of(DRAWN, np.uint8, 256), {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_of_any_channels(tmp_path, case, capsys):
    channels, write, preprocessing = CASES[case]
    folder, random = tmp_path / "pictures", np.random.default_rng(3)
    folder.mkdir()
    for index in range(10):
        write(folder / f"{index}", random)
    run = train_tokenizer(config(folder, tmp_path / "run", channels, **preprocessing))
    said = capsys.readouterr().out
    assert f"  Channels: {channels}, of " in said
    assert "show the first three" in said
    with Image.open(next((run / "pictures").glob("*.png"))) as picture:
        assert picture.mode == "RGB"
    assert load_tokenizer(run).config.backbone_config.in_channels == channels
    codes = tokenize_dataset(TokenizationConfig(str(run), DataConfig(str(folder)), str(tmp_path / "codes")))
    verify_codes(VerificationConfig(str(codes), str(run), PicturesConfig(str(folder))))
    said = capsys.readouterr().out
    assert f"  Channels: {channels}, of " in said
    assert "10 rows were encoded again: 0 of" in said
    reconstruct(str(run), DataConfig(str(folder)), str(tmp_path / "reconstructions"))
    assert f"Channels: {channels}, of " in capsys.readouterr().out
    assert (tmp_path / "reconstructions" / "reconstructions.png").is_file()
    with pytest.raises(CodegridError, match=f"and the tokenizer's have {channels} channels"):
        evaluate_tokenizer(str(run), DataConfig(str(folder)), str(tmp_path / "scores"))
    assert not (tmp_path / "scores").exists()
    evaluate_tokenizer(str(run), DataConfig(str(folder)), str(tmp_path / "scores"), feature_net="none")
    assert f"LPIPS is left out (--lpips-weights FILE, --lpips none): it is not defined on images of {channels}" in (
        capsys.readouterr().out
    )


def test_codes_of_clear_pixels_do_not_depend_on_the_colour_below_them(tmp_path):
    """Of pictures; an array's four channels are what they are."""
    from codegrid.tokenizer.images import to_square

    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    pixels[:8, :, 3] = 0
    other = pixels.copy()
    other[:8, :, :3] = 7
    found = []
    for array in (pixels, other):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        found.append(to_square(buffer.getvalue(), Preprocessing(image_size=16), 4))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("field", "value"),
    [("perceptual_weight", 1.0), ("feature_distance_weight", 1.0)],
)
def test_what_needs_colours_is_refused_before_the_folder_is_claimed(tmp_path, field, value):
    folder = tmp_path / "pictures"
    folder.mkdir()
    wanted = config(folder, tmp_path / "run", 4, image_size=32)
    wanted = replace(wanted, objective=replace(wanted.objective, **{field: value}))
    with pytest.raises(CodegridError, match=rf"in_channels is 4\. Set objective\.{field} to 0"):
        train_tokenizer(wanted)
    assert not (tmp_path / "run").exists()


def test_other_channels_are_refused_before_the_codes_are_claimed(tmp_path, tiny_vqmodel):
    folder, random = tmp_path / "pictures", np.random.default_rng(3)
    folder.mkdir()
    for index in range(3):
        array_of(5, np.uint8, 256)(folder / f"{index}", random)
    tiny_vqmodel.save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(CodegridError, match="can be read with 3 channels"):
        tokenize_dataset(TokenizationConfig(str(tmp_path / "tokenizer"), DataConfig(str(folder)), str(tmp_path / "x")))
    assert not (tmp_path / "x").exists()


def test_arrays_beside_pictures_are_counted_and_not_read(tmp_path):
    random = np.random.default_rng(3)
    for index in range(3):
        array_of(3, np.uint8, 256)(tmp_path / f"array{index}", random)
    assert len(open_images(DataConfig(str(tmp_path)))) == 3
    rgba(tmp_path / "picture", random)
    source = open_images(DataConfig(str(tmp_path)))
    assert (source.names(), source.understood.unread) == (["picture.png"], {".npy": 3})


def test_look_shows_arrays(tmp_path, capsys):
    random = np.random.default_rng(3)
    (tmp_path / "arrays").mkdir()
    for index in range(3):
        np.save(tmp_path / "arrays" / f"{index}.npy", random.integers(0, 256, (70, 80, 6), dtype=np.uint8))
    sheet = look(LookConfig(DataConfig(str(tmp_path / "arrays")), "small64", 6, str(tmp_path / "sheet.png")))
    assert sheet.is_file()
    said = capsys.readouterr().out
    assert "from 70 to 70 pixels" in said
    assert "of 6 channels" in said
