"""Foreign tokenizers, against what their own code gave (golden/, made by scripts/import_parity.py), and bad files."""

from __future__ import annotations

import json
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from codegrid.pipelines.importing.parity import PIXEL_TOLERANCE, random_images, random_weights
from codegrid.tokenizer import BackboneConfig, VectorQuantizerConfig, VQModel, VQModelConfig
from codegrid.tokenizer.fields import established
from codegrid.tokenizer.importers import (
    TOKENIZER_FAMILIES,
    ForeignCheckpointError,
    guess_tokenizer_family,
    read_settings,
    read_weights,
)
from codegrid.tokenizer.importers.diffusers import to_diffusers

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.safetensors"))


def load_golden(name: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """What import_parity.py wrote, with the weights made again from their names and shapes."""
    with safe_open(Path(__file__).parent / "golden" / f"{name}.safetensors", framework="pt") as file:
        metadata = file.metadata()
        golden = {"codes": file.get_tensor("codes"), "pixels": file.get_tensor("pixels"), "family": metadata["family"]}
    golden["settings"] = json.loads(metadata["settings"])
    golden["images"] = random_images(len(golden["codes"]), int(metadata["image_size"]))
    weights = random_weights({key: tuple(shape) for key, shape in json.loads(metadata["shapes"]).items()})
    if name == "taming-remap":
        weights["quantize.used"] = torch.from_numpy(np.random.RandomState(0).permutation(64))
    return golden, weights


@pytest.fixture(scope="module")
def taming():
    return load_golden("taming")


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_codes_and_pixels_are_those_of_the_familys_own_code(path: Path):
    golden, weights = load_golden(path.stem)
    assert guess_tokenizer_family(weights) in {golden["family"], "taming"}
    model = VQModel.from_foreign(golden["family"], weights, golden["settings"])
    with torch.no_grad():
        assert torch.equal(model.encode(golden["images"]), golden["codes"].long())
        pixels = model.decode(golden["codes"][:1])
    difference = (pixels - golden["pixels"]).abs().max() / (golden["pixels"].max() - golden["pixels"].min())
    assert difference <= PIXEL_TOLERANCE


def test_every_family_has_a_golden_file():
    assert {load_golden(path.stem)[0]["family"] for path in GOLDEN} == set(TOKENIZER_FAMILIES)


def test_weights_alone_tell_the_network_and_it_is_saved_whole(taming, tmp_path):
    golden, weights = taming
    model = VQModel.from_foreign("taming", weights)  # without the yaml only the resolution is not known
    with torch.no_grad():
        assert torch.equal(model.encode(golden["images"]), golden["codes"].long())
    model.save_pretrained(tmp_path)
    loaded = VQModel.from_pretrained(tmp_path)
    assert loaded.fingerprint() == model.fingerprint()
    assert loaded.config.provenance["family"] == "taming"
    # All codes count as used: the first step of a fine-tuning would place the codebook anew otherwise.
    assert bool((loaded.quantize.usage == 1).all())


def test_fields_that_came_later_leave_old_fingerprints_alone():
    assert set(established(BackboneConfig())) == {
        *("in_channels", "resolution", "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "mid_attention"),
        *("z_channels", "patch_size", "norm_groups", "dropout"),
    }
    assert established(BackboneConfig(pixel_range=(0.0, 1.0)))["pixel_range"] == (0.0, 1.0)


def test_a_remap_leaves_only_its_codes(taming):
    golden, weights = taming
    used = torch.unique(golden["codes"])
    model = VQModel.from_foreign("taming", {**weights, "quantize.used": used}, golden["settings"])
    assert model.config.quantizer_config.codebook_size == len(used)
    assert model.config.provenance["remap"] == used.tolist()
    with torch.no_grad():
        assert torch.equal(used[model.encode(golden["images"])], golden["codes"].long())


def test_a_first_stage_inside_of_another_models_file_and_training_leftovers(taming):
    _, weights = taming
    inside = {f"first_stage_model.{key}": value for key, value in weights.items()}
    inside |= {"model.diffusion_model.out.weight": torch.ones(1), "first_stage_model.loss.logvar": torch.ones(1)}
    expected = VQModel.from_foreign("taming", weights).fingerprint()
    assert VQModel.from_foreign("taming", inside).fingerprint() == expected


def test_diffusers_both_ways(taming):
    golden, _ = load_golden("diffusers")
    model = VQModel.from_foreign("taming", taming[1], taming[0]["settings"])
    settings, theirs = to_diffusers(model.config, model.state_dict())
    assert set(golden["settings"]) >= set(settings) - {"_class_name"}
    back = VQModel.from_foreign("diffusers", theirs, settings)
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    assert back.config.backbone == model.config.backbone
    old_names = {
        key.replace("to_q", "query").replace("to_k", "key").replace("to_v", "value").replace("to_out.0", "proj_attn"): v
        for key, v in theirs.items()
    }
    assert VQModel.from_foreign("diffusers", old_names, settings).fingerprint() == back.fingerprint()


def test_the_export_names_what_diffusers_cannot_be():
    shape = {"ch": 32, "ch_mult": (1, 2), "attn_resolutions": (), "z_channels": 8}
    plain = VectorQuantizerConfig(codebook_size=16, code_dim=4, l2_normalize=False)
    for backbone, quantizer, message in (
        (BackboneConfig(**shape, patch_size=2), plain, "backbone.patch_size 2"),
        (BackboneConfig(**shape), VectorQuantizerConfig(codebook_size=16, code_dim=4), "l2_normalize"),
    ):
        with pytest.raises(ValueError, match=message):
            to_diffusers(VQModelConfig(backbone=backbone, quantizer=quantizer), {})


def test_missing_extra_and_misshapen_keys_are_listed(taming):
    _, weights = taming
    cut = {key: value for key, value in weights.items() if key != "decoder.conv_out.bias"}
    with pytest.raises(ForeignCheckpointError, match=r"missing: decoder\.conv_out\.bias"):
        VQModel.from_foreign("taming", cut)
    with pytest.raises(ForeignCheckpointError, match=r"not known: encoder\.extra\.weight"):
        VQModel.from_foreign("taming", {**weights, "encoder.extra.weight": torch.ones(1)})
    with pytest.raises(ForeignCheckpointError, match=r"of another shape: decoder\.conv_in\.bias"):
        VQModel.from_foreign("taming", {**weights, "decoder.conv_in.bias": torch.ones(1)})
    with pytest.raises(ForeignCheckpointError, match=r"lacks encoder\.conv_in\.weight"):
        VQModel.from_foreign("taming", {k: v for k, v in weights.items() if not k.startswith("encoder.conv_in")})


def test_another_family_is_guessed_and_suggested(taming):
    _, weights = taming
    with pytest.raises(ForeignCheckpointError, match=r"not the weights of LlamaGen's .* use the family taming"):
        VQModel.from_foreign("llamagen", weights)
    with pytest.raises(ForeignCheckpointError, match="There is no family 'tamming'"):
        VQModel.from_foreign("tamming", weights)
    for path in GOLDEN:
        golden, keys = load_golden(path.stem)
        if golden["family"] != "ibq":  # taming's keys; the settings tell them apart
            assert guess_tokenizer_family(keys) == golden["family"]


def test_settings_of_another_checkpoint_are_refused(taming):
    golden, weights = taming
    params = golden["settings"]["model"]["params"]
    wrong = {"model": {"params": {**params, "ddconfig": {**params["ddconfig"], "ch_mult": [1, 2, 4]}, "n_embed": 65}}}
    with pytest.raises(ForeignCheckpointError, match=r"ch_mult \(1, 2, 4\) \(the weights: \(1, 1, 2\)\)"):
        VQModel.from_foreign("taming", weights, wrong)
    with pytest.raises(ForeignCheckpointError, match="Use the family ibq"):
        VQModel.from_foreign("taming", weights, {"model": {"class_path": "src.IBQ.models.ibqgan.IBQ"}})
    spatial = {"norm_type": "spatial"}
    with pytest.raises(ForeignCheckpointError, match="MoVQ"):
        VQModel.from_foreign("diffusers", load_golden("diffusers")[1], spatial)


class _Payload:
    def __reduce__(self):
        return print, ("this must never be printed",)


def test_what_lightning_leaves_beside_the_weights_is_passed_over(tmp_path, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": name})
    with monkeypatch.context() as patch:
        for module in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
            patch.setitem(sys.modules, module, types.ModuleType(module))
        sys.modules[name].ModelCheckpoint = callback
        content = {"state_dict": {"a": torch.ones(2)}, "callbacks": {callback: 1, "x": callback()}}
        torch.save(content, tmp_path / "a.ckpt")
    assert torch.equal(read_weights(tmp_path / "a.ckpt")["a"], torch.ones(2))


@pytest.mark.parametrize("nest", [lambda w: w, lambda w: {"model": w}, lambda w: {"module": OrderedDict(w), "step": 3}])
def test_weights_are_found_where_the_families_keep_them(tmp_path, nest):
    torch.save(nest({"a": torch.ones(2)}), tmp_path / "a.pt")
    assert list(read_weights(tmp_path / "a.pt")) == ["a"]


def test_files_that_are_no_checkpoint_are_named(tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_file({"a": torch.ones(1000)}, whole)
    torch.save({"a": torch.ones(1000)}, tmp_path / "whole.pt")
    for name, content, message in (
        ("empty.pt", b"", "is empty"),
        ("pointer.ckpt", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("page.pt", b"<!DOCTYPE html><html>", "web page"),
        ("cut.safetensors", whole.read_bytes()[:2000], "download it again"),
        ("cut.pt", (tmp_path / "whole.pt").read_bytes()[:3000], "download it again"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ForeignCheckpointError, match=message):
            read_weights(tmp_path / name)
    with pytest.raises(ForeignCheckpointError, match="There is no file"):
        read_weights(tmp_path / "missing.pt")
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(ForeignCheckpointError, match="holds no weights"):
        read_weights(tmp_path / "epoch.pt")
    for text in ("!!python/object/apply:print [x]", "- a\n- b"):
        (tmp_path / "model.yaml").write_text(text)
        with pytest.raises(ForeignCheckpointError):
            read_settings(tmp_path / "model.yaml")
