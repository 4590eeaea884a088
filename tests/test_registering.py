"""A quantizer and a discriminator from outside of the package: registered by the public call, and nothing else."""

from __future__ import annotations

import importlib.util
import inspect
import json
import runpy
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from codegrid.errors import CodegridError
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.tokenizer import BackboneConfig, VectorQuantizerConfig, VQModel, VQModelConfig
from codegrid.tokenizer.discriminators import DISCRIMINATORS, register_discriminator
from codegrid.tokenizer.quantizers import (
    QUANTIZERS,
    GroupedQuantizerConfig,
    HierarchicalQuantizerConfig,
    Quantizer,
    QuantizerConfig,
    ResidualQuantizerConfig,
    make_quantizer,
    quantizer_config_from_dict,
    register_quantizer,
)

HERE = Path(__file__).parent


def module(path: str) -> ModuleType:
    """A file of the tests as a module."""
    name = f"registering_{Path(path).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, HERE / path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


TOY = module("toy_parts.py")
# The contract: what test_quantizers.py asks of every quantizer.
CONTRACT = {
    name: test
    for name, test in vars(module("tokenizer/test_quantizers.py")).items()
    if name.startswith("test_")
    and list(inspect.signature(test).parameters) == ["quantizer"]
    and not hasattr(test, "pytestmark")
}
CONFIGS = {
    "alone": TOY.ToyQuantizerConfig(),
    "residual": ResidualQuantizerConfig(depth=3, inner=TOY.ToyQuantizerConfig()),
    "grouped": GroupedQuantizerConfig(groups=2, inner=TOY.ToyQuantizerConfig(channels=2)),
    "hierarchical": HierarchicalQuantizerConfig(channels=4, norm_groups=2, inner=TOY.ToyQuantizerConfig(channels=3)),
}


@pytest.fixture(autouse=True)
def registered():
    assert register_quantizer(TOY.ToyQuantizerConfig) is TOY.ToyQuantizerConfig
    assert register_discriminator(TOY.ToyDiscriminatorConfig) is TOY.ToyDiscriminatorConfig
    yield
    del QUANTIZERS["toy"], DISCRIMINATORS["toy"]


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("check", CONTRACT)
def test_it_keeps_the_contract_alone_and_as_an_inner_one(check, kind):
    assert len(CONTRACT) >= 5
    CONTRACT[check](make_quantizer(CONFIGS[kind]))


@pytest.mark.parametrize("kind", CONFIGS)
def test_its_config_is_read_and_a_model_of_it_is_saved_and_loaded(kind, tmp_path):
    config = CONFIGS[kind]
    values = json.loads(json.dumps(VQModelConfig(quantizer=config, backbone=_tiny(config)).quantizer))
    assert quantizer_config_from_dict(values) == config
    model = VQModel(VQModelConfig(backbone=_tiny(config), quantizer=config)).eval()
    model.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 16, 16)
    loaded = VQModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(images), model.encode(images))
    assert loaded.fingerprint() == model.fingerprint()


def _tiny(config: QuantizerConfig) -> BackboneConfig:
    return BackboneConfig(
        resolution=16, ch=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), z_channels=8, norm_groups=4
    )


def train(monkeypatch: pytest.MonkeyPatch, images: Path, folder: Path, *arguments: object) -> Path:
    """`train_tokenizer.py quickstart` of two steps."""
    tiny = ["--preprocessing.image-size", 16, "--mixed-precision", "no", "--backbone.ch", 8, "--max-steps", 2]
    tiny += ["--backbone.norm-groups", 4, "--backbone.z-channels", 8, "--data.source", images, "--output-dir", folder]
    monkeypatch.setattr(sys, "argv", ["train_tokenizer.py", "quickstart", *map(str, tiny), *map(str, arguments)])
    runpy.run_path(str(HERE.parent / "scripts" / "train_tokenizer.py"), run_name="__main__")
    return folder


def test_the_command_line_knows_both_by_their_names_and_trains_them(monkeypatch, image_folder, tmp_path):
    arguments = ["--quantizer.type", "toy", "--quantizer.channels", 5, "--objective.discriminator.type", "toy"]
    arguments += ["--objective.discriminator.side", 2, "--objective.adversarial-weight", 0.5]
    folder = train(monkeypatch, image_folder, tmp_path / "run", *arguments, "--objective.adversarial-start", 0)
    written = json.loads((folder / "training_config.json").read_text())
    assert written["quantizer"] == {"type": "toy", "channels": 5, "size": 1.0}
    assert written["objective"]["discriminator"] == {"type": "toy", "side": 2}
    model = load_tokenizer(str(folder))
    assert isinstance(model.quantize, TOY.ToyQuantizer)
    assert (model.quantize.sizes != 1).any()  # it learned
    # The same command again: the run is whole, and its config is read back.
    train(monkeypatch, image_folder, folder, *arguments, "--objective.adversarial-start", 0)


def test_the_command_line_takes_it_as_an_inner_one(monkeypatch, image_folder, tmp_path):
    arguments = ["--quantizer.type", "residual", "--quantizer.depth", 2, "--quantizer.inner.type", "toy"]
    folder = train(monkeypatch, image_folder, tmp_path / "run", *arguments)
    assert load_tokenizer(str(folder)).config.codes_shape[-1] == 2


def test_what_cannot_be_registered_is_refused():
    @dataclass(frozen=True)
    class OfNoName(QuantizerConfig):
        pass

    @dataclass(frozen=True)
    class OfATakenName(QuantizerConfig):
        type: str = "vq"

    for kind, message in [
        (Quantizer, "Make it a dataclass derived from QuantizerConfig"),
        (OfNoName, r"OfNoName\.type is ''. Give it a name"),
        (OfATakenName, r"OfATakenName\.type is 'vq', which is the name of VectorQuantizerConfig"),
    ]:
        with pytest.raises(CodegridError, match=message):
            register_quantizer(kind)
    assert QUANTIZERS["vq"] is VectorQuantizerConfig
    # A notebook's cell that is run again.
    again = replace(TOY.ToyQuantizerConfig()).__class__
    assert register_quantizer(again) is again


@pytest.mark.parametrize("kind", [GroupedQuantizerConfig, HierarchicalQuantizerConfig])
def test_an_inner_quantizer_of_several_codes_is_refused(kind):
    with pytest.raises(CodegridError, match=r"quantizer\.inner\.type is 'grouped', which gives several codes"):
        kind(inner=GroupedQuantizerConfig())
