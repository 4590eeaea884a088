"""The wheel holds the folders under one name and nothing else, and stands beside packages of the folders' names."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "pipelines/codegrid": "codegrid",
    **{name: f"codegrid/{name}" for name in ("pipelines", "prior", "tokenizer")},
}
SHIPPED = [
    *("LICENSE", "README.md", "expected.npz", "model_index.json"),
    *(f"tokenizer/{name}" for name in ("README.md", "config.json", "model.safetensors")),
    *("prior/README.md", "prior/config.json", "prior/generation_config.json"),
    *("prior/model.safetensors", "prior/sequence_config.json"),
]
DATA = {
    "codegrid/py.typed",
    "codegrid/pipelines/data/embedded/FASHION_MNIST_LICENSE.txt",
    "codegrid/pipelines/data/embedded/fashion_mnist_6k.parquet",
    *(f"codegrid/pipelines/artifacts/shipped/fashion-mnist/{name}" for name in SHIPPED),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing of an earlier build gets in and nothing is left in the repository."""
    source = tmp_path_factory.mktemp("source")
    for folder in ("pipelines", "prior", "tokenizer"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
    done = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (built,) = (source / "dist").glob("codegrid-*.whl")
    return built


def test_the_wheel_holds_the_folders_and_nothing_else(wheel):
    expected = set(DATA)
    for folder, installed in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            inside = path.relative_to(ROOT / folder).as_posix()
            if not (folder == "pipelines" and inside.startswith("codegrid/")):  # a folder of its own in FOLDERS
                expected.add(f"{installed}/{inside}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (top_level,) = (name for name in names if name.endswith(".dist-info/top_level.txt"))
        assert archive.read(top_level).decode().split() == ["codegrid"]
        licences = {name.split("/licenses/")[1] for name in names if "/licenses/" in name}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert licences == {"LICENSE", "pipelines/data/embedded/FASHION_MNIST_LICENSE.txt"}


def test_the_wheel_stands_beside_the_indexs_tokenizer_and_prior(wheel, tmp_path):
    """Both are other people's packages; with our folders' names at the top, one would have overwritten the other."""
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    shared = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install", "--no-deps", "-q"]
    index = ["--retries", "0", "--timeout", "15", "--only-binary", ":all:", "tokenizer==3.7.0", "prior==1.0.3"]
    done = subprocess.run([*pip, *index], capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1:]}")
    # From another folder: the checkout's own egg-info would pass for codegrid being installed already.
    ours = [*pip, "--no-index", "--ignore-installed", wheel]
    subprocess.run(ours, cwd=tmp_path, capture_output=True, timeout=600, check=True)
    (site / "shared.pth").write_text("".join(f"{path}\n" for path in shared))
    program = "import sys, types\n"  # the index's `prior` needs PyGithub, which is not looked for here
    program += "sys.modules['github'] = types.SimpleNamespace(Github=None, GithubException=Exception)\n"
    program += "import tokenizer, prior, codegrid.tokenizer, codegrid.prior, codegrid.pipelines\n"
    program += "for module in (tokenizer, prior, codegrid.tokenizer, codegrid.prior): print(module.__file__)"
    done = subprocess.run([python, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    inside = [Path(line).relative_to(site).parts[:2] for line in done.stdout.split()]
    assert [parts[0] for parts in inside] == ["tokenizer", "prior", "codegrid", "codegrid"]
    assert [parts[1] for parts in inside[2:]] == ["tokenizer", "prior"]
