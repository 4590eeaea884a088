"""Priors that follow pictures and texts, from pictures to results: codes, training, pipeline, commands, evaluation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as Pictures

from codegrid.errors import CodegridError
from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.codes.verify import VerificationConfig, verify_codes
from codegrid.pipelines.data.degradations import degradation, luma
from codegrid.pipelines.data.records import DataConfig, DataError
from codegrid.pipelines.evaluation import conditional
from codegrid.pipelines.evaluation.conditional import evaluate_conditional
from codegrid.pipelines.evaluation.conditional_scores import Pairs, Scorer, found_among, others_of_class
from codegrid.pipelines.evaluation.features import FeatureCache, FeatureNet
from codegrid.pipelines.evaluation.prior import evaluate_prior
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.generation.to_folder import generate_images
from codegrid.pipelines.system.files import OutputError
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.prior import load_prior
from codegrid.prior.codes import CodesError, open_codes, read_manifest
from codegrid.prior.conditions import CombinedCondition, PictureCondition, TextCondition
from codegrid.tokenizer.images import load_image, prepare, to_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tokenized(tokenizer_folder, pictures, tmp_path):
    def make(name: str = "codes", source: Path = pictures, label_column: str | None = "none", **options) -> Path:
        data = options.pop("data", None) or DataConfig(str(source), label_column=label_column)
        return tokenize_dataset(
            TokenizationConfig(str(tokenizer_folder), data, str(tmp_path / name), device="cpu", **options)
        )

    return make


def rows_of(folder: Path) -> list[dict]:
    return [row for shard in read_manifest(folder).shards for row in pq.read_table(folder / shard.file).to_pylist()]


def squares(folder: Path, pictures: Path, flip: bool) -> list[np.ndarray]:
    preprocessing = load_tokenizer(folder).config.preprocessing_config
    paths = sorted(pictures.rglob("*.png"), key=lambda path: path.relative_to(pictures).as_posix())
    return [
        prepare(load_image(path), preprocessing, 3, flip=side) for path in paths for side in ([False, True][: 1 + flip])
    ]


@pytest.mark.parametrize("condition", ["downscale:4", "noise:25", "silhouette"])
def test_rows_have_the_codes_of_the_condition(condition, tokenized, tokenizer_folder, pictures, capsys):
    folder = tokenized(condition=condition, flip=True, images_per_shard=7)
    model, made, rows = load_tokenizer(tokenizer_folder), degradation(condition), rows_of(folder)
    cut = squares(tokenizer_folder, pictures, flip=True)
    given = np.stack([made(one, row["source_id"], int(row["flip"])) for one, row in zip(cut, rows, strict=True)])
    assert torch.equal(
        torch.tensor([row["condition_codes"] for row in rows]),
        model.encode(to_model(torch.from_numpy(given))).flatten(1),
    )
    manifest = read_manifest(folder)
    assert manifest.condition == {
        **{"type": "picture", "codebook_size": 32, "grid_shape": [4, 4], "depth": 1, "made_by": condition},
        "tokenizer_fingerprint": model.fingerprint(),
    }
    kind = PictureCondition(32, (4, 4), 1, model.fingerprint(), condition)
    assert manifest.sequence_config().conditioning == kind
    said = f"a picture of 16 tokens ({condition})"
    assert said in capsys.readouterr().out
    assert said in (folder / "README.md").read_text()
    verify_codes(VerificationConfig(str(folder), str(tokenizer_folder), num_samples=4))
    with pytest.raises(OutputError, match="another job \\(different: condition\\)"):
        tokenized(condition="grey", flip=True, images_per_shard=7)
    with pytest.raises(OutputError, match="another job \\(different: condition\\)"):
        tokenized(flip=True, images_per_shard=7)
    before = (folder / "manifest.json").read_bytes()
    (folder / ".shards" / "00001.json").unlink()
    (folder / "manifest.json").unlink()
    tokenized(condition=condition, flip=True, images_per_shard=7)
    assert (folder / "manifest.json").read_bytes() == before  # a stop changes nothing


def test_codes_without_a_condition_are_as_ever(codes):
    manifest = json.loads((codes / "manifest.json").read_text())
    assert "condition" not in manifest
    assert set(rows_of(codes)[0]) == {"codes", "label", "source_id", "crop", "flip"}


def test_a_picture_of_another_folder(tokenized, tokenizer_folder, pictures, tmp_path):
    other = tmp_path / "other"
    for path in pictures.rglob("*.png"):
        there = (other / path.relative_to(pictures)).with_suffix(".bmp")
        there.parent.mkdir(parents=True, exist_ok=True)
        Pictures.open(path).transpose(Pictures.Transpose.FLIP_TOP_BOTTOM).save(there)
    (other / "noise" / "3.bmp").unlink()
    (other / "noise" / "4.bmp").write_bytes(b"no picture")
    folder = tokenized(condition=f"folder:{other}")
    skipped = {entry["source_id"]: entry["reason"] for entry in map(json.loads, (folder / "skipped.jsonl").open())}
    assert set(skipped) == {"noise/3.png", "noise/4.png"}
    assert skipped["noise/3.png"] == "no_condition"
    assert skipped["noise/4.png"].startswith("condition_")
    rows, model = rows_of(folder), load_tokenizer(tokenizer_folder)
    assert len(rows) == 16
    turned = prepare(load_image(other / "gradient" / "0.bmp"), model.config.preprocessing_config, 3)
    assert rows[0]["condition_codes"] == model.encode(to_model(torch.from_numpy(turned[None]))).flatten().tolist()
    with pytest.raises(DataError, match="none of its pictures belongs to one of"):
        tokenized("elsewhere", condition=f"folder:{pictures / 'noise'}")
    shutil.copy(other / "gradient" / "0.bmp", other / "gradient" / "0.png")
    with pytest.raises(DataError, match=r"gradient/0\.bmp and gradient/0\.png both belong to one picture"):
        tokenized("twice", condition=f"folder:{other}")
    with pytest.raises(DataError, match="condition is 'folder:nowhere', and that is no folder here"):
        tokenized("nowhere", condition="folder:nowhere")  # and is not looked for on the Hub


@pytest.fixture
def table(pictures, tmp_path) -> Path:
    """A Parquet file of pictures, their depth (a picture), a text and a label."""
    paths = sorted(pictures.rglob("*.png"))
    features = Features(
        {"image": Image(), "depth": Image(), "name": Value("string"), "label": ClassLabel(names=["a", "b", "c"])}
    )
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "depth": [{"bytes": path.read_bytes(), "path": None} for path in reversed(paths)],
        "name": [f"{path.parent.name} {path.stem}" for path in paths],
        "label": [index // 6 for index in range(18)],
    }
    rows["name"][2] = None
    file = tmp_path / "table" / "rows.parquet"
    file.parent.mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(str(file))
    return file


def test_a_column_of_pictures_and_one_of_texts(tokenized, table):
    data = DataConfig(str(table), image_column="image")
    folder = tokenized(data=data, condition="column:depth", captions="column:name", text_length=12)
    rows, manifest = rows_of(folder), read_manifest(folder)
    assert [entry["reason"] for entry in map(json.loads, (folder / "skipped.jsonl").open())] == ["no_text"]
    assert [row["text"] for row in rows][:3] == ["gradient 0", "gradient 1", "gradient 3"]
    assert rows[0]["condition_codes"] == rows[-1]["codes"]  # the last picture is the first one's depth
    assert rows[0]["prompt"] == [*b"gradient 0", 256, 256]
    kind = manifest.sequence_config().conditioning
    assert [part.type for part in kind.parts] == ["class", "picture", "text"]
    values, unknown = open_codes(folder).condition_values(np.array([0]))
    assert values.tolist() == [[rows[0]["label"], *rows[0]["condition_codes"], *rows[0]["prompt"]]]
    assert unknown.tolist() == [[False] * 3]
    for wrong, message in [
        ({"condition": "column:nothing"}, "has no column 'nothing'"),
        ({"condition": "column:none"}, "has no column 'none'"),  # a label column of this name is none
        ({"condition": "column:"}, "condition is 'column:', without a column"),
        ({"captions": "column:none"}, "has no column 'none' of texts"),
        ({"captions": "column:depth"}, "The column 'depth' holds no texts, but Image"),
        ({"captions": "txt"}, "captions is 'txt', and .* has no such texts"),
        ({"captions": "name"}, "Give column:NAME"),
        ({"condition_tokenizer": "x"}, "condition_tokenizer is 'x', and there is no condition"),
    ]:
        with pytest.raises(CodegridError, match=message):
            tokenized("wrong", data=data, **wrong)
    assert not (folder.parent / "wrong").exists()  # refused before anything is claimed
    named = rows_of(tokenized("classes", data=data, captions="column:label"))
    assert named[0]["text"] == "a"  # the class's name, not its number


def test_texts_beside_the_pictures(tokenized, pictures, tmp_path):
    folder = tmp_path / "captioned"
    shutil.copytree(pictures, folder)
    for path in folder.rglob("*.png"):
        path.with_suffix(".txt").write_bytes(f" ein {path.parent.name} \xff\n".encode("latin-1"))
    (folder / "noise" / "0.txt").unlink()
    (folder / "noise" / "1.txt").write_text(" \n")  # as in a column, an empty text is none
    codes = tokenized(source=folder, captions="txt", text_length=8)
    assert read_manifest(codes).num_skipped == 2
    assert bytes(number for number in rows_of(codes)[0]["prompt"] if number < 256) == b"ein grad"
    named = tokenized("named", label_column=None, captions="class", text_length=8)
    assert rows_of(named)[0]["text"] == "gradient"
    (folder / "metadata.csv").write_text("file_name,about\ngradient/0.png,sloping\nnoise/1.png,loud\n")
    about = tokenized("about", source=folder, captions="column:about")
    assert [row["text"] for row in rows_of(about)] == ["sloping", "loud"]


def test_a_webdataset_of_texts(tokenized, pictures, tmp_path):
    import io
    import tarfile

    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for number, path in enumerate(sorted(pictures.rglob("*.png"))[:4]):
            for suffix, data in (("png", path.read_bytes()), ("txt", f"number {number}".encode())):
                if (suffix, number) != ("txt", 2):
                    member = tarfile.TarInfo(f"{number:03}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    codes = tokenized(source=tmp_path / "shard.tar", captions="txt")
    assert [row["text"] for row in rows_of(codes)] == ["number 0", "number 1", "number 3"]


@pytest.fixture
def small_net(monkeypatch, tmp_path):
    def forward(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)
        return features, features[:, :4]

    monkeypatch.setattr(conditional, "load_feature_net", lambda *_: FeatureNet("small", forward, "2x2", "0"))
    monkeypatch.setenv("CODEGRID_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("architecture", ["llama", "any_order_gpt2", "bert"])
def test_super_resolution_from_pictures_to_scores(
    architecture, tokenized, tokenizer_folder, prior_config, pictures, tmp_path, small_net, capsys
):
    codes = tokenized(condition="downscale:4", label_column=None)
    order = "annealed" if architecture == "any_order_gpt2" else "raster"
    model = {"architecture": architecture, "hidden_size": 32}
    run = train_prior(prior_config(tmp_path / "run", codes=str(codes), model=model, order=order))
    said = capsys.readouterr().out
    assert "3 classes and a picture of 16 tokens (downscale:4), 17 tokens in all: 33 tokens a row" in said
    kind = load_prior(run)[1].conditioning
    assert isinstance(kind, CombinedCondition)
    if architecture != "bert":
        evaluate_prior(str(run), str(codes), output_dir=str(tmp_path / "scores"))
    folder = make_pipeline(str(tokenizer_folder), str(run), str(tmp_path / "pipe"), part_guidance=(1.5, 2.5))
    pipe = ImageGenerationPipeline.from_pretrained(folder)
    assert pipe.sampling.part_guidance == (1.5, 2.5)
    assert "class_labels=wanted, condition=pictures" in (folder / "README.md").read_text()
    small = [Pictures.open(path).resize((6, 5)) for path in sorted(pictures.rglob("*.png"))[:3]]
    options = {"seed": 3, "progress": False}
    output = pipe(["noise"], condition=small, num_images_per_label=2, **options)
    assert len(output.images) == 6
    assert output.labels == [1] * 6
    again = pipe(1, condition=small[2], num_images_per_label=2, generator=None, **options)
    assert len(again.images) == 2
    without = pipe(condition=small, **options)  # the class is left out
    assert len(without.images) == 3
    kept = pipe(["noise"], condition=small, num_images_per_label=2, keep_condition=True, batch_size=4, **options)
    assert torch.equal(kept.codes, output.codes)
    made = degradation("downscale:4")
    for place, (one, other) in enumerate(zip(kept.images, output.images, strict=True)):
        given = np.asarray(small[place // 2].resize((16, 16), Pictures.Resampling.BICUBIC)).astype(float)
        errors = [np.abs(made(np.asarray(image), "") - given).mean() for image in (one, other)]
        assert errors[0] < errors[1] / 2
    only_class = pipe("noise", num_images_per_label=2, **options)
    assert only_class.labels == [1, 1]
    for wrong, message in [
        ({}, "images follow 3 classes and a picture .* Say what by class_labels or condition"),
        ({"prompt": "x"}, "prompt is given, and this pipeline's images follow"),
        ({"condition": small, "class_labels": [0, 1]}, "There are 2 class_labels and 3 condition"),
        ({"condition": small, "num_images": 4}, "num_images is given"),
        ({"condition": []}, "There is no picture"),
        ({"class_labels": 1, "keep_condition": True}, "keep_condition is set, and condition is not given"),
        ({"condition": torch.zeros(1, 16).long(), "keep_condition": True}, "condition is codes"),
    ]:
        with pytest.raises(CodegridError, match=message):
            pipe(**wrong, **options)
    score = evaluate_conditional(
        str(folder), DataConfig(str(pictures)), num_images=6, num_samples=2, training_split="train"
    )
    record = json.loads((score / "conditional.json").read_text())
    rows = {row["method"]: row for row in record["results"]}
    both = {f"{way}{kept}" for way in ("reconstruction", "pipeline") for kept in ("", ", condition kept")}
    assert set(rows) == {*both, "bicubic", "Lanczos", "nearest training pair"}
    assert rows["pipeline, condition kept"]["consistency"] > rows["pipeline"]["consistency"] + 6
    assert rows["nearest training pair"]["psnr"] > 90  # they were trained on
    assert rows["bicubic"]["own_condition"] == 1
    assert rows["bicubic"]["consistency"] > rows["pipeline"]["consistency"]
    assert Pictures.open(score / "conditional.png").width > 100


def test_generate_takes_a_folder_of_conditions_and_prompts(
    tokenized, tokenizer_folder, prior_config, pictures, tmp_path
):
    codes = tokenized(condition="grey", captions="class", label_column=None, text_length=8)
    run = train_prior(prior_config(tmp_path / "run", codes=str(codes)))
    pipe = str(make_pipeline(str(tokenizer_folder), str(run), str(tmp_path / "pipe")))
    given = pictures / "stripes"
    made = generate_images(pipe, str(tmp_path / "out"), condition=str(given), prompt=("red", "a long one indeed"))
    names = sorted(path.name for path in made.glob("0*.png"))
    assert len(names) == 6
    assert names[:2] == ["000000-0_red.png", "000001-1_a_long_one_indeed.png"]
    settings = json.loads((made / "generation.json").read_text())
    assert settings["condition"]["pictures"] == [f"{index}.png" for index in range(6)]
    assert settings["prompts"] == ["red", "a long one indeed"]
    more = generate_images(pipe, str(tmp_path / "out"), (), 8, str(given), ("red", "a long one indeed"))
    assert len(list(more.glob("0*.png"))) == 8
    (tmp_path / "grey").mkdir()
    for path in given.iterdir():
        Pictures.open(path).convert("L").resize((16, 16)).save(tmp_path / "grey" / path.name)
    asked = {"condition": str(tmp_path / "grey"), "prompt": ("red",), "batch_size": 4}
    kept = generate_images(pipe, str(tmp_path / "kept"), **asked, keep_condition=True)
    assert json.loads((kept / "generation.json").read_text())["keep_condition"] is True
    plain = generate_images(pipe, str(tmp_path / "plain"), **asked)
    assert "keep_condition" not in json.loads((plain / "generation.json").read_text())
    for index in range(6):
        true = np.asarray(Pictures.open(tmp_path / "grey" / f"{index}.png"))
        errors = [
            np.abs(luma(np.asarray(Pictures.open(out / f"{index:06d}-{index}_red.png"))) - true).mean()
            for out in (kept, plain)
        ]
        assert errors[0] < errors[1] / 2
    with pytest.raises(OutputError, match=r"different: .*prompts"):
        generate_images(pipe, str(tmp_path / "out"), condition=str(given), prompt=("blue",))
    with pytest.raises(CodegridError, match="Say what by --condition or --prompt"):
        generate_images(pipe, str(tmp_path / "other"))
    with pytest.raises(CodegridError, match="condition is 'gone', and there is nothing of this name here"):
        generate_images(pipe, str(tmp_path / "other"), condition="gone")  # and the Hub is not asked
    file = Path(pipe) / "prior" / "sequence_config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "null_class": False}))
    with pytest.raises(CodegridError, match=r"guidance_scale is 2\.0, but this prior has no null class"):
        generate_images(pipe, str(tmp_path / "other"), condition=str(given), prompt=("red",), guidance_scale=2.0)
    values["condition"]["parts"][-1]["tokenizer"] = str(tmp_path / "no tokenizer")
    file.write_text(json.dumps(values))
    with pytest.raises(CodegridError, match="no tokenizer' cannot be loaded"):
        generate_images(pipe, str(tmp_path / "other"), condition=str(given), prompt=("red",))
    assert not (tmp_path / "other").exists()


def test_a_pipeline_of_classes_refuses_pictures_and_prompts(pipeline_folder, pictures, tmp_path):
    pipe = ImageGenerationPipeline.from_pretrained(pipeline_folder)
    for wrong in ({"condition": Pictures.new("RGB", (16, 16))}, {"prompt": "red"}):
        with pytest.raises(CodegridError, match="is given, and this pipeline's images follow 3 classes"):
            pipe(progress=False, **wrong)
    with pytest.raises(CodegridError, match="keep_condition is set, and this pipeline's images follow 3 classes"):
        generate_images(str(pipeline_folder), str(tmp_path / "kept"), keep_condition=True)
    assert not (tmp_path / "kept").exists()
    with pytest.raises(CodegridError, match="--condition is given"):
        generate_images(str(pipeline_folder), str(tmp_path / "out"), condition=str(pictures))
    with pytest.raises(CodegridError, match="neither pictures nor texts"):
        evaluate_conditional(str(pipeline_folder), DataConfig(str(pictures)))


def test_text_to_picture(tokenized, tokenizer_folder, prior_config, pictures, tmp_path, small_net, caplog):
    captioned = tmp_path / "captioned"
    shutil.copytree(pictures, captioned)
    for path in captioned.rglob("*.png"):
        path.with_suffix(".txt").write_text(path.parent.name)
    codes = tokenized(source=captioned, captions="txt", text_length=10)
    run = train_prior(prior_config(tmp_path / "run", codes=str(codes)))
    assert load_prior(run)[1].conditioning == TextCondition(10)
    folder = make_pipeline(str(tokenizer_folder), str(run), str(tmp_path / "pipe"))
    pipe = ImageGenerationPipeline.from_pretrained(folder)
    one = pipe(prompt="noise", num_images_per_label=2, seed=0, progress=False)
    assert len(one.images) == 2
    pipe(prompt=["\udcff \x00", "a text that is too long"], seed=0, progress=False)
    assert "longer than the 10 tokens" in caplog.text
    with pytest.raises(CodegridError, match="Give --captions"):
        evaluate_conditional(str(folder), DataConfig(str(captioned)))
    score = evaluate_conditional(str(folder), DataConfig(str(captioned)), captions="txt", num_images=6)
    rows = json.loads((score / "conditional.json").read_text())["results"]
    assert {row["method"] for row in rows} == {"reconstruction", "pipeline"}


def test_pictures_of_another_tokenizer(tokenizer_config, tokenizer_folder, tokenized, prior_config, pictures, tmp_path):
    from codegrid.pipelines.training.tokenizer.train import train_tokenizer

    second = train_tokenizer(tokenizer_config(tmp_path / "second", seed=5))
    codes = tokenized(condition="grey", condition_tokenizer=str(second))
    run = str(train_prior(prior_config(tmp_path / "run", codes=str(codes))))
    lacking = ImageGenerationPipeline.from_pretrained(make_pipeline(str(tokenizer_folder), run, str(tmp_path / "one")))
    picture = Pictures.open(next(pictures.rglob("*.png")))
    with pytest.raises(CodegridError, match=r"by another tokenizer .* which the pipeline does not have"):
        lacking(condition=picture, progress=False)
    folder = make_pipeline(str(tokenizer_folder), run, str(tmp_path / "two"), condition_tokenizer=str(second))
    pipe = ImageGenerationPipeline.from_pretrained(folder)
    assert pipe.condition_tokenizer.fingerprint() == load_tokenizer(second).fingerprint()
    assert len(pipe(condition=picture, progress=False).images) == 1


def test_a_column_that_is_not_as_the_manifest_says(tokenized, prior_config, tmp_path):
    codes = tokenized(condition="grey")
    manifest = json.loads((codes / "manifest.json").read_text())
    for changes, message in [
        ({"grid_shape": [4, 5]}, r"values of shape \[16\], and the manifest.s condition is a picture of 20 tokens"),
        ({"codebook_size": 2}, "their rows do not: The codes of the condition hold"),
        ({"type": "depth"}, "'depth'"),
    ]:
        changed = {**manifest, "condition": {**manifest["condition"], **changes}}
        (codes / "manifest.json").write_text(json.dumps(changed))
        with pytest.raises(CodesError, match=message):
            train_prior(prior_config(tmp_path / "run", codes=str(codes)))
    assert not (tmp_path / "run").exists()


def test_the_next_of_its_class():
    assert others_of_class([0, 1, 0, 2, 1, 0]).tolist() == [2, 4, 5, -1, 1, 0]


def test_a_text_finds_its_picture_among_those_of_other_texts():
    real = torch.eye(6)
    texts = ["a", "a", "b", "c", "d", "e"]
    made = torch.stack([real[0], real[1], real[3], real[3], real[4], real[5]])  # "b" looks like "c"
    assert found_among(made, real, texts, 5) == pytest.approx(5 / 6)
    assert found_among(real.repeat_interleave(2, 0), real, texts, 5) == 1
    twin = torch.stack([real[0] + 2 * real[1], *real[1:]])  # the other picture of its text is no rival
    assert found_among(twin, real, texts, 5) == 1
    assert found_among(torch.ones(6, 6), real, texts, 5) == 0  # as near to all is near to none
    assert found_among(made, real, texts, 7) is None  # there are not so many


def test_silhouettes_are_compared_with_their_own_and_with_anothers(tmp_path):
    pixels = np.full((4, 16, 16, 3), 255, np.uint8)
    for place in range(4):
        pixels[place, 4 : 8 + 2 * place, 4:8] = 0  # 4x4, 6x4, 8x4, 10x4
    net = FeatureNet("small", lambda images: (images.float().mean((2, 3)), images.float().mean((2, 3))), "3", "0")
    given = np.stack([degradation("silhouette")(one, "") for one in pixels])
    pairs = Pairs(list("abcd"), pixels, given, None, np.array([0, 0, 1, 1]))
    scorer = Scorer(pairs, FeatureCache(net, str(tmp_path)), degradation("silhouette"))
    row = scorer.row(pixels[:, None])
    assert row["iou"] == 1
    assert row["iou_of_others"] == pytest.approx((4 / 6 + 8 / 10) / 2)
    assert row["own_condition"] == 1
    assert 0 <= row["class_agreement"] <= 1
    assert scorer.row(pixels[[1, 0, 3, 2]][:, None])["iou_of_others"] == 1
    unknown = Scorer(Pairs(list("abcd"), pixels, given, None, np.full(4, -1)), scorer.cache, None)
    assert "class_agreement" not in unknown.row(pixels[:, None])


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(conditional, "make_accelerator", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(CodegridError, match="was started in 2 processes"):
        evaluate_conditional("nothing", DataConfig("nothing"), str(tmp_path))
