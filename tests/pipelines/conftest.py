"""A tiny tokenizer, codes and a prior, made once for all tests of the pipelines; and configs for more of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from codegrid.pipelines.codes.tokenize import TokenizationConfig, tokenize_dataset
from codegrid.pipelines.data.records import DataConfig
from codegrid.pipelines.generation.make import make_pipeline
from codegrid.pipelines.training.config import PriorTrainingConfig, TokenizerTrainingConfig
from codegrid.pipelines.training.optim import OptimizerConfig
from codegrid.pipelines.training.prior.train import train_prior
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.prior import PriorConfig
from codegrid.tokenizer import BackboneConfig, Preprocessing, VectorQuantizerConfig
from codegrid.tokenizer.discriminators import PatchGANConfig
from codegrid.tokenizer.losses import ObjectiveConfig

BACKBONE = {
    "resolution": 16,
    "ch": 8,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (),
    "mid_attention": False,
    "z_channels": 8,
    "patch_size": 2,
    "norm_groups": 4,
}
QUANTIZER = {"codebook_size": 32, "code_dim": 4}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `gradient/`, `noise/` and `stripes/` of six 24x20 colour PNGs each."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    y, x = np.mgrid[0:20, 0:24]
    for kind in ("gradient", "noise", "stripes"):
        (folder / kind).mkdir()
        for index in range(6):
            colour, step = random.uniform(0.2, 1, 3), random.uniform(0.3, 1.5)
            shade = {"gradient": (x + y) / 42, "noise": random.random((20, 24)), "stripes": np.sin(step * x) / 2 + 0.5}
            pixels = (255 * shade[kind][..., None] * colour).astype(np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def tokenizer_config(pictures: Path) -> Callable[..., TokenizerTrainingConfig]:
    """A config of a run of stage one of seconds; `backbone`, `quantizer` and `objective` add to the tiny ones."""

    def make(output_dir: Path, **changes: Any) -> TokenizerTrainingConfig:
        objective = {
            "perceptual_weight": 0.0,
            "adversarial_weight": 0.0,
            "discriminator": PatchGANConfig(ndf=8, n_layers=1),
        }
        nested = {
            "backbone": BackboneConfig(**{**BACKBONE, **changes.pop("backbone", {})}),
            "quantizer": VectorQuantizerConfig(**{**QUANTIZER, **changes.pop("quantizer", {})}),
            "objective": ObjectiveConfig(**{**objective, **changes.pop("objective", {})}),
            "preprocessing": Preprocessing(image_size=16),
        }
        common = {
            "data": DataConfig(str(pictures), validation_fraction=0.2),
            "max_steps": 2,
            "batch_size": 4,
            "mixed_precision": "no",
            "device": "cpu",
            "tracking": (),
            "num_pictures": 2,
            "optimizer": OptimizerConfig(learning_rate=1e-3),
            "discriminator_optimizer": OptimizerConfig(learning_rate=1e-3),
        }
        return TokenizerTrainingConfig(output_dir=str(output_dir), **{**nested, **common, **changes})

    return make


@pytest.fixture(scope="session")
def prior_config(codes: Path) -> Callable[..., PriorTrainingConfig]:
    """A config of a run of stage two that takes seconds; `model` adds to the tiny one."""

    def make(output_dir: Path, **changes: Any) -> PriorTrainingConfig:
        model = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        common = {
            "codes": str(codes),
            "max_steps": 2,
            "batch_size": 8,
            "mixed_precision": "no",
            "device": "cpu",
            "tracking": (),
            "validation_fraction": 0.2,
            "optimizer": OptimizerConfig(learning_rate=1e-3),
        }
        model = PriorConfig(**{**model, **changes.pop("model", {})})
        return PriorTrainingConfig(output_dir=str(output_dir), **{**common, "model": model, **changes})

    return make


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of stage one."""
    folder = tmp_path_factory.mktemp("tokenizer") / "run"
    return train_tokenizer(tokenizer_config(folder, max_steps=3, tracking=("tensorboard",), eval_every=2))


@pytest.fixture(scope="session")
def codes(tokenizer_folder: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code data set of all pictures and their mirror images: 36 rows of 4x4 codes of 32, three classes."""
    folder = tmp_path_factory.mktemp("codes") / "codes"
    config = TokenizationConfig(str(tokenizer_folder), DataConfig(str(pictures)), str(folder), flip=True, device="cpu")
    return tokenize_dataset(config)


@pytest.fixture(scope="session")
def prior_folder(prior_config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of stage two on `codes`."""
    return train_prior(prior_config(tmp_path_factory.mktemp("prior") / "run"))


@pytest.fixture(scope="session")
def read_metrics() -> Callable[[Path], list[dict[str, Any]]]:
    """The lines of a run's metrics.jsonl."""
    return lambda run: [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`at_step(module, name, n, do)`: call `do` before the n-th call (from 0) of the function `name` of `module`."""

    def plant(module: Any, name: str, number: int, do: Callable[[], Any]) -> None:
        original, calls = getattr(module, name), iter(range(10**9))

        def counted(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == number:
                do()
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    return plant


def _helper(name: str) -> ModuleType:
    """A module beside conftest.py: tests/ is on no path, where it would hide the package `tokenizer`."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).resolve().parents[1] / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def hub_and_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    with _helper("hub_server").hub_server() as server:
        client = _helper("hub_client").HubClient(server.url, tmp_path_factory.mktemp("hub"))
        yield server, client
        client.close()


@pytest.fixture
def hub(hub_and_client: tuple[Any, Any]) -> Any:
    """A stand-in for the Hub (tests/hub_server.py) that holds nothing."""
    hub_and_client[0].clear()
    return hub_and_client[0]


@pytest.fixture
def client(hub_and_client: tuple[Any, Any]) -> Any:
    """A process whose Hub is `hub` (tests/hub_client.py)."""
    return hub_and_client[1]


@pytest.fixture(scope="session")
def pipeline_folder(tokenizer_folder: Path, prior_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pipeline with the classes gradient, noise and stripes."""
    return make_pipeline(str(tokenizer_folder), str(prior_folder), str(tmp_path_factory.mktemp("pipeline") / "pipe"))
