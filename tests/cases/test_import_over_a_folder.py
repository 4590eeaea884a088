"""`import-checkpoint` and `export-diffusers` into folders that hold something: nothing of anybody's is written over.

Row "saving over a folder" is tests/cases/test_saving_over.py.
"""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from tiny_runs import tokenizer_run, write_pictures

from codegrid.pipelines.importing.checkpoints import export_diffusers, import_checkpoint
from codegrid.pipelines.system.files import OutputError
from codegrid.pipelines.training.tokenizer.presets import with_start
from codegrid.pipelines.training.tokenizer.train import train_tokenizer
from codegrid.tokenizer import BackboneConfig, Preprocessing, VectorQuantizerConfig, VQModel, VQModelConfig

SAVED = Path(__file__).parents[1] / "saved_by_be0a219"


def checkpoint(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    shape = {"resolution": 16, "ch": 32, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (), "z_channels": 4}
    quantizer = VectorQuantizerConfig(codebook_size=16, code_dim=4, l2_normalize=False)
    model = VQModel(
        VQModelConfig(backbone=BackboneConfig(**shape), quantizer=quantizer, preprocessing=Preprocessing(image_size=16))
    )
    weights = {key: value for key, value in model.state_dict().items() if key != "quantize.usage"}
    torch.save({"state_dict": weights}, path)
    return path


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("foreign") / "last.ckpt", 1)


@pytest.fixture(scope="module")
def run(foreign, tmp_path_factory) -> Path:
    """A run that started from an import: its config.json names the very file."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "model.yaml").write_text(json.dumps({"ddconfig": {"resolution": 16}}))  # otherwise it sees 256 pixels
    start = import_checkpoint("taming", str(foreign), str(folder / "start"), config=str(folder / "model.yaml"))
    config = tokenizer_run(folder / "run", write_pictures(folder / "pictures"), max_steps=1)
    return train_tokenizer(with_start(config, str(start)))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def thesis(folder: Path) -> None:
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")


def other_import(folder: Path) -> None:
    import_checkpoint("taming", str(checkpoint(folder.parent / "other.ckpt", 2)), str(folder))


def copy_of(name: str):
    def make(folder: Path) -> None:
        shutil.copytree(SAVED / name, folder)

    return make


HOLDS = {
    "notes": (thesis, r"thesis\.tex"),
    "an import of another file": (other_import, "a model"),
    "a prior": (copy_of("prior"), "a prior|the training run of a prior"),
    "a pipeline": (copy_of("pipeline"), "a pipeline"),
    "codes": (copy_of("codes"), "a code data set"),
}
DRAWN = random.Random(6).choice(list(HOLDS))


@pytest.mark.parametrize("case", [*HOLDS, "a training run", f"drawn: {DRAWN} beside other files"])
def test_what_is_there_stays(foreign, run, tmp_path, case):
    folder = tmp_path / "out"
    if case == "a training run":
        shutil.copytree(run, folder)
        words = "the training run of a tokenizer"
    else:
        make, words = HOLDS[case.removeprefix("drawn: ").removesuffix(" beside other files")]
        make(folder)
        if case.startswith("drawn"):
            (folder / "a note.txt").write_text("mine")
    before = files_of(folder)
    for name, refused in {
        "import": lambda: import_checkpoint("taming", str(foreign), str(folder)),
        "export": lambda: export_diffusers(str(run), str(folder)),
    }.items():
        with pytest.raises(OutputError, match=words) as error:
            refused()
        assert error.value.remedy == "Choose another --output-dir.", (case, name)
        assert files_of(folder) == before, (case, name)


def test_the_same_import_and_the_same_export_may_be_made_again(foreign, run, tmp_path):
    folder = import_checkpoint("taming", str(foreign), str(tmp_path / "ours"))
    first = VQModel.from_pretrained(folder).fingerprint()
    (folder / "notes.txt").write_text("mine")
    import_checkpoint("taming", str(foreign), str(folder))
    assert VQModel.from_pretrained(folder).fingerprint() == first
    assert (folder / "notes.txt").read_text() == "mine"
    for _ in range(2):
        export_diffusers(str(run), str(tmp_path / "theirs"))
    with pytest.raises(OutputError, match="is a file"):
        import_checkpoint("taming", str(foreign), str(folder / "notes.txt"))
    with pytest.raises(OutputError, match="holds no VQModel of diffusers, but a model"):
        export_diffusers(str(run), str(folder))
