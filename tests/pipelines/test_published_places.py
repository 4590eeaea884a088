"""What a push sends: no path of this machine, evaluations that the card cites, and how to install the project."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path

import pytest

from codegrid.pipelines.artifacts.places import without_places
from codegrid.pipelines.publishing.push import push_folder
from codegrid.tokenizer.hub.push import PublishingError, check_login

PUSH = "from codegrid.pipelines.publishing.push import push_folder; result = push_folder(folder, repo)"


@pytest.mark.parametrize("kind", ["tokenizer", "prior", "pipeline", "codes"])
def test_no_path_of_this_machine_is_sent(
    hub, client, tokenizer_folder, prior_folder, pipeline_folder, codes, tmp_path, kind
):
    folders = {"tokenizer": tokenizer_folder, "prior": prior_folder, "pipeline": pipeline_folder, "codes": codes}
    folder = Path(shutil.copytree(folders[kind], tmp_path / "mine"))
    result = {"command": f"{tmp_path}/bin/codegrid evaluate --data.source '{tmp_path}/my pictures'", "results": []}
    if kind != "codes":
        (folder / "evaluation").mkdir()
        (folder / "evaluation" / "generation.json").write_text(json.dumps(result))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    client(PUSH, folder=str(folder), repo=f"me/{kind}")
    files = hub.files(f"me/{kind}", "dataset" if kind == "codes" else "model")
    wanted = {str(Path.home()), str(tmp_path), str(tmp_path.parent), "/tmp/"}
    leaks = [(name, place) for name, data in files.items() for place in wanted if place.encode() in data]
    assert leaks == []
    assert b"pip install" in files["README.md"]
    if kind != "codes":
        assert json.loads(files["evaluation/generation.json"])["command"].startswith("codegrid evaluate")
    else:
        assert b"- 0: gradient\n- 1: noise\n- 2: stripes\n" in files["README.md"]
        assert not [name for name in files if ".shards" in name]
    assert {path: path.read_bytes() for path in before} == before


def test_without_places():
    text = 'Trained on `/home/me/my pics`. From /mnt/a/b.png, see https://x.org/a/b and `runs/a`. "/scratch/x y"'
    assert without_places("README.md", text) == (
        'Trained on `my pics`. From b.png, see https://x.org/a/b and `runs/a`. "x y"'
    )
    value = {"source": "/home/me/a b: 18 images (split train)", "win": "C:\\Users\\me\\pics", "rel": "../pics", "n": 1}
    assert json.loads(without_places("manifest.json", json.dumps(value))) == {
        "source": "a b: 18 images (split train)",
        "win": "pics",
        "rel": "../pics",
        "n": 1,
    }
    assert without_places("a.json", '{"a":  1}') == '{"a":  1}'


def test_a_push_without_login_says_so_before_anything_is_loaded(tmp_path):
    with pytest.raises(PublishingError, match="no login for the Hub"):
        push_folder(tmp_path / "nothing", "me/thing", token=False)
    check_login("hf_given")


def test_a_hub_that_is_not_there_is_said_within_seconds(client, tokenizer_folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = (
        "from huggingface_hub import HfApi; import codegrid.tokenizer.hub.push as push\n"
        f"push.HfApi = lambda token: HfApi('http://127.0.0.1:{port}', token=token)\n"
        "try:\n    push.push_files({'a.json': b'{}'}, 'me/thing', commit_message='x')\n"
        "finally:\n    push.HfApi = HfApi"
    )
    began = time.monotonic()
    with pytest.raises(Exception, match="PublishingError: The Hub did not take me/thing"):
        client(code)
    assert time.monotonic() - began < 15
