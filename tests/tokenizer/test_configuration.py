"""Configs from dictionaries: what is refused, by name; and what is converted."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from codegrid.errors import CodegridError
from codegrid.tokenizer import BackboneConfig, Preprocessing, VectorQuantizerConfig, VQModelConfig, configuration
from codegrid.tokenizer.fields import from_dict
from codegrid.tokenizer.quantizers import quantizer_config_from_dict


@dataclass(frozen=True)
class Red:
    type: Literal["red"] = "red"
    shade: float = 0.5


@dataclass(frozen=True)
class Blue:
    type: Literal["blue"] = "blue"
    depth: int = 1


@dataclass(frozen=True)
class Inner:
    size: int = 1
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Outer:
    number: int
    ratio: float = 1.0
    name: str = "a"
    on: bool = False
    kind: Literal["crop", "pad", 3] = "crop"
    maybe: int | None = 4
    inner: Inner = field(default_factory=Inner)
    colour: Red | Blue = field(default_factory=Red)
    either: int | str = 0
    anything: Any = None


def test_plain_values_become_the_fields():
    values = {
        "number": 3,
        "ratio": 2,
        "name": "b",
        "on": True,
        "kind": 3,
        "maybe": None,
        "inner": {"size": 5, "sizes": [1, 2]},
        "colour": {"type": "blue", "depth": 7},
        "either": "x",
        "anything": {"as": ["it", "is"]},
    }
    outer = from_dict(Outer, json.loads(json.dumps(values)), "config")
    assert outer == Outer(3, 2.0, "b", True, 3, None, Inner(5, (1, 2)), Blue(depth=7), "x", {"as": ["it", "is"]})
    assert isinstance(outer.ratio, float)
    assert isinstance(outer.inner.sizes, tuple)
    assert from_dict(Outer, {"number": 1}, "config") == Outer(1)
    assert from_dict(Outer, {"number": 1, "inner": Inner(9)}, "config").inner.size == 9


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1], "config is no dictionary of fields, but list"),
        (None, "config is no dictionary of fields, but NoneType"),
        ({"nummer": 1, "foo": 2}, "Unknown keys in config: foo, nummer. Outer knows anything, colour"),
        ({"number": "3"}, "config.number is '3'"),
        ({"number": 3.0}, "config.number is 3.0"),
        ({"number": True}, "config.number is True"),
        ({"ratio": "high"}, "config.ratio is 'high'"),
        ({"ratio": True}, "config.ratio is True"),
        ({"ratio": None}, "config.ratio is None"),
        ({"name": 3}, "config.name is 3"),
        ({"on": 1}, "config.on is 1"),
        ({"kind": "stretch"}, "config.kind is 'stretch'. Choose one of 'crop', 'pad', 3"),
        ({"maybe": "x"}, "config.maybe is 'x'"),
        ({"inner": {"site": 1}}, "Unknown keys in config.inner: site"),
        ({"inner": {"size": None}}, "config.inner.size is None"),
        ({"inner": {"sizes": 3}}, "config.inner.sizes is 3. Give a list"),
        ({"inner": {"sizes": [1, "2"]}}, "config.inner.sizes[1] is '2'"),
        ({"inner": 3}, "config.inner is no dictionary"),
        ({"colour": {"type": "green"}}, "config.colour is {'type': 'green'}"),
        ({"colour": {"depth": 1}}, "config.colour is {'depth': 1}. Give a config whose type is one of 'red', 'blue'"),
        ({"colour": {"type": "red", "depth": 1}}, "Unknown keys in config.colour: depth"),
        ({"either": 1.5}, "config.either is 1.5"),
    ],
)
def test_wrong_values_are_refused_by_name(values, message):
    if isinstance(values, dict):
        values = {"number": 1, **values}
    with pytest.raises(ValueError) as error:  # noqa: PT011
        from_dict(Outer, values, "config")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"in_channels": 0}, r"backbone\.in_channels is 0"),
        ({"ch_mult": ()}, r"backbone\.ch_mult is \(\)"),
        ({"ch_mult": (1, 0)}, r"backbone\.ch_mult"),
        ({"dropout": 1.0}, r"backbone\.dropout is 1\.0"),
        ({"ch": 48}, "48 channels cannot be split into norm_groups = 32"),
        ({"patch_size": 0}, r"backbone\.patch_size is 0"),
    ],
)
def test_backbones_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        BackboneConfig(**values)


def test_downsampling():
    assert BackboneConfig().downsampling == 16
    assert BackboneConfig(ch_mult=[1, 2], patch_size=4).downsampling == 8
    assert BackboneConfig(ch_mult=[1, 2]).ch_mult == (1, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"codebook_size": 0}, r"quantizer\.codebook_size is 0"),
        ({"code_dim": 0}, r"quantizer\.code_dim is 0"),
        ({"commitment_weight": -0.1}, r"quantizer\.commitment_weight is -0\.1"),
        ({"revive_decay": 1.0}, r"quantizer\.revive_decay is 1\.0"),
    ],
)
def test_quantizers_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        VectorQuantizerConfig(**values)


def test_a_quantizer_is_made_by_its_type():
    assert quantizer_config_from_dict({"type": "vq", "codebook_size": 7}) == VectorQuantizerConfig(codebook_size=7)
    for values in ({"type": "none"}, {}, None):
        with pytest.raises(ValueError, match=r"quantizer\.type is .* Choose one of 'vq'"):
            quantizer_config_from_dict(values)


def test_a_model_config_is_plain_json_and_comes_back(tmp_path):
    config = VQModelConfig(
        backbone=BackboneConfig(resolution=32, ch=32, ch_mult=(1, 2)),
        quantizer=VectorQuantizerConfig(codebook_size=9),
        preprocessing=Preprocessing(image_size=64, fit="pad"),
    )
    config.save_pretrained(tmp_path)
    loaded = VQModelConfig.from_pretrained(tmp_path)
    assert loaded.backbone_config == config.backbone_config == BackboneConfig(resolution=32, ch=32, ch_mult=(1, 2))
    assert loaded.quantizer_config == VectorQuantizerConfig(codebook_size=9)
    assert loaded.preprocessing_config == Preprocessing(image_size=64, fit="pad")
    assert loaded.grid_shape == (32, 32)
    assert loaded.backbone == json.loads(json.dumps(loaded.backbone)) == config.backbone


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"colour": 1}, "Unknown keys in the tokenizer's config: colour"),
        ({"backbone": {"channels": 1}}, "Unknown keys in backbone: channels"),
        ({"backbone": {"ch": "abc"}}, "backbone.ch is 'abc'"),
        ({"quantizer": {"type": "none"}}, "quantizer.type is 'none'"),
        ({"preprocessing": {"image_size": 250}}, "250 is no multiple of the downsampling factor 16"),
        ({"preprocessing": {"fit": "zoom"}}, "preprocessing.fit is 'zoom'"),
    ],
)
def test_model_configs_with_mistakes_are_refused(values, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        VQModelConfig(**values)
    assert message in str(error.value)


HOSTILE = [
    ({"num_classes": 1_000_001}, r"num_classes is 1000001. Give at most 1000000"),
    ({"num_classes": 10**12}, r"num_classes is 10{12}. Give at most"),
    ({"num_labels": 10**12}, r"num_labels is 10{12}. Give at most"),
    ({"backbone": {"ch_mult": [1] * 65}}, r"backbone\.ch_mult has 65 entries. Give at most 64"),
    ({"backbone": {"attn_resolutions": [1] * 65}}, r"backbone\.attn_resolutions has 65 entries. Give at most 64"),
    ({"backbone": {"num_res_blocks": 10**9}}, r"backbone\.num_res_blocks is 10{9}. Give at most 1024"),
    ({"backbone": {"num_res_blocks": 200}}, r"backbone has 2009 residual blocks .* at most 1024"),
    ({"backbone": {"decoder_res_blocks": 10**9}}, r"backbone has \d+ residual blocks"),
    ({"backbone": {"mid_res_blocks": 10**9}}, r"backbone\.mid_res_blocks is 10{9}"),
    ({"backbone": {"ch": 65_568}}, r"backbone\.ch is 65568. Give at most 65536"),
    ({"backbone": {"ch_mult": [1, 1024]}}, r"backbone\.ch \* 1024 = 131072 channels are too many"),
    ({"backbone": {"z_channels": 10**6}}, r"backbone\.z_channels is 10{6}"),
    ({"backbone": {"in_channels": 10**6}}, r"backbone\.in_channels is 10{6}"),
    ({"backbone": {"patch_size": 512}, "preprocessing": {"image_size": 8192}}, r"backbone\.patch_size is 512"),
    ({"quantizer": {"type": "vq", "codebook_size": 2**31 + 1}}, r"quantizer's codebook_size is 2147483649"),
    ({"quantizer": {"type": "vq", "code_dim": 10**6}}, r"quantizer's code_dim is 10{6}"),
    (
        {"quantizer": {"type": "residual", "depth": 10**9}},
        r"quantizer's depth is 10{9}. Give settings that make it 1 to 1024",
    ),
    ({"quantizer": {"type": "grouped", "groups": 10**9}}, r"quantizer's (code_dim|depth) is"),
    ({"quantizer": {"type": "fsq", "levels": [3] * 20}}, r"quantizer\.levels has 20 channels"),
    ({"quantizer": {"type": "hierarchical", "channels": 10**8}}, r"quantizer's code_dim is 10{8}"),
]


@pytest.mark.parametrize(("values", "message"), HOSTILE)
def test_a_hostile_config_is_refused_before_any_work(values, message, tmp_path, monkeypatch):
    """No module is made of it, and next to no memory taken: what it would cost to go on is not tried."""
    from codegrid.tokenizer import VQModel, modeling

    for part in ("Encoder", "Decoder", "make_quantizer"):
        monkeypatch.setattr(modeling, part, lambda *args, **options: pytest.fail("a module was made"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "codegrid_vqmodel", **values}))
    tracemalloc.start()
    try:
        with pytest.raises(CodegridError, match=message) as caught:
            VQModel.from_pretrained(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 400


def test_the_largest_networks_that_are_used_lie_within_the_bounds():
    BackboneConfig(ch=256, ch_mult=(1, 1, 2, 2, 4, 8), num_res_blocks=8, z_channels=4096)
    VQModelConfig(quantizer={"type": "lfq", "num_bits": 31}, num_classes=21_843)


def test_the_parts_are_read_once_and_anew_when_they_are_changed(monkeypatch):
    config = VQModelConfig()
    before = {name: getattr(config, f"{name}_config") for name in ("backbone", "quantizer", "preprocessing")}
    monkeypatch.setattr(configuration, "from_dict", lambda *args, **options: pytest.fail("it was read again"))
    monkeypatch.setattr(configuration, "quantizer_config_from_dict", configuration.from_dict)
    for copied in (config, deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert all(getattr(copied, f"{name}_config") == part for name, part in before.items())
        assert copied == config
        assert copied.to_dict() == config.to_dict()
        assert (copied.pixels_per_position, copied.grid_shape) == (16, (16, 16))
    monkeypatch.undo()
    other = deepcopy(config)
    other.preprocessing = {"image_size": 512}  # as transformers does with the keywords of from_pretrained
    other.backbone["patch_size"] = 2
    assert (other.preprocessing_config.image_size, config.preprocessing_config.image_size) == (512, 256)
    assert (other.pixels_per_position, config.pixels_per_position) == (32, 16)
    assert other != config
    other.quantizer = {"type": "none such"}
    with pytest.raises(CodegridError, match="none such"):
        _ = other.quantizer_config
    assert not any("kept" in key for key in (*config.__dict__, *config.to_dict(), *json.loads(config.to_json_string())))
