"""Row "evaluation's inputs": files of statistics, ADM's arrays, folder against folder, and what is left out is counted.

Those of a pipeline and of a tokenizer's own run are in tests/pipelines/test_evaluation.py and test_run_pictures.py.
"""

import json
import random
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from codegrid.errors import CodegridError
from codegrid.pipelines.data.records import DataError
from codegrid.pipelines.evaluation import generation
from codegrid.pipelines.evaluation.features import FeatureNet
from codegrid.pipelines.evaluation.generation import evaluate_generation
from codegrid.pipelines.evaluation.npz_files import NpzFile

NET = {"name": "small", "resize": "2x2", "weights_sha256": "0"}


@pytest.fixture(autouse=True)
def small_net(monkeypatch, tmp_path):
    """A feature net of twelve numbers an image, in place of the big ones."""

    def forward(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return features, 5 * features[:, :4]

    monkeypatch.setattr(generation, "load_feature_net", lambda *_: FeatureNet("small", forward, "2x2", "0"))
    monkeypatch.setenv("CODEGRID_CACHE", str(tmp_path / "cache"))


def pictures(folder, number, seed, size=(12, 16)):
    """A folder of PNGs, [number, H, W, 3] of them."""
    folder.mkdir(parents=True)
    arrays = np.random.default_rng(seed).integers(0, 256, (number, *size, 3), dtype=np.uint8)
    for index, array in enumerate(arrays):
        Image.fromarray(array).save(folder / f"{index:03d}.png")
    return arrays


def moments(arrays):
    features = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255, 2)
    features = features.flatten(1).double().numpy()
    return features.mean(0), np.cov(features, rowvar=False)


def scores(folder):
    return json.loads((folder / "generation.json").read_text())


def evaluate(tmp_path, samples, reference, **options):
    folder = evaluate_generation(
        samples=str(samples), reference=str(reference), output_dir=str(tmp_path / "out"), **options
    )
    return scores(folder)


def test_folder_against_folder_and_its_statistics(tmp_path, capsys):
    pictures(tmp_path / "a", 14, 1)
    arrays = pictures(tmp_path / "b", 20, 2)
    file = tmp_path / "saved.npz"
    folders = evaluate(tmp_path, tmp_path / "a", tmp_path / "b", save_statistics=str(file))
    (row,) = folders["results"]
    assert {"fd_small", "kd_small", "precision_small", "recall_small"} <= set(row)
    assert folders["data"]["num_images"] == 20
    mean, covariance = moments(arrays)
    with np.load(file, allow_pickle=False) as saved:
        np.testing.assert_allclose(saved["mu"], mean, atol=1e-6)
        np.testing.assert_allclose(saved["sigma"], covariance, atol=1e-6)
    again = evaluate(tmp_path, tmp_path / "a", file)
    (from_file,) = again["results"]
    assert from_file["fd_small"] == pytest.approx(row["fd_small"], rel=1e-6)
    assert "kd_small" not in from_file
    assert "Without pictures there are no kernel distance" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("generation-*.json"))) == 1  # the other reference's row is set apart
    assert evaluate(tmp_path, tmp_path / "a", tmp_path / "b")["results"] == [row]


def written_by(kind, file, arrays):
    """A file as another project writes it."""
    mean, covariance = moments(arrays)
    if kind == "pytorch-fid":
        np.savez_compressed(file, mu=mean, sigma=covariance)
    elif kind == "clean-fid":
        np.savez(file, mu=mean.astype(np.float32), sigma=covariance.astype(np.float32))
    elif kind == "adm":  # the statistics of more pictures than the file holds, and spatial ones beside them
        spatial = {"mu_s": np.zeros(5), "sigma_s": np.zeros((5, 5))}
        np.savez(file, arrays[:10], mu=mean, sigma=covariance, **spatial)
    else:
        np.savez_compressed(file, arr_0=arrays)


@pytest.mark.parametrize("kind", ["pytorch-fid", "clean-fid", "adm", "pictures"])
def test_files_of_other_projects(tmp_path, kind):
    pictures(tmp_path / "a", 12, 3)
    arrays = pictures(tmp_path / "b", 30, 4)
    written_by(kind, tmp_path / "b.npz", arrays)
    (row,) = evaluate(tmp_path, tmp_path / "a", tmp_path / "b")["results"]
    (found,) = evaluate(tmp_path, tmp_path / "a", tmp_path / "b.npz")["results"]
    assert found["fd_small"] == pytest.approx(row["fd_small"], rel=1e-4)
    assert ("kd_small" in found) == (kind in ("adm", "pictures"))
    if kind == "pictures":
        assert found == pytest.approx(row)
        samples = evaluate(tmp_path, tmp_path / "b.npz", tmp_path / "a")
        assert samples["results"][0]["num_images"] == 30


@pytest.mark.parametrize("seed", [1, 20, 300])
def test_drawn_files_that_are_none(tmp_path, seed):
    """Damage of every sort is one sentence, and nothing is unpickled or allocated for it."""
    draw, random_arrays = random.Random(seed), np.random.default_rng(seed)
    arrays = pictures(tmp_path / "b", 30, seed)
    mean, covariance = moments(arrays)
    bad = covariance.copy()
    bad[0, 1] += 1
    size = draw.randrange(2, 40)
    ways = {
        "objects": {"mu": np.array([{}], dtype=object), "sigma": covariance},
        "another net": {"mu": np.zeros(size + 12), "sigma": np.eye(size + 12)},
        "no square": {"mu": mean, "sigma": random_arrays.random((12, size + 12))},
        "not symmetric": {"mu": mean, "sigma": bad},
        "not finite": {"mu": np.where(np.arange(12) == draw.randrange(12), np.nan, mean), "sigma": covariance},
        "a negative variance": {"mu": mean, "sigma": -covariance},
        "integers": {"mu": np.arange(12), "sigma": covariance},
        "floats as pictures": {"arr_0": arrays / 255},
        "four channels": {"arr_0": np.zeros((5, 4, 4, 4), np.uint8)},
        "channels first": {"arr_0": arrays.transpose(0, 3, 1, 2)},
        "other names": {"mean": mean, "cov": covariance},
        "mu alone": {"mu": mean},
        "of another net of this size": {"mu": mean, "sigma": covariance, "net_name": np.array("other")},
    }
    file = tmp_path / "file.npz"
    for way, content in ways.items():
        np.savez(file, **content)
        with pytest.raises(CodegridError) as caught:
            NpzFile(file).read_statistics(12, NET)
        assert "file.npz" in caught.value.what, (seed, way)
        assert caught.value.remedy, (seed, way)
    np.savez(file, mu=mean, sigma=covariance)
    whole = file.read_bytes()
    file.write_bytes(whole[: draw.randrange(len(whole) // 2)])
    with pytest.raises(DataError, match=r"file\.npz is no \.npz"):
        NpzFile(file)


def test_a_file_that_claims_too_much_is_refused_before_it_is_read(tmp_path):
    header = b"\x93NUMPY\x01\x00"
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (12, 99999999999), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "big.npz", "w") as archive:
        for name in ("mu", "sigma"):
            archive.writestr(f"{name}.npy", header + len(text).to_bytes(2, "little") + text)
    with pytest.raises(DataError, match="a side"):
        NpzFile(tmp_path / "big.npz")
    small = text.replace(b"<f8", b"|u1").replace(b"(12, 99999999999)", b"(20, 12, 16, 3)").rstrip().ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("arr_0.npy", header + len(small).to_bytes(2, "little") + small + bytes(700))
    with pytest.raises(DataError, match="ends before its last picture"):
        list(NpzFile(tmp_path / "short.npz").pictures(range(20), 7))


def test_what_is_left_out_is_counted_and_named(tmp_path, capsys):
    pictures(tmp_path / "a", 12, 5)
    pictures(tmp_path / "b", 15, 6)
    Image.new("RGB", (9, 40)).save(tmp_path / "b" / "narrow.png")
    (tmp_path / "b" / "damaged.png").write_bytes((tmp_path / "b" / "000.png").read_bytes()[:200])
    found = evaluate(tmp_path, tmp_path / "a", tmp_path / "b")
    assert found["data"]["num_images"] == 15
    assert found["data"]["left_out"]["number"] == 2
    assert found["data"]["left_out"]["names"]["too_small"] == ["narrow.png"]
    said = capsys.readouterr().out
    assert "Left out of the reference pictures: 2" in said
    assert "narrow.png" in said
    assert "damaged.png" in said


def test_few_pictures_have_one_line_of_caution(tmp_path, capsys):
    pictures(tmp_path / "a", 11, 7)
    pictures(tmp_path / "b", 15, 8)
    notes = evaluate(tmp_path, tmp_path / "a", tmp_path / "b")["notes"]
    assert notes == [note for note in notes if "11 samples are fewer than the 12 dimensions" in note]
    assert capsys.readouterr().out.count("Caution") == 1


def test_samples_of_several_sizes_are_refused_with_the_sizes(tmp_path):
    pictures(tmp_path / "a", 12, 9)
    pictures(tmp_path / "b", 12, 10)
    Image.new("RGB", (40, 40)).save(tmp_path / "a" / "sheet.png")
    with pytest.raises(DataError, match="12 of 16x12, 1 of 40x40"):
        evaluate(tmp_path, tmp_path / "a", tmp_path / "b")
    (tmp_path / "a" / "sheet.png").rename(tmp_path / "a" / "samples.png")
    (tmp_path / "a" / "generation.json").write_text("{}")  # a folder of `codegrid generate`
    assert evaluate(tmp_path, tmp_path / "a", tmp_path / "b")["results"][0]["num_images"] == 12


def test_files_of_our_names_that_are_not_ours_stay(tmp_path):
    pictures(tmp_path / "a", 12, 9)
    (tmp_path / "out").mkdir()
    for name, text in {"generation.json": '{"mine": 1}', "sweep.png": "mine"}.items():
        file = tmp_path / "out" / name
        file.write_text(text)
        with pytest.raises(CodegridError, match=name):
            evaluate(tmp_path, tmp_path / "a", tmp_path / "a")
        assert file.read_text() == text
        file.unlink()


def test_too_few_are_refused_before_the_net_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(generation, "load_feature_net", lambda *_: pytest.fail("loaded"))
    pictures(tmp_path / "nine", 9, 11)
    pictures(tmp_path / "three", 3, 12)
    pictures(tmp_path / "a", 12, 13)
    for samples, reference, said in [("nine", "a", "There are 9 samples"), ("a", "three", "There are 3 reference")]:
        with pytest.raises(DataError, match=said):
            evaluate(tmp_path, tmp_path / samples, tmp_path / reference)


def test_samples_that_are_the_reference_are_said(tmp_path, capsys):
    pictures(tmp_path / "a", 12, 13)
    evaluate(tmp_path, tmp_path / "a", tmp_path / "a")
    assert "Samples and reference are the same pictures." in capsys.readouterr().out
