"""A class-conditional decoder: what the class does to it, and that an unconditional one does not know of it."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch
import torch.nn.functional as F

from codegrid.tokenizer import VectorQuantizerConfig, VQModel, VQModelConfig
from codegrid.tokenizer.fields import established
from codegrid.tokenizer.layers import ConditionalGroupNorm

BACKBONE = {
    "resolution": 16,
    "ch": 8,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8,),
    "z_channels": 8,
    "norm_groups": 4,
}
NAMES = {0: "cat", 1: "dog", 2: "fox"}


def make(num_classes: int = 3, **values) -> VQModel:
    torch.manual_seed(0)
    quantizer = VectorQuantizerConfig(codebook_size=16, code_dim=4)
    config = VQModelConfig(backbone=BACKBONE, quantizer=quantizer, num_classes=num_classes, **values)
    return VQModel(config).eval()


def with_learned_classes(**values) -> VQModel:
    model = make(**values)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("modulation"):
                parameter.normal_(std=0.3)
    return model


def test_the_norm_is_its_formula():
    norm = ConditionalGroupNorm(6, 3, 4)
    with torch.no_grad():
        norm.modulation.normal_()
        norm.weight.normal_()
    x, condition = torch.randn(2, 6, 3, 5), torch.randn(2, 4)
    plain = F.group_norm(x, 3, norm.weight, norm.bias, eps=1e-6)
    for image in range(2):
        for channel in range(6):
            scale = norm.modulation[channel] @ condition[image]
            shift = norm.modulation[6 + channel] @ condition[image]
            expected = plain[image, channel] * (1 + scale) + shift
            torch.testing.assert_close(norm(x, condition)[image, channel], expected)


def test_it_starts_as_the_unconditional_network_of_the_same_seed():
    plain, model = make(0), make()
    images, labels = torch.rand(3, 3, 16, 16) * 2 - 1, torch.tensor([0, 1, 2])
    new = {name for name in model.state_dict() if name not in plain.state_dict()}
    assert new
    assert all(name.endswith("modulation") or name == "class_embedding.weight" for name in new)
    assert not any(name.startswith("encoder") for name in new)
    for name, tensor in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    torch.testing.assert_close(model(images, labels).reconstruction, plain(images).reconstruction)
    assert torch.equal(model.encode(images), plain.encode(images))


def test_the_class_changes_the_picture_and_never_the_codes():
    model, images = with_learned_classes(), torch.rand(3, 3, 16, 16) * 2 - 1
    labels = torch.tensor([2, 0, 1])
    output = model(images, labels)
    assert torch.equal(output.codes, model.encode(images))
    with torch.no_grad():
        assert torch.equal(model.decode(output.codes, labels), output.reconstruction)
    other = model.decode(output.codes, (labels + 1) % 3)
    assert (other - output.reconstruction).flatten(1).abs().amax(1).min() > 1e-3
    # Each picture goes by its own label.
    torch.testing.assert_close(model.decode(output.codes.flip(0), labels.flip(0)), output.reconstruction.flip(0))


def test_every_residual_block_of_the_decoder_learns_of_the_class():
    model, images = make(), torch.rand(3, 3, 16, 16) * 2 - 1
    model(images, torch.tensor([0, 1, 2])).reconstruction.square().mean().backward()
    modulations = {name: p.grad for name, p in model.named_parameters() if name.endswith("modulation")}
    blocks = sum(name.endswith("conv1.weight") for name, _ in model.decoder.named_parameters())
    assert len(modulations) == 2 * blocks + 1
    assert all(gradient.any() for gradient in modulations.values())
    model = with_learned_classes()
    model(images, torch.tensor([0, 1, 1])).reconstruction.square().mean().backward()
    assert model.class_embedding.weight.grad.abs().sum(1).bool().tolist() == [True, True, False]


def test_saving_and_loading(tmp_path):
    model = with_learned_classes(id2label=NAMES)
    model.save_pretrained(tmp_path)
    loaded = VQModel.from_pretrained(tmp_path).eval()
    assert loaded.config.num_classes == 3
    assert loaded.config.id2label == NAMES
    assert loaded.config.class_names == ("cat", "dog", "fox")
    assert loaded.config.label2id == {"cat": 0, "dog": 1, "fox": 2}
    assert loaded.fingerprint() == model.fingerprint()
    codes, labels = torch.randint(16, (3, 8, 8)), torch.tensor([0, 1, 2])
    assert torch.equal(loaded.decode(codes, labels), model.decode(codes, labels))
    assert make().config.class_names == ("0", "1", "2")


def test_an_unconditional_tokenizer_says_nothing_of_classes(tmp_path):
    model = make(0)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not [key for key in config if "class" in key or "label" in key]
    assert model.config.class_names is None
    parts = [established(part) for part in (model.config.backbone_config, model.config.quantizer_config)]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if name != "quantize.usage":
            digest.update(f"{name}{tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    assert model.fingerprint() == digest.hexdigest()  # as of tokenizers made before there were classes
    assert model.fingerprint() != make(1).fingerprint()


def test_labels_that_do_not_fit_are_refused():
    model, codes = make(), torch.zeros(2, 8, 8, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"is class-conditional, and no labels are given. Give labels \[B\] in \[0, 3\)"
    ):
        model.decode(codes)
    with pytest.raises(ValueError, match=r"is class-conditional"):
        model(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match=r"labels are torch.int64 \[3\]. Give integers of shape \[2\]"):
        model.decode(codes, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"torch.float32 \[2\]\. Give integers"):
        model.decode(codes, torch.zeros(2))
    for wrong in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match=r"outside the classes: they run from .* from 0 to 2"):
            model.decode(codes, torch.tensor(wrong))
    with pytest.raises(ValueError, match="unconditional: it takes no labels"):
        make(0).decode(codes, torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    "values",
    [
        {"num_classes": -1},
        {"num_classes": 2, "id2label": NAMES},
        {"num_classes": 4, "id2label": NAMES},
        {"num_classes": 3, "id2label": {0: "cat", 1: "cat", 2: "fox"}},
        {"num_classes": 3, "id2label": {1: "cat", 2: "dog", 3: "fox"}},
    ],
)
def test_classes_that_contradict_themselves_are_refused(values):
    with pytest.raises(ValueError, match="num_classes"):
        make(**values)
