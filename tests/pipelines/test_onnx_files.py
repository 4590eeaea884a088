"""A tokenizer as ONNX files: what onnxruntime computes of them, beside torch."""

from __future__ import annotations

import json
import shutil
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from documents import ROOT, read, snippets
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim

sys.path.append(str(Path(__file__).parents[1] / "tokenizer"))

from test_quantizers import CONFIGS

from codegrid.errors import CodegridError
from codegrid.pipelines.artifacts.loading import load_tokenizer
from codegrid.pipelines.data.sources import EMBEDDED_IMAGES
from codegrid.pipelines.importing import onnx_files
from codegrid.pipelines.importing.onnx_files import OnnxTokenizer, export_onnx
from codegrid.pipelines.system.files import OutputError, sha256
from codegrid.tokenizer import BackboneConfig, VectorQuantizerConfig, VQModel, VQModelConfig
from codegrid.tokenizer.exporting import export_decode
from codegrid.tokenizer.images import to_model
from codegrid.tokenizer.quantizers import QUANTIZERS, QuantizerConfig, make_quantizer
from codegrid.tokenizer.quantizers.vector import VectorQuantizer

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra export")
pytest.importorskip("onnxscript", reason="needs the extra export")

# One of each kind; and others that hold one, of which those with convolutions take longest.
SIMPLEST = {config.type: config for config in reversed(CONFIGS)}
HOLDING = [config for config in CONFIGS if hasattr(config, "inner") and config is not SIMPLEST[config.type]]
HOLDING.append(SIMPLEST.pop("hierarchical"))
BACKBONE = BackboneConfig(
    resolution=16,
    ch=8,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(),
    mid_attention=False,
    mid_res_blocks=1,
    z_channels=8,
    norm_groups=4,
)


class Quantizes(nn.Module):
    """Several quantizers in one program: a conversion takes seconds, whatever it converts."""

    def __init__(self, configs: list[QuantizerConfig]) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList(make_quantizer(config) for config in configs)

    def forward(self, features: Tensor) -> list[Tensor]:
        """The codes of each, then the features of each one's codes."""
        codes = [quantizer.encode(features) for quantizer in self.quantizers]
        pairs = zip(self.quantizers, codes, strict=True)
        return [*codes, *(quantizer.codes_to_features(each) for quantizer, each in pairs)]


def session(program, path: Path, inputs: list[str]):
    onnx_files._save(program, path, inputs, [])
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "configs", [[*SIMPLEST.values()], pytest.param(HOLDING, marks=pytest.mark.slow)], ids=["simple", "more"]
)
@torch.no_grad()
def test_every_quantizer_computes_the_same(tmp_path, configs):
    assert {*SIMPLEST, *(config.type for config in HOLDING)} == set(QUANTIZERS)
    both = Quantizes(configs).eval()
    sizes = {0: Dim("batch"), 2: 2 * Dim("rows"), 3: 2 * Dim("columns")}
    program = torch.export.export(both, (torch.zeros(2, 4, 6, 10),), dynamic_shapes={"features": sizes})
    written = session(program, tmp_path / "quantizers.onnx", ["features"])
    for shape in ((1, 4, 2, 2), (3, 4, 8, 6)):
        features = torch.randn(shape)
        found, wanted = written.run(None, {"features": features.numpy()}), both(features)
        for number, config in enumerate(configs):
            assert np.array_equal(found[number], wanted[number].numpy()), config
            back, theirs = wanted[number + len(configs)].numpy(), found[number + len(configs)]
            np.testing.assert_allclose(theirs, back, atol=1e-5, err_msg=str(config))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The files of the tokenizer that comes with the package, a quickstart's."""
    return export_onnx("fashion-mnist", str(tmp_path_factory.mktemp("onnx") / "runs" / "onnx"))


def pictures(number: int, side: int) -> Tensor:
    """The embedded Fashion-MNIST images in the middle of a black square: [number, 1, side, side] in [-1, 1]."""
    table = pq.read_table(EMBEDDED_IMAGES).slice(0, number)["image"].to_pylist()
    pixels = np.stack([np.asarray(Image.open(BytesIO(each["bytes"]))) for each in table])
    return F.pad(to_model(pixels[..., None]), [(side - pixels.shape[1]) // 2] * 4, value=-1.0)


def gaps(model: VQModel, images: Tensor) -> Tensor:
    """How much nearer the nearest code is than the second, of each position: [B, h, w]."""
    quantizer = model.quantize
    assert isinstance(quantizer, VectorQuantizer)
    with torch.no_grad():
        features = quantizer._place(model.quant_conv(model.encoder(images)))
        rows = features.permute(0, 2, 3, 1)
        nearest = torch.cdist(rows.flatten(0, 2), quantizer._codebook()).topk(2, largest=False).values
    return (nearest[:, 1] - nearest[:, 0]).view(rows.shape[:3])


@pytest.mark.parametrize(("side", "at_once"), [(28, 500), (32, 500), (28, 4), (32, 4)])
def test_codes_differ_only_between_equally_near_ones(exported, side, at_once):
    model, images = load_tokenizer("fashion-mnist"), pictures(500, side)
    written = OnnxTokenizer(exported)
    codes = np.concatenate([written.encode(part.numpy()) for part in images.split(at_once)])
    ours = model.encode(images).numpy()
    differ = codes != ours
    print(f"{differ.sum()} of {differ.size} codes differ")
    assert differ.mean() < 1e-3
    assert (gaps(model, images).numpy()[differ] < 1e-4).all()
    pixels = np.concatenate([written.decode(part) for part in np.split(ours, len(ours) // at_once)])
    with torch.no_grad():
        np.testing.assert_allclose(pixels, model.decode(torch.from_numpy(ours)).numpy(), atol=1e-4)


def test_the_json_says_what_the_files_are(exported):
    about, model = json.loads((exported / "onnx.json").read_text()), load_tokenizer("fashion-mnist")
    assert about["fingerprint"] == model.fingerprint()
    assert (about["factor"], about["pixel_range"], about["codebook_size"]) == (4, [-1.0, 1.0], 768)
    for half, name in (("encoder", "encoder.onnx"), ("decoder", "decoder.onnx")):
        assert about[half]["sha256"] == sha256(exported / name)
        run = onnxruntime.InferenceSession(exported / name, providers=["CPUExecutionProvider"])
        assert [each.name for each in run.get_inputs()] == [each["name"] for each in about[half]["inputs"]]
        assert [each.name for each in run.get_outputs()] == [each["name"] for each in about[half]["outputs"]]
    assert sorted(path.name for path in exported.parent.iterdir()) == ["onnx"]  # nothing is left over


def test_the_snippet_of_the_page_runs(exported, monkeypatch):
    monkeypatch.chdir(exported.parents[1])
    names = {"pictures": np.zeros((2, 28, 28, 1), np.uint8)}
    for snippet in snippets(read(ROOT / "docs" / "onnx.md")):
        exec(compile(snippet, "docs/onnx.md", "exec"), names)
    assert names["codes"].shape == (2, 7, 7)
    assert names["decoded"].shape == (2, 28, 28, 1)


def test_classes_are_an_input_of_the_decoder(tmp_path):
    quantizer = VectorQuantizerConfig(codebook_size=32, code_dim=4)
    model = VQModel(VQModelConfig(backbone=BACKBONE, quantizer=quantizer, num_classes=3)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))  # a new model's decoder is the same for all classes
    decoder = session(export_decode(model), tmp_path / "decoder.onnx", ["codes", "labels"])
    codes, labels = torch.randint(32, (3, 4, 2)), torch.tensor([2, 0, 1])
    with torch.no_grad():
        wanted, other = model.decode(codes, labels).numpy(), model.decode(codes, labels * 0).numpy()
    found = decoder.run(None, {"codes": codes.numpy(), "labels": labels.numpy()})[0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.abs(wanted - other).max() > 1e-2


def copied(exported):
    """In place of the conversion, which takes seconds."""
    return lambda model, folder: [
        shutil.copy(exported / name, folder / name) for name in ("encoder.onnx", "decoder.onnx")
    ]


def test_files_that_compute_something_else_are_refused(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "_write", copied(exported))
    decode, encode = OnnxTokenizer.decode, OnnxTokenizer.encode
    out = str(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(OnnxTokenizer, "decode", lambda *inputs: decode(*inputs) + np.float32("nan"))
        with pytest.raises(CodegridError, match="0 of 94 codes differ, and pixels by up to nan"):
            export_onnx("fashion-mnist", out)
    with monkeypatch.context() as patch:
        patch.setattr(OnnxTokenizer, "encode", lambda *inputs: encode(*inputs) ^ 1)
        with pytest.raises(CodegridError, match="94 of 94 codes differ"):
            export_onnx("fashion-mnist", out)
    assert not list(tmp_path.iterdir())


def test_only_an_export_of_before_is_replaced(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "_write", copied(exported))
    for _ in range(2):
        export_onnx("fashion-mnist", str(tmp_path / "onnx"))
    assert (tmp_path / "onnx" / "encoder.onnx").read_bytes() == (exported / "encoder.onnx").read_bytes()
    (tmp_path / "onnx" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is no export of before"):
        export_onnx("fashion-mnist", str(tmp_path / "onnx"))
    assert (tmp_path / "onnx" / "notes.txt").read_text() == "mine"
    with pytest.raises(OutputError, match="is a file"):
        export_onnx("fashion-mnist", str(tmp_path / "onnx" / "notes.txt"))


class Reads(VectorQuantizer):
    def encode(self, features: Tensor) -> Tensor:
        return super().encode(features) * int(features.max() > 1e9)


def test_a_quantizer_that_has_no_such_form_is_refused_by_name(tmp_path, monkeypatch):
    quantizer = VectorQuantizerConfig(codebook_size=32, code_dim=4)
    model = VQModel(VQModelConfig(backbone=BACKBONE, quantizer=quantizer)).eval()
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(VectorQuantizerConfig, "build", lambda config: Reads(config))
    with pytest.raises(CodegridError, match="with a quantizer of type 'vq', has no form in ONNX: ") as error:
        export_onnx(str(tmp_path / "model"), str(tmp_path / "out"))
    assert "int" in str(error.value.__cause__)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    find = onnx_files.importlib.util.find_spec
    monkeypatch.setattr(
        onnx_files.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(
        CodegridError, match=r"onnxscript is not installed. Install them: pip install .codegrid\[export\]"
    ):
        export_onnx("fashion-mnist", str(tmp_path / "out"))
