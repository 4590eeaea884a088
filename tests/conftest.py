"""What every test may use. The environment is set first: the libraries read it when they are imported."""

import os
import sys
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix="codegrid-tests-")  # removed when the process ends
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = _CACHE.name
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if "PYTEST_XDIST_WORKER" in os.environ:  # the other core is another process's; commands that tests start inherit it
    os.environ.setdefault("OMP_NUM_THREADS", "1")

sys.path.insert(0, os.path.dirname(__file__))  # documents.py

import random  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, whichever tests ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """Where products are tiny: on a busy machine a second thread is only waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_vqmodel():
    """A VQModel in evaluation mode that encodes [B, 3, 16, 16] to codes [B, 4, 4] out of 32, in milliseconds."""
    from codegrid.tokenizer import BackboneConfig, VectorQuantizerConfig, VQModel, VQModelConfig

    backbone = BackboneConfig(
        resolution=16,
        ch=16,
        ch_mult=(1, 2),
        num_res_blocks=1,
        attn_resolutions=(),
        z_channels=16,
        patch_size=2,
        norm_groups=8,
    )
    quantizer = VectorQuantizerConfig(codebook_size=32, code_dim=4)
    return VQModel(VQModelConfig(backbone=backbone, quantizer=quantizer)).eval()


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder `disc/`, `ring/`, `square/` of six 24x24 colour PNGs each: shapes of varied place, size and colour."""
    folder = tmp_path / "images"
    rng = random.Random(0)
    for name in ("disc", "ring", "square"):
        (folder / name).mkdir(parents=True)
        for index in range(6):
            picture = Image.new("RGB", (24, 24), (16, 16, 32))
            x, y, size = rng.randint(1, 8), rng.randint(1, 8), rng.randint(8, 14)
            colour = (rng.randint(96, 255), rng.randint(96, 255), rng.randint(96, 255))
            draw, box = ImageDraw.Draw(picture), (x, y, x + size, y + size)
            if name == "square":
                draw.rectangle(box, fill=colour)
            else:
                draw.ellipse(box, fill=colour if name == "disc" else None, outline=colour, width=2)
            picture.save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def fashion_parquet() -> Path:
    """The 6,000 Fashion-MNIST images that ship with the package: columns `image` (28x28 grey PNG) and `label`."""
    return ROOT / "pipelines" / "data" / "embedded" / "fashion_mnist_6k.parquet"


@pytest.fixture
def on_mps():
    """A tensor -> the same as on Apple's GPU, which has no float64; so is what is computed of it, until `cpu()`."""
    import torch

    class OnMPS(torch.Tensor):
        def double(self):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype.")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    return lambda tensor: tensor.as_subclass(OnMPS)
