"""VQModel: shapes for every kind of backbone, its two halves, saving and loading."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from codegrid.tokenizer import (
    BackboneConfig,
    Preprocessing,
    VectorQuantizerConfig,
    VQModel,
    VQModelConfig,
    layers,
)
from codegrid.tokenizer.quantizers import GroupedQuantizerConfig, ResidualQuantizerConfig


def make(**backbone) -> VQModel:
    defaults = {
        "resolution": 32,
        "ch": 8,
        "ch_mult": (1, 2),
        "num_res_blocks": 1,
        "attn_resolutions": (),
        "norm_groups": 4,
    }
    config = BackboneConfig(**{**defaults, "z_channels": 8, **backbone})
    quantizer = VectorQuantizerConfig(codebook_size=16, code_dim=4)
    preprocessing = Preprocessing(image_size=config.resolution)
    return VQModel(VQModelConfig(backbone=config, quantizer=quantizer, preprocessing=preprocessing)).eval()


@pytest.mark.parametrize(
    ("backbone", "factor"),
    [
        ({"ch_mult": (1, 1, 2)}, 4),
        ({"ch_mult": (1, 1, 2, 2)}, 8),
        ({"ch_mult": (1, 1, 1, 1, 2)}, 16),
        ({"ch_mult": (1, 1, 1, 1, 1, 2)}, 32),
        ({"ch_mult": (1, 2), "patch_size": 2}, 4),
        ({"ch_mult": (1,), "patch_size": 4}, 4),
        ({"ch_mult": (1, 2), "patch_size": 2, "attn_resolutions": (16, 8)}, 4),
        ({"in_channels": 1, "mid_attention": False, "num_res_blocks": 2}, 2),
        ({"in_channels": 5}, 2),
    ],
)
def test_images_become_grids_and_images_again(backbone, factor):
    model = make(**backbone)
    images = torch.rand(2, model.config.backbone_config.in_channels, 64, 32) * 2 - 1  # not square, not the resolution
    codes = model.encode(images)
    assert codes.shape == (2, 64 // factor, 32 // factor)
    assert codes.dtype == torch.int64
    assert 0 <= codes.min() <= codes.max() < 16
    assert model.decode(codes).shape == images.shape
    assert model.config.grid_shape == (32 // factor, 32 // factor)


def test_decoding_the_codes_is_the_reconstruction_bit_for_bit(tiny_vqmodel):
    config = tiny_vqmodel.config.backbone_config
    images = torch.rand(3, config.in_channels, config.resolution, config.resolution) * 2 - 1
    tiny_vqmodel.eval()
    with torch.no_grad():
        output = tiny_vqmodel(images)
        assert torch.equal(tiny_vqmodel.encode(images), output.codes)
        assert torch.equal(tiny_vqmodel.decode(output.codes), output.reconstruction)


def test_parameter_names_and_shapes_are_those_of_taming_f16():
    """taming-transformers' f16 ddconfig and the names in its checkpoints."""
    with torch.device("meta"):
        model = VQModel(
            VQModelConfig(backbone=BackboneConfig(), quantizer=VectorQuantizerConfig(codebook_size=1024, code_dim=256))
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["encoder.conv_in.weight"] == (128, 3, 3, 3)
    assert shapes["encoder.down.2.block.0.nin_shortcut.weight"] == (256, 128, 1, 1)
    assert shapes["encoder.down.3.downsample.conv.weight"] == (256, 256, 3, 3)
    assert shapes["encoder.down.4.attn.1.proj_out.bias"] == (512,)
    assert "encoder.down.4.downsample.conv.weight" not in shapes
    assert shapes["encoder.mid.attn_1.q.weight"] == (512, 512, 1, 1)
    assert shapes["decoder.up.4.block.2.conv2.weight"] == (512, 512, 3, 3)
    assert shapes["decoder.up.4.attn.2.norm.weight"] == (512,)
    assert shapes["decoder.up.1.upsample.conv.weight"] == (128, 128, 3, 3)
    assert "decoder.up.0.upsample.conv.weight" not in shapes
    assert shapes["quantize.embedding.weight"] == (1024, 256)
    assert shapes["quant_conv.weight"] == (256, 256, 1, 1)
    # The count of taming's own Encoder, Decoder, codebook and 1x1 convolutions with this ddconfig.
    assert sum(torch.Size(shape).numel() for name, shape in shapes.items() if name != "quantize.usage") == 72_141_699


def test_saving_and_loading_gives_the_same_model(tiny_vqmodel, tmp_path):
    tiny_vqmodel.save_pretrained(tmp_path)
    loaded = VQModel.from_pretrained(tmp_path).eval()
    assert not list(tmp_path.glob("*.bin"))
    assert loaded.config.to_dict()["backbone"] == tiny_vqmodel.config.to_dict()["backbone"]
    for name, tensor in tiny_vqmodel.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert loaded.fingerprint() == tiny_vqmodel.fingerprint()


def test_the_fingerprint_follows_weights_and_config_but_not_training_counters(tiny_vqmodel):
    before = tiny_vqmodel.fingerprint()
    tiny_vqmodel.quantize.usage += 1
    assert tiny_vqmodel.fingerprint() == before
    with torch.no_grad():
        tiny_vqmodel.decoder.conv_out.bias[0] += 1e-3
    assert tiny_vqmodel.fingerprint() != before


def test_the_fingerprint_of_a_config_stays_when_fields_are_added_to_it():
    """Both were written by the commit ef4593a, before `codebook_init` was there."""
    backbone = BackboneConfig(
        resolution=16, ch=8, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(), z_channels=8, patch_size=2,
        norm_groups=4,
    )  # fmt: skip
    plain = VectorQuantizerConfig(codebook_size=8, code_dim=2, l2_normalize=False)
    configs = {
        replace(plain, l2_normalize=True): "425b58b3091fe4e033b3655a2c30363c2f956438169bc141463f08654f4766c4",
        ResidualQuantizerConfig(
            depth=2, inner=plain
        ): "3dd6a3532876f68c6c53326e6efbdd089a3f3e69c1bffa8c1dbcdff25cee47fc",
    }
    for config, expected in configs.items():
        model = VQModel(VQModelConfig(backbone=backbone, quantizer=config))
        for tensor in model.state_dict().values():
            tensor.fill_(0.5)
        assert model.fingerprint() == expected
    other = VQModel(VQModelConfig(backbone=backbone, quantizer=replace(plain, codebook_init="kmeans")))
    before = other.fingerprint()
    other.config.quantizer = {**other.config.quantizer, "codebook_init": "data"}
    assert other.fingerprint() != before


def test_a_codebook_of_means_is_saved_and_its_sums_are_not_in_the_fingerprint(tiny_vqmodel, tmp_path):
    values = {**tiny_vqmodel.config.quantizer, "codebook_update": "ema"}
    model = VQModel(VQModelConfig(backbone=tiny_vqmodel.config.backbone, quantizer=values)).eval()
    before = model.fingerprint()
    model.quantize.cluster_sum += 1
    assert model.fingerprint() == before
    model.save_pretrained(tmp_path)
    loaded = VQModel.from_pretrained(tmp_path)
    assert loaded.fingerprint() == before
    assert torch.equal(loaded.quantize.cluster_sum, model.quantize.cluster_sum)
    assert not list(loaded.quantize.parameters())


def test_codes_of_another_codebook_are_refused(tiny_vqmodel):
    size = tiny_vqmodel.config.quantizer_config.codebook_size
    codes = torch.zeros(1, 4, 4, dtype=torch.int64)
    codes[0, 0, 0] = size
    with pytest.raises(ValueError, match=f"{size}, the codebook from 0 to {size - 1}"):
        tiny_vqmodel.decode(codes)
    with pytest.raises(ValueError, match=r"\[B, h, w\]"):
        tiny_vqmodel.decode(codes.float())


@pytest.mark.parametrize(
    "quantizer",
    [
        ResidualQuantizerConfig(depth=3, inner=VectorQuantizerConfig(codebook_size=16, code_dim=4, l2_normalize=False)),
        GroupedQuantizerConfig(groups=3, inner=VectorQuantizerConfig(codebook_size=16, code_dim=2)),
    ],
    ids=lambda config: config.type,
)
def test_several_codes_a_position(tiny_vqmodel, tmp_path, quantizer):
    model = VQModel(VQModelConfig(backbone=tiny_vqmodel.config.backbone, quantizer=quantizer)).eval()
    model.save_pretrained(tmp_path)
    model = VQModel.from_pretrained(tmp_path).eval()
    assert model.config.quantizer_config == quantizer
    assert model.config.codes_shape == (*model.config.grid_shape, 3)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    output = model(images)
    assert output.codes.shape == (2, 4, 4, 3)
    assert torch.equal(model.encode(images), output.codes)
    assert torch.equal(model.decode(output.codes), output.reconstruction)
    for wrong in (output.codes[..., :2], output.codes[..., 0], output.codes.flatten(1)):
        with pytest.raises(ValueError, match=r"Give integers of shape \[B, h, w, 3\]"):
            model.decode(wrong)
    with pytest.raises(ValueError, match="outside the codebook"):
        model.decode(output.codes + 16)
    before = model.fingerprint()
    model.quantize.levels[1].usage += 1
    assert model.fingerprint() == before
    with torch.no_grad():
        model.quantize.levels[1].embedding.weight[0] += 1
    assert model.fingerprint() != before


def test_images_of_another_shape_are_refused(tiny_vqmodel):
    channels = tiny_vqmodel.config.backbone_config.in_channels
    with pytest.raises(ValueError, match="multiples of"):
        tiny_vqmodel.encode(torch.zeros(1, channels, 17, 16))
    with pytest.raises(ValueError, match=f"Give .B, {channels}, H, W."):
        tiny_vqmodel.encode(torch.zeros(1, channels + 1, 16, 16))


def test_missing_and_surplus_weights_are_refused(tiny_vqmodel, tmp_path):
    tiny_vqmodel.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for change in ("missing", "surplus"):
        changed = dict(tensors)
        if change == "missing":
            del changed["decoder.conv_out.weight"]
        else:
            changed["decoder.conv_out.scale"] = torch.ones(1)
        save_file(changed, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"decoder\.conv_out"):
            VQModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("backbone", "ch"), "abc", "backbone.ch is 'abc'"),
        (("backbone", "depth"), 3, "Unknown keys in backbone: depth"),
        (("backbone", "ch"), 7, "norm_groups"),
        (("quantizer", "type"), "magic", "quantizer.type is 'magic'"),
        (("quantizer", "codebook_size"), 0, "codebook_size is 0"),
        (("preprocessing", "fit"), "tile", "preprocessing.fit"),
        (("preprocessing", "image_size"), 15, "no multiple of the downsampling factor"),
        (("colour",), True, "Unknown keys in the tokenizer's config: colour"),
    ],
)
def test_a_wrong_config_is_refused_by_name(tiny_vqmodel, tmp_path, path, value, message):
    tiny_vqmodel.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    target = config
    for name in path[:-1]:
        target = target[name]
    target[path[-1]] = value
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        VQModel.from_pretrained(tmp_path)


def check_block(block: torch.nn.Module, x: torch.Tensor, expected: torch.Tensor) -> None:
    """`block` gives `expected` and its gradients, to the bit, and leaves its input as it is."""
    with torch.no_grad():
        before = x.clone()
        assert torch.equal(block(x), expected)
        assert torch.equal(x, before)
    inputs = (x, *block.parameters())
    wanted = torch.autograd.grad(expected.square().sum(), inputs)
    found = torch.autograd.grad(block(x).square().sum(), inputs)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("shortcut", ["input", "output"])
@pytest.mark.parametrize("widths", [(8, 8), (8, 16)])
def test_maps_written_over_change_neither_the_input_nor_a_bit(widths, shortcut):
    block = layers.ResnetBlock(*widths, groups=4, dropout=0.0, shortcut=shortcut)
    x = torch.randn(2, 8, 6, 6).requires_grad_()
    h = block.conv1(F.silu(block.norm1(x)))
    h = block.conv2(F.silu(block.norm2(h)))
    side = getattr(block, "nin_shortcut", lambda y: y)
    expected = h + side(x if shortcut == "input" or widths[0] == widths[1] else h)
    check_block(block, x, expected)


@pytest.mark.parametrize("widths", [(8, 8), (8, 16)])
def test_a_fused_block_is_its_formula_and_changes_no_input(widths):
    block = layers.FusedBlock(*widths, groups=4, dropout=0.0)
    x = torch.randn(2, 8, 6, 6).requires_grad_()
    expected = block.conv2(F.silu(block.conv1(block.norm(x)))) + getattr(block, "nin_shortcut", lambda y: y)(x)
    check_block(block, x, expected)


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("mid", [0, 1])
@pytest.mark.parametrize("sampling", [("wide", "linear"), ("symmetric", "linear"), ("wide", "nearest")])
def test_fused_blocks_with_levels_of_other_widths(sampling, mid, num_classes, tmp_path):
    down, up = sampling
    shape = {"resolution": 16, "ch": 8, "ch_mult": (1, 3, 2), "num_res_blocks": 1, "attn_resolutions": ()}
    shape |= {"mid_attention": False, "mid_res_blocks": mid, "z_channels": 8, "norm_groups": 4}
    shape |= {"block": "fused", "downsample": down, "upsample": up}
    config = VQModelConfig(backbone=BackboneConfig(**shape), num_classes=num_classes)
    model = VQModel(config).eval()
    labels = torch.tensor([0, 2]) if num_classes else None
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    codes = model.encode(images)
    assert codes.shape == (2, 4, 6)
    assert torch.equal(model.decode(codes, labels), model(images, labels).reconstruction)
    assert model.decode(codes, labels).shape == images.shape
    model.save_pretrained(tmp_path)
    assert VQModel.from_pretrained(tmp_path).fingerprint() == model.fingerprint()


def test_a_norm_of_bfloat16_computes_in_float32_where_a_gradient_is_asked_for():
    norm = layers.group_norm(8, 4)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 8, 6, 6).bfloat16().to(memory_format=torch.channels_last)
    wide = F.group_norm(x.float(), 4, norm.weight, norm.bias, 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        learning = norm(x)
        with torch.no_grad():
            still = norm(x)
    assert torch.equal(learning, wide.bfloat16())
    assert torch.equal(still, F.group_norm(x, 4, norm.weight, norm.bias, 1e-6))
    assert learning.is_contiguous(memory_format=torch.channels_last)
    norm.bfloat16()  # as in a whole model in bfloat16
    wide = F.group_norm(x.float(), 4, norm.weight.float(), norm.bias.float(), 1e-6)
    assert torch.equal(norm(x), wide.bfloat16())


def test_attention_at_the_bottleneck_needs_a_block_there():
    with pytest.raises(ValueError, match="mid_attention follows the first"):
        BackboneConfig(mid_res_blocks=0)


def test_under_autocast_a_sum_keeps_the_wider_type():
    assert layers.add_to(torch.ones(1, dtype=torch.bfloat16), torch.full((1,), 2.0**-10)).dtype == torch.float32
