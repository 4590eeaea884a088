"""Row "foreign files": weights are found wherever the families' tools leave them, and what was chosen is said.

The families themselves: tests/tokenizer/test_importers.py, tests/prior/test_importers.py.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from codegrid.errors import CodegridError
from codegrid.pipelines.importing.checkpoints import import_checkpoint
from codegrid.pipelines.importing.parity import random_weights
from codegrid.tokenizer import BackboneConfig, Preprocessing, VectorQuantizerConfig, VQModel, VQModelConfig
from codegrid.tokenizer.importers import ForeignCheckpointError, read_weights
from codegrid.tokenizer.importers.diffusers import to_diffusers

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def original() -> VQModel:
    """With taming's network, whose names are this project's."""
    torch.manual_seed(1)
    backbone = BackboneConfig(
        resolution=16, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(8,), z_channels=8
    )
    quantizer = VectorQuantizerConfig(codebook_size=32, code_dim=4, l2_normalize=False)
    return VQModel(
        VQModelConfig(backbone=backbone, quantizer=quantizer, preprocessing=Preprocessing(image_size=16))
    ).eval()


@pytest.fixture(scope="module")
def taming(original) -> dict[str, Tensor]:
    return {key: value for key, value in original.state_dict().items() if key != "quantize.usage"}


@pytest.fixture(scope="module")
def theirs(original) -> tuple[dict, dict[str, Tensor]]:
    """The same as diffusers' VQModel: config.json and weights."""
    return to_diffusers(original.config, original.state_dict())


def golden(family: str, stage: str) -> dict[str, Tensor]:
    with safe_open(TESTS / stage / "golden" / f"{family}.safetensors", framework="pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
    return random_weights({key: tuple(shape) for key, shape in shapes.items()})


def halves(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}


def write(
    folder: Path,
    weights: dict,
    config: dict,
    stem: str,
    kind: str,
    variant: str = "",
    shards: int = 1,
    late: bool = False,
) -> None:
    """Weights as diffusers' and transformers' `save_pretrained` name them, of older and newer versions."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save = save_file if kind == "safetensors" else torch.save
    dot = f".{variant}" if variant else ""
    if shards == 1:
        save(weights, folder / f"{stem}{dot}.{kind}")
        return
    keys, weight_map = sorted(weights), {}
    for number in range(shards):
        part = f"-{number + 1:05}-of-{shards:05}"
        name = f"{stem}{part}{dot}.{kind}" if late else f"{stem}{dot}{part}.{kind}"
        save({key: weights[key] for key in keys[number::shards]}, folder / name)
        weight_map |= dict.fromkeys(keys[number::shards], name)
    index = f"{stem}.{kind}.index{dot}.json" if late else f"{stem}{dot}.{kind}.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def drawn(seed: int) -> dict:
    draw = random.Random(seed)
    return {
        "stem": draw.choice(["diffusion_pytorch_model", "model", "pytorch_model", "vq"]),
        "kind": draw.choice(["safetensors", "bin"]),
        "variant": draw.choice(["", "fp16", "bf16"]),
        "shards": draw.choice([1, 2, 3]),
        "late": draw.random() < 0.5,
        "part": draw.choice(["", "vqvae", "vqmodel", "vq_model", "movq"]),
        "index": draw.random() < 0.5,
    }


LAYOUTS = {
    "half precision alone, in a pipeline": {"variant": "fp16", "part": "vqvae", "index": True},
    "shards of a variant, as older versions name them": {"variant": "fp16", "shards": 3},
    "shards of a variant, as newer versions name them": {"variant": "fp16", "shards": 2, "late": True},
    "pickles in shards, in a pipeline without an index": {"kind": "bin", "shards": 2, "part": "vqmodel"},
    "pytorch_model.bin": {"stem": "pytorch_model", "kind": "bin"},
    **{f"drawn from {seed}": drawn(seed) for seed in (4, 19, 33)},
}


@pytest.mark.parametrize("case", LAYOUTS)
def test_weights_are_found_in_every_layout(theirs, tmp_path, capsys, case):
    config, weights = theirs
    layout = {"stem": "diffusion_pytorch_model", "kind": "safetensors", "variant": "", "shards": 1, "late": False}
    layout |= {"part": "", "index": False, **LAYOUTS[case]}
    part, has_index = layout.pop("part"), layout.pop("index")
    if layout["variant"]:
        weights = halves(weights)
    root = tmp_path / "theirs"
    write(root / part, weights, config, **layout)
    (root / "README.md").write_text("# theirs")
    torch.save({"lr": 1}, root / part / "optimizer.bin")
    if part and has_index:
        named = {"_class_name": "AmusedPipeline", part: ["diffusers", "VQModel"], "scheduler": ["diffusers", "X"]}
        (root / "model_index.json").write_text(json.dumps(named))
    folder = import_checkpoint("diffusers", str(root), str(tmp_path / "ours"))
    said = capsys.readouterr().out
    wanted = VQModel.from_foreign("diffusers", weights, config)
    found = VQModel.from_pretrained(folder)
    assert found.fingerprint() == wanted.fingerprint(), (case, layout)
    assert found.dtype == torch.float32
    assert found.config.provenance["file"].startswith(f"{part}/" if part else layout["stem"]), (case, layout)
    assert (f"The tokenizer is in {part}/." in said) == bool(part), (case, said)
    assert (f"Only {layout['variant']} weights are there" in said) == bool(layout["variant"]), (case, said)
    assert VQModel.from_foreign("diffusers", root).fingerprint() == found.fingerprint()
    again = import_checkpoint("diffusers", str(root), str(folder))  # the same import may be made again
    assert VQModel.from_pretrained(again).fingerprint() == found.fingerprint()


def test_full_precision_is_taken_before_a_variant_and_safetensors_before_pickles(theirs, tmp_path):
    config, weights = theirs
    for variant, kind in (("fp16", "safetensors"), ("", "bin"), ("non_ema", "safetensors")):
        write(tmp_path, halves(weights), config, "diffusion_pytorch_model", kind, variant)
    write(tmp_path, weights, config, "diffusion_pytorch_model", "safetensors")
    assert all(value.dtype == torch.float32 for value in read_weights(tmp_path).values())
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    (tmp_path / "diffusion_pytorch_model.bin").rename(tmp_path / "other.bin")
    assert all(value.dtype == torch.float16 for value in read_weights(tmp_path).values())


def per_part(word: str) -> Callable[[str], str]:
    """Each part was wrapped by itself."""
    return lambda key: key.replace(".", f".{word}.", 1)


WRAPPERS: dict[str, tuple[Callable[[str], str], str]] = {
    "DDP of a compiled model": (lambda key: f"module._orig_mod.{key}", "module., _orig_mod."),
    "each part compiled": (per_part("_orig_mod"), "_orig_mod."),
    "each part under DDP, within Lightning's module": (
        lambda key: f"vqgan.{per_part('module')(key)}",
        "module., vqgan.",
    ),
    "FSDP": (lambda key: f"_fsdp_wrapped_module.{per_part('_fsdp_wrapped_module')(key)}", "_fsdp_wrapped_module."),
    "a name twice": (lambda key: f"model.model.{key}", "model."),
}
DRAW = random.Random(12)
CHAIN = [DRAW.choice(["module", "_orig_mod", "net", "generator"]) for _ in range(3)]
WRAPPERS["drawn: " + ".".join(CHAIN)] = (lambda key: ".".join([*CHAIN, key]), f"{CHAIN[0]}.")


@pytest.mark.parametrize("case", WRAPPERS)
def test_what_wraps_the_names_is_taken_off_and_said(taming, tmp_path, capsys, case):
    wrap, words = WRAPPERS[case]
    content = {wrap(key): value for key, value in taming.items()} | {"n_averaged": torch.tensor(9)}
    torch.save({"epoch": 3, "model": content}, tmp_path / "last.pt")
    folder = import_checkpoint("taming", str(tmp_path / "last.pt"), str(tmp_path / "ours"))
    assert "Taken off the weights' names: " in (said := capsys.readouterr().out)
    assert all(word in said for word in words.split(", ")), (case, said)
    wanted = VQModel.from_foreign("taming", taming).fingerprint()
    assert VQModel.from_pretrained(folder).fingerprint() == wanted, case
    assert VQModel.from_foreign("taming", content).fingerprint() == wanted, case


def test_a_prior_in_wrappers_and_in_half(tmp_path, capsys):
    weights = golden("llamagen-gpt", "prior")
    wrapped = {f"module._orig_mod.{key}": value for key, value in halves(weights).items()}
    torch.save({"model": wrapped, "ema": {key: value + 1 for key, value in weights.items()}}, tmp_path / "gpt.pt")
    folders = [
        import_checkpoint(
            "llamagen-gpt", str(tmp_path / "gpt.pt"), str(tmp_path / kind), grid_size=4, heads=2, kind=kind
        )
        for kind in ("family", "trained", "averaged")
    ]
    said = capsys.readouterr().out
    assert said.count("Taken are the trained weights (under model); those under ema are left.") == 2
    assert said.count("Taken are the averaged weights (under ema); those under model are left.") == 1
    files = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert files[0] == files[1] != files[2]


def with_averages(weights: dict[str, Tensor], seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trained weights with Lightning's averages beside them, whose names have no dots; and the averages."""
    draw = torch.Generator().manual_seed(seed)
    averages = {key: value + torch.rand((), generator=draw) / 100 for key, value in weights.items()}
    flat = {f"model_ema.{key.replace('.', '')}": value for key, value in averages.items()}
    return weights | flat | {"model_ema.decay": torch.tensor(0.999), "model_ema.num_updates": torch.tensor(7)}, averages


@pytest.mark.parametrize("seed", [3])
@pytest.mark.parametrize(
    ("family", "settings", "kind", "taken"),
    [
        ("taming", None, "family", "trained"),  # latent-diffusion encodes outside of its ema_scope
        ("taming", None, "averaged", "ema"),
        ("ibq", None, "family", "ema"),
        ("ibq", {"model": {"init_args": {"use_ema": False}}}, "family", "trained"),
        ("ibq", None, "trained", "trained"),
    ],
)
def test_averages_beside_trained_weights_are_the_familys_own_choice(
    taming, tmp_path, capsys, family, settings, kind, taken, seed
):
    content, averages = with_averages(taming, seed)
    torch.save(
        {"state_dict": {f"first_stage_model.{key}": value for key, value in content.items()}}, tmp_path / "a.ckpt"
    )
    config = None
    if settings:
        (tmp_path / "a.yaml").write_text(json.dumps(settings))
        config = str(tmp_path / "a.yaml")
    folder = import_checkpoint(family, str(tmp_path / "a.ckpt"), str(tmp_path / "ours"), config=config, kind=kind)
    words = "the averaged weights" if taken == "ema" else "the trained weights (not the averaged ones beside them)"
    assert f"of which {words} make a tokenizer" in capsys.readouterr().out
    found = VQModel.from_pretrained(folder)
    assert found.config.provenance["weights"] == taken
    wanted = VQModel.from_foreign(family, averages if taken == "ema" else taming)
    assert found.fingerprint() == wanted.fingerprint(), (family, kind, seed)


@pytest.mark.parametrize(("kind", "taken"), [("family", "ema"), ("trained", "trained")])
def test_llamagens_tokenizer_is_its_averages(tmp_path, kind, taken):
    trained = golden("llamagen", "tokenizer")
    averages = {key: value * 1.5 for key, value in trained.items()}
    torch.save({"model": trained, "ema": averages, "optimizer": {"state": {}}}, tmp_path / "vq.pt")
    found = VQModel.from_foreign("llamagen", tmp_path / "vq.pt", kind=kind)
    assert found.config.provenance["weights"] == taken
    wanted = VQModel.from_foreign("llamagen", averages if taken == "ema" else trained)
    assert found.fingerprint() == wanted.fingerprint()


class Payload:
    def __reduce__(self):
        return print, ("this must never be printed",)


def leads_out(root: Path, config: dict, weights: dict) -> None:
    write(root / "x", weights, config, "model", "safetensors")
    write(root / "vqvae", weights, config, "model", "safetensors", shards=2)
    index = root / "vqvae" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00002-of-00002", "../x/model"))


def other_class(root: Path, config: dict, weights: dict) -> None:
    write(root / "vqvae", weights, config, "model", "safetensors")
    (root / "model_index.json").write_text(json.dumps({"vqvae": ["os", "system"]}))


def several(root: Path, config: dict, weights: dict) -> None:
    for step in (1000, 2000):
        root.mkdir(exist_ok=True)
        torch.save(weights, root / f"step{step}.ckpt")


def two_parts(root: Path, config: dict, weights: dict) -> None:
    for part in ("vqvae", "movq"):
        write(root / part, weights, config, "model", "safetensors")


def runs_code(root: Path, config: dict, weights: dict) -> None:
    write(root / "vqvae", {**weights, "x": Payload()}, config, "pytorch_model", "bin")


def missing(root: Path, config: dict, weights: dict) -> None:
    write(root, weights, config, "model", "safetensors", shards=3)
    (root / "model-00002-of-00003.safetensors").unlink()


def twice(root: Path, config: dict, weights: dict) -> None:
    root.mkdir()
    torch.save(weights | {f"module.{key}": value for key, value in weights.items()}, root / "a.pt")


def no_codes(root: Path, config: dict, weights: dict) -> None:
    write(root / "vae", weights, config, "model", "safetensors")


REFUSED = {
    leads_out: r"names the shard '\.\./x/model\.safetensors'",
    other_class: "says that vqvae is a system, which is not read",
    several: r"several checkpoints: step1000\.ckpt, step2000\.ckpt",
    two_parts: "several folders that could be the tokenizer's: vqvae, movq",
    runs_code: "reading such a pickle can run code",
    missing: r"names model-00002-of-00003\.safetensors, not in its folder: the download is not whole",
    twice: "twice, with and without module",
    no_codes: "holds no weights: .*vqvae",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_is_ambiguous_or_dangerous_is_refused_and_nothing_is_written(theirs, tmp_path, capsys, make):
    make(tmp_path / "theirs", *theirs)
    with pytest.raises(ForeignCheckpointError, match=REFUSED[make]) as error:
        import_checkpoint("diffusers", str(tmp_path / "theirs"), str(tmp_path / "ours"))
    assert error.value.remedy
    assert not (tmp_path / "ours").exists()
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("diffusers", {"heads": 4}, "heads is given, and diffusers is a tokenizer's family"),
        ("diffusers", {"class_names": "names.txt", "tokenizer": "x"}, "tokenizer, class_names are given"),
        ("llamagen-gpt", {"pixel_range": (0.0, 1.0)}, "pixel_range is given, and llamagen-gpt is a prior's"),
        ("llamagen-gpt", {"class_names": "nowhere.txt"}, r"There is no file nowhere\.txt"),
        ("diffusers", {"verify_images": "nowhere"}, "nowhere"),
        ("llamagen-gpt", {"tokenizer": "./nowhere"}, "nowhere"),
    ],
)
def test_options_are_looked_at_before_the_work(theirs, tmp_path, family, options, words):
    write(tmp_path / "theirs", theirs[1], theirs[0], "model", "safetensors")
    with pytest.raises(CodegridError, match=words):
        import_checkpoint(family, str(tmp_path / "theirs"), str(tmp_path / "ours"), **options)
    assert not (tmp_path / "ours").exists()
