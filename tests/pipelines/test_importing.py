"""The commands around foreign checkpoints: import, what follows an import, fine-tuning from it, export."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from codegrid.errors import CodegridError
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.importing.checkpoints import export_diffusers, import_checkpoint
from codegrid.pipelines.importing.parity import random_weights
from codegrid.pipelines.system.files import OutputError
from codegrid.pipelines.training.run import TrainingError
from codegrid.pipelines.training.tokenizer.presets import small64_tokenizer, with_start
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer import BackboneConfig, Preprocessing, VectorQuantizerConfig, VQModel, VQModelConfig
from codegrid.tokenizer.importers import ForeignCheckpointError


@pytest.fixture(scope="module")
def original() -> VQModel:
    """With taming's network, whose names are this project's: its state dict is one of taming's."""
    torch.manual_seed(1)
    backbone = BackboneConfig(
        resolution=16, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(8,), z_channels=8
    )
    quantizer = VectorQuantizerConfig(codebook_size=32, code_dim=4, l2_normalize=False)
    return VQModel(
        VQModelConfig(backbone=backbone, quantizer=quantizer, preprocessing=Preprocessing(image_size=16))
    ).eval()


@pytest.fixture
def checkpoint(original: VQModel, tmp_path: Path) -> Path:
    """A .ckpt as taming's trainer writes it, and its yaml."""
    weights = {key: value for key, value in original.state_dict().items() if key != "quantize.usage"}
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": {**weights, "loss.logvar": torch.zeros(1)}, "global_step": 7}, path)
    ddconfig = {"double_z": False, "resolution": 16, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1}
    (tmp_path / "model.yaml").write_text(json.dumps({"model": {"params": {"ddconfig": ddconfig, "n_embed": 32}}}))
    return path


@pytest.fixture
def imported(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "imported"
    return import_checkpoint("taming", str(checkpoint), str(folder), config=str(checkpoint.parent / "model.yaml"))


def test_an_import_is_a_tokenizers_folder_with_its_provenance(original, checkpoint, pictures, capsys):
    folder = checkpoint.parent / "imported"
    yaml = str(checkpoint.parent / "model.yaml")
    import_checkpoint("taming", str(checkpoint), str(folder), config=yaml, verify_images=str(pictures))
    printed = capsys.readouterr().out
    assert "8x8 codes of 32 (nearest)" in printed
    assert json.loads((folder / "verification" / "scores.json").read_text())["num_images"] == 18
    model = VQModel.from_pretrained(folder).eval()
    assert set(model.config.provenance) == {"family", "file", "sha256"}
    assert "Imported from the taming checkpoint `last.ckpt`" in (folder / "README.md").read_text()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert torch.equal(model(images).reconstruction, original(images).reconstruction)


def test_nothing_is_written_over_and_no_family_is_guessed_wrong(checkpoint):
    with pytest.raises(OutputError, match="is not empty"):
        import_checkpoint("taming", str(checkpoint), str(checkpoint.parent))
    with pytest.raises(ForeignCheckpointError, match=r"no family 'vqgan'.* is of the family taming"):
        import_checkpoint("vqgan", str(checkpoint), str(checkpoint.parent / "new"))
    assert not (checkpoint.parent / "new").exists()


def test_training_starts_from_an_import(imported, tokenizer_config, pictures, tmp_path):
    config = with_start(tokenizer_config(tmp_path / "run"), str(imported))
    start = VQModel.from_pretrained(imported)
    assert config.backbone == start.config.backbone_config
    optimizer = replace(config.optimizer, learning_rate=1e-12, warmup_steps=0, weight_decay=0.0)
    train_tokenizer(replace(config, max_steps=1, optimizer=optimizer, ema_decay=0.0))
    tuned = VQModel.from_pretrained(tmp_path / "run")
    assert tuned.config.provenance == start.config.provenance
    for name, tensor in start.state_dict().items():
        torch.testing.assert_close(tuned.state_dict()[name], tensor, atol=1e-6, rtol=0)
    # A preset of another network, where only the field is set.
    other = replace(small64_tokenizer(str(pictures), str(tmp_path / "other")), init_from=str(imported), max_steps=1)
    with pytest.raises(TrainingError, match="are not those of"):
        train_tokenizer(replace(other, mixed_precision="no"))


def test_an_export_is_what_the_import_of_it_reads(imported):
    folder = export_diffusers(str(imported), str(imported.parent / "diffusers"))
    assert json.loads((folder / "config.json").read_text())["down_block_types"][1] == "AttnDownEncoderBlock2D"
    assert "quantize.usage" not in load_file(folder / "diffusion_pytorch_model.safetensors")
    back = import_checkpoint("diffusers", str(folder), str(imported.parent / "back"))
    assert VQModel.from_pretrained(back).fingerprint() == VQModel.from_pretrained(imported).fingerprint()


@pytest.fixture
def with_gpt(original: VQModel, tmp_path: Path) -> tuple[str, str]:
    """A .ckpt and the yaml of taming's Net2NetTransformer, which hold the first stage too."""
    weights = {f"first_stage_model.{key}": value for key, value in original.state_dict().items() if "usage" not in key}
    shapes = {"tok_emb.weight": (32, 16), "pos_emb": (1, 64, 16), "head.weight": (32, 16)}
    shapes |= {"ln_f.weight": (16,), "ln_f.bias": (16,)}
    for layer in ("ln1", "ln2", "attn.key", "attn.query", "attn.value", "attn.proj", "mlp.0", "mlp.2"):
        out, into = {"mlp.0": (64, 16), "mlp.2": (16, 64)}.get(layer, (16, 16))
        shapes[f"blocks.0.{layer}.weight"] = (out,) if "ln" in layer else (out, into)
        shapes[f"blocks.0.{layer}.bias"] = (out,)
    weights |= random_weights({f"transformer.{name}": shape for name, shape in shapes.items()})
    torch.save({"state_dict": weights}, tmp_path / "net2net.ckpt")
    ddconfig = {"double_z": False, "resolution": 16, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1}
    params = {
        "cond_stage_config": {"target": "taming.modules.util.Labelator", "params": {"n_classes": 3, "n_embed": 7}},
        "transformer_config": {"params": {"vocab_size": 32, "block_size": 64, "n_layer": 1, "n_head": 2, "n_embd": 16}},
        "first_stage_config": {
            "target": "taming.models.vqgan.VQModel",
            "params": {"ddconfig": ddconfig, "n_embed": 32},
        },
    }
    settings = {"model": {"target": "taming.models.cond_transformer.Net2NetTransformer", "params": params}}
    (tmp_path / "project.yaml").write_text(json.dumps(settings))
    return str(tmp_path / "net2net.ckpt"), str(tmp_path / "project.yaml")


def test_one_file_of_tamings_gives_a_tokenizer_and_a_prior_that_make_a_pipeline(original, with_gpt, tmp_path, capsys):
    file, yaml = with_gpt
    tokenizer = import_checkpoint("taming", file, str(tmp_path / "tokenizer"), config=yaml)
    (tmp_path / "names.txt").write_text("cat\ndog\nboot\n")
    options = {"config": yaml, "tokenizer": str(tokenizer), "class_names": str(tmp_path / "names.txt"), "grid_size": 8}
    prior = import_checkpoint("taming-gpt", file, str(tmp_path / "prior"), **options)
    assert "8x8 codes of 32, with 3 classes.\nIt has no null class" in capsys.readouterr().out
    assert "A GPT-2 that predicts sequences of 64" in (prior / "README.md").read_text()
    folder = make_pipeline(str(tokenizer), str(prior), str(tmp_path / "pipeline"))
    pipe = ImageGenerationPipeline.from_pretrained(folder)
    assert pipe.sampling.guidance_scale == 1
    output = pipe(["boot", 0], seed=0, output_type="pt", progress=False)
    assert torch.equal(output.images, original.decode(output.codes).clamp(-1, 1))
    with pytest.raises(ValueError, match="no null class"):
        pipe(["boot"], guidance_scale=3.0, progress=False)
    with pytest.raises(ForeignCheckpointError, match=r"is of the family taming and of taming-gpt"):
        import_checkpoint("vqgan", file, str(tmp_path / "new"))
    with pytest.raises(ForeignCheckpointError, match=r"family llamagen-gpt\. By their keys use taming-gpt"):
        import_checkpoint("llamagen-gpt", file, str(tmp_path / "new"))
    with pytest.raises(ForeignCheckpointError, match=r"family llamagen\. By their keys use taming:"):
        import_checkpoint("llamagen", file, str(tmp_path / "new"))


# The first keys of other projects' generators of codes in any order.
OTHERS = {
    "RAR's generator": ["cls_token", "pos_embed", "target_aware_pos_embed", "blocks.0.attn.qkv.weight"],
    "RAR": ["module.adaln_before_head.adaLN_modulation.1.weight", "module.embeddings.weight"],
    "MaskGIT": ["model.embeddings.word_embeddings.weight", "model.encoder.layer.0.attention.self.query.weight"],
    "masked transformer": ["mlm_layer.conv1.weight", "embed.embeddings.weight"],
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("family", ["taming-gpt", "maskgit", "rar"])
def test_generators_of_codes_in_any_order_are_refused_by_name(name, family, tmp_path):
    path = tmp_path / "generator.safetensors"
    save_file({key: torch.zeros(4) for key in OTHERS[name]}, path)
    with pytest.raises(CodegridError, match=f"(?s){name}.*cannot be imported.*train-prior"):
        import_checkpoint(family, str(path), str(tmp_path / "imported"))
    assert not (tmp_path / "imported").exists()
