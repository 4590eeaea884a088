"""The commands as users type them: the whole way once, mistakes, and two ranks under torchrun."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.training.prior.presets import quickstart_prior
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.prior import PriorConfig, SequenceConfig, make_prior
from codegrid.prior.codes import open_codes
from codegrid.tokenizer import VQModel

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
TINY = ["--preprocessing.image-size", "16", "--mixed-precision", "no"]
TINY += ["--backbone.ch", "8", "--backbone.norm-groups", "4", "--backbone.z-channels", "8"]
TINY += ["--quantizer.codebook-size", "32", "--quantizer.code-dim", "4"]
TINY_PRIOR = ["--model.hidden-size", "16", "--model.num-hidden-layers", "1", "--model.num-attention-heads", "2"]
TINY_PRIOR += ["--mixed-precision", "no"]


def run(command: str, *arguments: object) -> str:
    """Run a script in a process of its own; gives what it printed."""
    result = subprocess.run(
        [sys.executable, SCRIPTS / f"{command}.py", *map(str, arguments)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`main(command, *arguments)`: run a script in this process, which saves the imports; gives what it printed."""

    def run_here(command: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [f"{command}.py", *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(SCRIPTS / f"{command}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run_here


@pytest.fixture
def fails(main, capsys: pytest.CaptureFixture[str]):
    """`fails(command, *arguments)`: run a script in this process; it must end as a mistake of the user's does."""

    def run_failing(command: str, *arguments: object) -> str:
        with pytest.raises(SystemExit) as end:
            main(command, *arguments)
        errors = capsys.readouterr().err
        assert end.value.code in (1, 2), errors  # 2: the command line itself is wrong
        assert "Traceback" not in errors
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, errors
        assert errors.rstrip().endswith(lines[0])  # and nothing behind it
        return lines[0]

    return run_failing


@pytest.fixture
def pipeline_folder(tiny_vqmodel: VQModel, tmp_path: Path) -> Path:
    """A pipeline of fresh weights with two classes."""
    fingerprint = tiny_vqmodel.fingerprint()
    sequence = SequenceConfig(32, (4, 4), class_names=("disc", "ring"), tokenizer_fingerprint=fingerprint)
    prior = make_prior(PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2), sequence)
    return ImageGenerationPipeline(tiny_vqmodel, prior, sequence).save_pretrained(tmp_path / "pipeline")


def test_the_whole_way(main, image_folder, tmp_path):
    """The first and the last step in processes of their own, as a user's; the others by the same scripts in here."""
    data = ["--data.source", image_folder]
    tokenizer, codes, prior, pipeline = (tmp_path / name for name in ("tokenizer", "codes", "prior", "pipeline"))
    printed = run("train_tokenizer", "quickstart", *data, "--output-dir", tokenizer, "--max-steps", 2, *TINY)
    assert str(tokenizer) in printed.splitlines()[-1]
    assert VQModel.from_pretrained(tokenizer).config.grid_shape == (4, 4)
    printed = main("tokenize_dataset", "--tokenizer", tokenizer, *data, "--output-dir", codes)
    assert "18 rows of 16 codes from 18 images" in printed.splitlines()[-1]
    assert len(open_codes(codes)) == 18
    printed = main("train_prior", "quickstart", "--codes", codes, "--output-dir", prior, "--max-steps", 2, *TINY_PRIOR)
    assert str(prior) in printed.splitlines()[-1]
    main("make_pipeline", "--tokenizer", tokenizer, "--prior", prior, "--output-dir", pipeline)
    arguments = ["--class-labels", "ring", 0, "--num-images", 3, "--seed", 5, "--output-dir", tmp_path / "samples"]
    printed = run("generate", "--pipeline", pipeline, *arguments)
    assert str(tmp_path / "samples") in printed.splitlines()[-1]
    images = sorted((tmp_path / "samples").glob("0*.png"))
    assert [path.name for path in images] == ["000000-ring.png", "000001-disc.png", "000002-ring.png"]
    assert Image.open(images[0]).size == (16, 16)
    pipe = ImageGenerationPipeline.from_pretrained(pipeline)
    expected = pipe(["ring", "disc", "ring"], seed=5, progress=False).images
    for path, image in zip(images, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(image))
    main("reconstruct", "--tokenizer", tokenizer, *data, "--output-dir", tmp_path / "reconstructions")
    scores = json.loads((tmp_path / "reconstructions" / "scores.json").read_text())
    assert (scores["num_images"], scores["num_skipped"]) == (18, 0)
    assert Image.open(tmp_path / "reconstructions" / "reconstructions.png").width > 64


def test_evaluations_and_the_report_of_a_pipeline(main, fails, pipeline_folder, image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("CODEGRID_CACHE", str(tmp_path / "cache"))
    (image_folder / "square").rename(tmp_path / "square")  # the pipeline knows disc and ring
    tokenizer = pipeline_folder / "tokenizer"
    config = json.loads((tokenizer / "config.json").read_text())
    config["preprocessing"]["image_size"] = 16
    (tokenizer / "config.json").write_text(json.dumps(config))
    printed = main(
        "evaluate", "reconstruction", "--tokenizer", tokenizer, "--data.source", image_folder, "--feature-net", "none"
    )
    assert "reconstruction.json" in printed.splitlines()[-1]
    result = json.loads((pipeline_folder / "tokenizer-evaluation" / "reconstruction.json").read_text())
    assert result["results"][0]["num_images"] == 12
    assert result["command"].split()[:3] == ["codegrid", "evaluate", "reconstruction"]
    arguments = ["generation", "--pipeline", pipeline_folder, "--reference", image_folder]
    arguments += ["--guidance-scales", 1, 2, "--feature-net", "efficientnet_lite0"]
    message = fails("evaluate", *arguments, "--feature-weights", tmp_path / "missing.safetensors")
    assert "missing.safetensors" in message
    page = main("report", pipeline_folder).splitlines()[-1]
    assert str(pipeline_folder / "report.html") in page


def test_the_discriminator_is_chosen_by_its_type(main, image_folder, tmp_path):
    arguments = ["--data.source", image_folder, "--output-dir", tmp_path / "run", "--max-steps", 1, *TINY]
    arguments += ["--objective.adversarial-weight", 0.5, "--objective.adversarial-start", 0]
    arguments += ["--objective.discriminator.type", "stylegan", "--objective.discriminator.num-blocks", 2]
    main("train_tokenizer", "quickstart", *arguments)
    written = json.loads((tmp_path / "run" / "training_config.json").read_text())["objective"]["discriminator"]
    assert (written["type"], written["num_blocks"]) == ("stylegan", 2)


def test_a_quantizers_inner_one_is_chosen_by_its_type(main, fails, image_folder, tmp_path):
    arguments = ["quickstart", "--data.source", image_folder, "--output-dir", tmp_path / "run", "--max-steps", 1]
    arguments += [*TINY[:-4], "--quantizer.type", "residual", "--quantizer.depth", 2]
    main("train_tokenizer", *arguments, "--quantizer.inner.type", "fsq", "--quantizer.inner.levels", 4, 3)
    written = json.loads((tmp_path / "run" / "training_config.json").read_text())["quantizer"]
    assert written == {"type": "residual", "depth": 2, "shared": False, "inner": {"type": "fsq", "levels": [4, 3]}}
    assert VQModel.from_pretrained(tmp_path / "run").config.codes_shape == (4, 4, 2)
    assert "Choose one of 'vq', 'simvq'" in fails("train_tokenizer", *arguments, "--quantizer.inner.type", "bsq")
    no_inner = ["quickstart", "--output-dir", tmp_path / "out", "--quantizer.inner.type", "fsq"]
    assert "a quantizer of type 'vq' has no inner" in fails("train_tokenizer", *no_inner)


def test_mistakes_end_in_one_sentence(fails, image_folder, pipeline_folder, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "notes.txt").write_text("no picture")
    out, images = ["--output-dir", tmp_path / "out"], ["--data.source", image_folder]
    assert "It must be one of 'vq'" in fails("train_tokenizer", "quickstart", *out, "--quantizer.type", "vqq")
    unknown = ["--objective.discriminator.type", "patch"]
    assert "It must be one of 'patchgan', 'stylegan'" in fails("train_tokenizer", "quickstart", *out, *unknown)
    contradiction = [*images, *out, "--backbone.ch", 7]
    assert fails("train_tokenizer", "quickstart", *contradiction).startswith("error: backbone.ch * 1 = 7 channels")
    levels = ["--quantizer.type", "fsq", "--quantizer.levels", 1, 4]
    assert "levels" in fails("train_tokenizer", "quickstart", *images, *out, *levels)
    no_images = ["quickstart", "--data.source", tmp_path / "nothing", *out]
    assert "No images in" in fails("train_tokenizer", *no_images)
    missing = ["quickstart", "--data.source", tmp_path / "missing", *out]
    assert "does not exist" in fails("train_tokenizer", *missing)
    tokenizer = ["--tokenizer", tmp_path / "missing"]
    assert "neither a folder here" in fails("tokenize_dataset", *tokenizer, *images, *out)
    assert "neither a folder here" in fails("reconstruct", *tokenizer, *images, *out)
    tokenizer = ["--tokenizer", tmp_path / "nothing"]
    assert "has no config.json" in fails("tokenize_dataset", *tokenizer, *images, *out)
    tokenizer = ["--tokenizer", pipeline_folder / "prior"]
    assert "model_type 'llama'" in fails("tokenize_dataset", *tokenizer, *images, *out)
    assert "no finished code data set" in fails("train_prior", "quickstart", "--codes", tmp_path / "nothing", *out)
    pipeline = ["--pipeline", pipeline_folder]
    assert "Did you mean 'ring'" in fails("generate", *pipeline, "--class-labels", "rings", *out)
    assert "temperature is -1" in fails("generate", *pipeline, "--temperature", -1, *out)
    assert "Choose another --output-dir" in fails("generate", *pipeline, "--output-dir", tmp_path / "nothing")
    assert "is no pipeline" in fails("generate", "--pipeline", tmp_path / "nothing", *out)
    parts = ["--tokenizer", pipeline_folder / "tokenizer", "--prior", tmp_path / "nothing"]
    assert "it is no prior" in fails("make_pipeline", *parts, *out)
    assert not (tmp_path / "out").exists()


def test_broken_weights_end_in_one_sentence(fails, image_folder, pipeline_folder, tmp_path):
    out = ["--output-dir", tmp_path / "out"]
    for part in ("prior", "tokenizer"):
        path = pipeline_folder / part / "model.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        assert str(pipeline_folder) in fails("generate", "--pipeline", pipeline_folder, *out)
        path.write_bytes(whole)
    (pipeline_folder / "model_index.json").write_text("[]")
    assert "is damaged" in fails("generate", "--pipeline", pipeline_folder, *out)


def test_missing_weights_of_the_perceptual_net_end_in_one_sentence(fails, image_folder, tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    arguments = ["quickstart", "--data.source", image_folder, "--output-dir", tmp_path / "out", *TINY]
    arguments[arguments.index("--preprocessing.image-size") + 1] = 32  # smaller pictures are refused before
    message = fails("train_tokenizer", *arguments, "--objective.perceptual-weight", 1)
    assert "objective.perceptual_weights" in message
    assert str(tmp_path / "torch") in message


def test_an_output_folder_that_cannot_be_made_ends_in_one_sentence(fails, image_folder, pipeline_folder, tmp_path):
    (tmp_path / "file").write_text("")
    out = ["--output-dir", tmp_path / "file" / "out"]
    data = ["--data.source", image_folder]
    tokenizer = ["--tokenizer", pipeline_folder / "tokenizer"]
    for arguments in (
        ["train_tokenizer", "quickstart", *data, *out, *TINY],
        ["tokenize_dataset", *tokenizer, *data, *out],
        ["make_pipeline", *tokenizer, "--prior", pipeline_folder / "prior", *out],
        ["generate", "--pipeline", pipeline_folder, *out],
        ["reconstruct", *tokenizer, *data, *out],
    ):
        assert str(tmp_path / "file") in fails(*arguments)


TWO_RANKS = """
import hashlib, sys, torch
from dataclasses import replace
from pathlib import Path
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.training.tokenizer import train as train_tokenizer
from codegrid.pipelines.training.prior import train as train_prior
from codegrid.pipelines.training.prior.presets import quickstart_prior
from codegrid.pipelines.training.tokenizer.presets import quickstart_tokenizer
from codegrid.pipelines.training.config import TokenizerTrainingConfig
from codegrid.prior import PriorConfig
from codegrid.tokenizer import BackboneConfig, Preprocessing, VectorQuantizerConfig
from codegrid.tokenizer.discriminators import PatchGANConfig
from codegrid.tokenizer.losses import ObjectiveConfig

images, codes, out = sys.argv[1:]
# Two runs in one process: the first must leave the group to the second.
backbone = BackboneConfig(in_channels=1, resolution=16, ch=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(),
                          z_channels=8, patch_size=2, norm_groups=4, dropout=0.2)
config = replace(
    quickstart_tokenizer(images, out + "/tokenizer"), max_steps=3, batch_size=4, gradient_accumulation_steps=2,
    mixed_precision="no", ema_decay=0.9, log_every=1, tracking=(), preprocessing=Preprocessing(image_size=16),
    backbone=backbone, quantizer=VectorQuantizerConfig(codebook_size=32, code_dim=4, revive_below=0.99),
    objective=ObjectiveConfig(perceptual_weight=0.0, adversarial_weight=0.5, adversarial_start=1, adversarial_warmup=0,
                              gan_loss="non_saturating", gradient_penalty_weight=1.0, r1_weight=1.0, lecam_weight=0.1,
                              discriminator=PatchGANConfig(ndf=8, n_layers=1)))

def digest(*states):
    found = hashlib.sha256()
    for state in states:
        for name, tensor in sorted(state.items()):
            found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()

def watch(module, stage_type, tensors):
    evaluate = stage_type.evaluate
    def evaluated(stage, done):  # by every rank, after the last step
        path = Path(out) / f"{module}-{stage.run.accelerator.process_index}.txt"
        path.write_text(f"{stage.run.accelerator.num_processes} {digest(*tensors(stage))}")
        return evaluate(stage, done)
    stage_type.evaluate = evaluated

watch("train_tokenizer", train_tokenizer.TokenizerStage, lambda stage: [
    stage.model.state_dict(), stage.learners.discriminator.module.state_dict(), stage.learners.ema.weights,
    stage.learners.running_logits])
watch("train_prior", train_prior.PriorStage, lambda stage: [stage.model.state_dict()])
train_tokenizer.train_tokenizer(config)
model = PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
train_prior.train_prior(replace(quickstart_prior(codes, out + "/prior"), max_steps=2, batch_size=8, log_every=1,
                                mixed_precision="no", tracking=(), model=model, validation_fraction=0.3))
"""


def test_two_ranks_train_one_model(image_folder, tiny_vqmodel, tmp_path):
    tiny_vqmodel.save_pretrained(tmp_path / "tiny")
    data = DataConfig(str(image_folder))
    codes = tokenize_dataset(TokenizationConfig(str(tmp_path / "tiny"), data, str(tmp_path / "codes")))
    (tmp_path / "script.py").write_text(TWO_RANKS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*launch, tmp_path / "script.py", image_folder, codes, tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    for stage in ("train_tokenizer", "train_prior"):
        digests = {(tmp_path / f"{stage}-{rank}.txt").read_text() for rank in (0, 1)}
        assert len(digests) == 1, stage
        assert digests.pop().startswith("2 ")  # processes
    VQModel.from_pretrained(tmp_path / "tokenizer")
    lines = [json.loads(line) for line in (tmp_path / "tokenizer" / "metrics.jsonl").read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    for name in ("adversarial", "gradient_penalty", "r1"):
        assert [name in line for line in train] == [False, True, True]
    assert ["lecam" in line for line in train] == [False, False, True]  # its means begin with the first logits

    # What two ranks trained is what one trains on the same batches.
    model = PriorConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = replace(quickstart_prior(str(codes), str(tmp_path / "one")), max_steps=2, batch_size=8, log_every=1)
    train_prior(replace(config, mixed_precision="no", tracking=(), model=model, validation_fraction=0.3))
    two, one = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("prior", "one")
    )
    for line, other in zip(two, one, strict=True):
        assert line.pop("kind") == other.pop("kind")
        assert line == pytest.approx(other, rel=1e-3)
    weights, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("prior", "one"))
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-2, atol=1e-4)


def test_two_ranks_run_the_installed_command(image_folder, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "codegrid"]
    arguments = ["train-tokenizer", "quickstart", "--data.source", image_folder, "--output-dir", tmp_path / "run"]
    result = subprocess.run(
        [*launch, *arguments, "--max-steps", "2", "--batch-size", "4", *TINY],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("The tokenizer is in") == 1  # one of the two says it
    assert VQModel.from_pretrained(tmp_path / "run").config.grid_shape == (4, 4)
