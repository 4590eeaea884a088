"""Pushing to a stand-in for the Hub and loading from it, with faults on the way: all of a push is there, or nothing."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts import upload
from codegrid.pipelines.artifacts.loading import LoadingError, load_prior_and_sequence, load_tokenizer
from codegrid.pipelines.publishing.push import push_folder
from codegrid.prior.codes import CodesError, open_codes
from codegrid.tokenizer import VQModel
from codegrid.tokenizer.hub.push import PublishingError

TOKEN = "hf_" + "secret" * 5  # as in hub_client.py
PUSH = "from codegrid.pipelines.publishing.push import push_folder; result = push_folder(folder, repo, **options)"
KINDS = ("tokenizer", "prior", "pipeline", "codes")
REQUESTS = {
    "create": ("POST", "/api/repos/create"),
    "info": ("GET", r"/api/datasets/me/thing$"),
    "tree": ("GET", "/tree/"),
    "validate": ("POST", "/api/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "batch": ("POST", "/lfs/objects/batch"),
    "upload": ("PUT", "/lfs/"),
    "verify": ("POST", "/lfs-verify"),
    "commit": ("POST", "/commit/"),
}


@pytest.fixture(scope="module")
def folders(tokenizer_folder, prior_folder, pipeline_folder, codes) -> dict[str, Path]:
    return dict(zip(KINDS, (tokenizer_folder, prior_folder, pipeline_folder, codes), strict=True))


@pytest.fixture
def push(client):
    """`push(folder, repo, **options)` in the client's process; gives the address."""
    return lambda folder, repo="me/thing", **options: client(PUSH, folder=str(folder), repo=repo, options=options)


def fails(run) -> str:
    """The error of the client, which must be a PublishingError of one line."""
    with pytest.raises(Exception, match="PublishingError: ") as raised:
        run()
    message = str(raised.value)
    assert "\n" not in message
    assert TOKEN not in message
    return message


def snippet(card: str) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


def repo_type(kind: str) -> str:
    return "dataset" if kind == "codes" else "model"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_pushed_is_loaded_by_the_snippet_of_its_card(hub, client, push, folders, kind):
    address = push(folders[kind], f"me/{kind}", private=True, license="mit", commit_message="For all to see")
    repository = hub.repository(f"me/{kind}", repo_type(kind))
    assert address.endswith(repository.branches["main"])
    assert repository.private
    assert [commit.message for commit in repository.commits.values()] == ["initial commit", "For all to see"]
    files = hub.files(f"me/{kind}", repo_type(kind))
    assert not [path for path in files if path.startswith(("checkpoints", "tensorboard", "metrics"))]
    assert b"license: mit" in files["README.md"]
    code = snippet(files["README.md"].decode())
    assert f'"me/{kind}"' in code
    if kind == "tokenizer":
        result = client(f"{code}\nresult = [model.fingerprint(), list(codes.shape), list(reconstruction.shape)]")
        assert result == [load_tokenizer(folders[kind]).fingerprint(), [1, 4, 4], [1, 3, 16, 16]]
    elif kind == "prior":
        codes_there = client(f"{code}\nresult = codes.tolist()")
        names = {"__name__": "snippet"}
        exec(code.replace("me/prior", str(folders[kind])), names)
        assert codes_there == names["codes"].tolist()
    elif kind == "pipeline":
        pixels = client(f"import numpy as np\n{code}\nresult = [np.asarray(image).tolist() for image in images]")
        pipe = ImageGenerationPipeline.from_pretrained(folders[kind])
        expected = pipe("gradient", num_images_per_label=4, seed=0, output_type="np", progress=False).images
        assert pixels == expected.tolist()
        assert files["samples.png"].startswith(b"\x89PNG")
        assert b"![samples](samples.png)" in files["README.md"]
        assert not (folders[kind] / "samples.png").exists()  # the folder itself stays as it was
    else:
        rows = client(f"{code}\nresult = [codes['codes'][:], codes['label'][:], codes.features['label'].names]")
        local = open_codes(folders[kind])
        assert rows[0] == local.codes(range(len(local))).tolist()
        assert rows[1:] == [local.labels.tolist(), ["gradient", "noise", "stripes"]]


def test_codes_are_streamed_and_trained_on_from_the_hub(hub, client, push, folders):
    push(folders["codes"])
    local = open_codes(folders["codes"])
    rows = client(
        "from datasets import load_dataset\n"
        "stream = load_dataset('me/thing', split='train', streaming=True)\n"
        "result = [row['codes'] for row in stream]"
    )
    assert rows == local.codes(range(len(local))).tolist()
    assert client("from codegrid.prior.codes import open_codes; result = open_codes('me/thing').labels.tolist()") == (
        local.labels.tolist()
    )


def test_a_branch_and_a_subfolder(hub, client, push, folders):
    for kind in KINDS:
        push(folders[kind], f"me/{kind}", revision="v2", subfolder="deep/er")
        assert list(hub.files(f"me/{kind}", repo_type(kind))) == [".gitattributes"]  # the main branch is as it was
        files = hub.files(f"me/{kind}", repo_type(kind), "v2")
        assert all(path.startswith("deep/er/") for path in files if path != ".gitattributes")
    # A second push to the same place, which is there already.
    push(folders["tokenizer"], "me/tokenizer", revision="v2", subfolder="other")
    place = "revision='v2', subfolder='deep/er'"
    found = client(f"""
from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.loading import load_prior_and_sequence, load_tokenizer
from codegrid.prior import load_prior
from codegrid.prior.codes import open_codes
from codegrid.tokenizer import VQModel
pipe = ImageGenerationPipeline.from_pretrained("me/pipeline", {place})
sums = [float(sum(p.detach().double().sum() for p in model.parameters())) for model in (
    load_prior_and_sequence("me/prior", {place})[0], load_prior("me/prior", {place})[0], pipe.prior)]
result = [load_tokenizer("me/tokenizer", {place}).fingerprint(), VQModel.from_pretrained("me/tokenizer",
    {place}).fingerprint(), pipe.tokenizer.fingerprint(), sums, len(open_codes("me/codes", {place}))]
""")
    fingerprint = load_tokenizer(folders["tokenizer"]).fingerprint()
    model = load_prior_and_sequence(folders["prior"])[0].requires_grad_(False)
    total = float(sum(weight.double().sum() for weight in model.parameters()))
    assert found == [fingerprint, fingerprint, fingerprint, [total] * 3, 36]
    # The snippet of a data set in a subfolder names its files. (`load_dataset` takes a revision of its own.)
    push(folders["codes"], "me/codes", subfolder="deep/er")
    code = snippet(hub.files("me/codes", "dataset")["deep/er/README.md"].decode())
    assert client(f"{code}\nresult = len(codes)") == 36
    with pytest.raises(Exception, match=r"LoadingError: .*has no folder 'nowhere'"):
        client(
            "from codegrid.pipelines.artifacts.loading import load_tokenizer\n"
            "load_tokenizer('me/tokenizer', subfolder='nowhere')"
        )


def test_a_pull_request_leaves_the_branch_alone(hub, client, push, folders):
    address = push(folders["tokenizer"], create_pr=True)
    assert address.endswith("/me/thing/discussions/1")
    assert list(hub.files("me/thing")) == [".gitattributes"]
    model = "VQModel.from_pretrained('me/thing', revision='refs/pr/1')"
    assert (
        client(f"from codegrid.tokenizer import VQModel\nresult = {model}.fingerprint()")
        == load_tokenizer(folders["tokenizer"]).fingerprint()
    )
    # An answer that is lost may hide a request: a second one is not opened.
    hub.fail("POST", "/commit/", "lost")
    fails(lambda: push(folders["prior"], "me/other", create_pr=True))
    assert sum(name.startswith("refs/pr/") for name in hub.repository("me/other").branches) == 1


def test_models_push_themselves(hub, client, folders):
    """`push_to_hub` of the objects, as the ecosystem has it."""
    client(
        """
from codegrid.tokenizer import VQModel
from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.artifacts.loading import load_prior_and_sequence
from codegrid.pipelines.publishing.push import push_prior
VQModel.from_pretrained(folders["tokenizer"]).push_to_hub("me/tokenizer", private=True, subfolder="tok")
ImageGenerationPipeline.from_pretrained(folders["pipeline"]).push_to_hub("me/pipeline", base_tokenizer="me/tokenizer")
push_prior(*load_prior_and_sequence(folders["prior"]), "me/prior", base_tokenizer="me/tokenizer")
""",
        folders={kind: str(folder) for kind, folder in folders.items()},
    )
    assert hub.repository("me/tokenizer").private
    card = hub.files("me/tokenizer")["tok/README.md"].decode()
    assert "library_name: codegrid" in card
    assert "transformers" not in card
    for name in ("me/pipeline", "me/prior"):
        card = hub.files(name)["README.md"].decode()
        assert "base_model: me/tokenizer" in card
        assert "[me/tokenizer](https://huggingface.co/me/tokenizer)" in card
    fingerprint = client(
        "from codegrid.tokenizer import VQModel\n"
        "result = VQModel.from_pretrained('me/tokenizer', subfolder='tok').fingerprint()"
    )
    assert fingerprint == load_tokenizer(folders["tokenizer"]).fingerprint()


def test_a_push_replaces_its_older_self_and_nothing_else(hub, push, folders):
    push(folders["codes"])
    repository = hub.repository("me/thing", "dataset")
    extra = {"data/codes-00007.parquet": b"of an older, longer one", "data/notes.md": b"by hand", "LICENSE": b"mine"}
    repository.commit("main", "by hand", {**hub.files("me/thing", "dataset"), **extra})
    push(folders["codes"])
    files = hub.files("me/thing", "dataset")
    assert "data/codes-00007.parquet" not in files
    assert {"data/notes.md", "LICENSE", "data/codes-00000.parquet"} <= set(files)
    assert [commit.message for commit in repository.commits.values()][-1] == "Upload codes"
    number = len(repository.commits)
    push(folders["codes"])  # nothing has changed: nothing is committed
    assert len(repository.commits) == number


@pytest.mark.parametrize("request_name", REQUESTS)
@pytest.mark.parametrize("kind", [500, 503, 429, "reset", "half", "lost"])
def test_a_fault_in_the_middle_is_overcome_and_there_is_one_commit(hub, push, folders, request_name, kind):
    hub.fail(*REQUESTS[request_name], kind, times=2)
    push(folders["codes"])
    repository = hub.repository("me/thing", "dataset")
    assert [commit.message for commit in repository.commits.values()] == ["initial commit", "Upload codes"]
    sent = (folders["codes"] / "data" / "codes-00000.parquet").read_bytes()
    assert hub.files("me/thing", "dataset")["data/codes-00000.parquet"] == sent


@pytest.mark.parametrize(
    ("request_name", "kind"),
    [("create", 503), ("validate", 500), ("preupload", 429), ("upload", "reset"), ("upload", 500)]
    + [("commit", kind) for kind in (500, 503, 429, "reset", "half")],
)
def test_a_fault_that_stays_is_one_sentence_and_no_commit(hub, push, folders, request_name, kind):
    push(folders["codes"], subfolder="before")
    repository, before = hub.repository("me/thing", "dataset"), dict(hub.files("me/thing", "dataset"))
    hub.large_files.clear()  # so that there is something to upload
    hub.fail(*REQUESTS[request_name], kind, times=10**6)
    message = fails(lambda: push(folders["codes"]))
    assert "me/thing" in message
    assert "all of it is there or nothing" in message
    assert hub.files("me/thing", "dataset") == before
    assert len(repository.commits) == 2


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "hf auth login"), (403, "HF_TOKEN"), (400, "Nothing was committed")]
)
def test_a_refusal_is_not_asked_again(hub, push, folders, status, remedy):
    push(folders["prior"])
    hub.fail("POST", "/commit/", status, times=10**6)
    assert remedy in fails(lambda: push(folders["tokenizer"]))
    assert hub.count("POST .*/commit/") == 2


def test_an_interrupted_push_goes_on_where_it_stopped(hub, push, folders):
    """The second large file never arrives; the next push sends it alone."""
    weights = folders["pipeline"] / "prior" / "model.safetensors"
    oid = hashlib.sha256(weights.read_bytes()).hexdigest()
    hub.fail("PUT", oid, "half", times=10**6)
    fails(lambda: push(folders["pipeline"]))
    assert list(hub.files("me/thing")) == [".gitattributes"]
    assert hub.large_files  # what had arrived
    arrived, number = set(hub.large_files), len(hub.requests)
    hub.faults.clear()
    push(folders["pipeline"])
    sent = {request.split("/")[-1] for request in hub.requests[number:] if request.startswith("PUT")}
    assert oid in sent
    assert not sent & arrived
    assert "model_index.json" in hub.files("me/thing")


def test_somebody_else_commits_in_between(hub, push, folders):
    """Two pushes at once: the later one sees the other's state before it decides what to replace."""
    push(folders["prior"])
    repository, answer = hub.repository("me/thing"), hub.next_fault

    def commit_first(method: str, path: str):
        if "/commit/" in path and len(repository.commits) == 2:
            repository.commit("main", "meanwhile", {**hub.files("me/thing"), "model-00002-of-2.safetensors": b"old"})
        return answer(method, path)

    hub.next_fault = commit_first
    try:
        push(folders["tokenizer"])
    finally:
        del hub.next_fault
    messages = [commit.message for commit in repository.commits.values()]
    assert messages == ["initial commit", "Upload prior", "meanwhile", "Upload tokenizer"]
    assert "model-00002-of-2.safetensors" not in hub.files("me/thing")


LOAD = "from codegrid.pipelines import ImageGenerationPipeline\nImageGenerationPipeline.from_pretrained(repo)"


@pytest.mark.parametrize("kind", [503, "reset", "half"])
def test_a_fault_while_loading(hub, client, push, folders, kind):
    repo = f"me/loading-{kind}"  # each its own, because the client keeps what it loaded
    push(folders["pipeline"], repo)
    hub.fail("GET", r"/resolve/.*/model\.safetensors", kind, times=10**6)
    with pytest.raises(Exception, match="LoadingError: The pipeline ") as raised:
        client(LOAD, repo=repo)
    assert "\n" not in str(raised.value)
    hub.faults.clear()
    hub.fail("GET", r"/resolve/.*/model\.safetensors", kind)
    with contextlib.suppress(Exception):
        client(LOAD, repo=repo)  # the library tries again by itself, or
    client(LOAD, repo=repo)  # the user does: what a fault left behind is no hindrance


def test_tokens_are_nowhere(hub, client, push, folders):
    for kind in KINDS:
        push(folders[kind], f"me/{kind}", token=TOKEN + "given")
    hub.fail("POST", "/commit/", 403)
    assert TOKEN not in fails(lambda: push(folders["prior"], "me/tokenizer", token=TOKEN + "given"))
    assert {TOKEN + "given"} <= hub.tokens <= {TOKEN, TOKEN + "given"}  # they were used
    assert TOKEN not in client.log()
    for repository in hub.repositories.values():
        for commit in repository.commits.values():
            assert TOKEN.encode() not in b"".join([commit.message.encode(), *commit.files.values()])


def test_the_command(hub, client, folders, tmp_path):
    run = """
import contextlib, io, runpy, sys
sys.argv, printed = ["push_to_hub.py", *arguments], io.StringIO()
sys.path.insert(0, scripts)
try:
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        runpy.run_path(scripts + "/push_to_hub.py", run_name="__main__")
    status = 0
except SystemExit as end:
    status = end.code
result = [status, printed.getvalue()]
"""
    scripts = str(Path(__file__).resolve().parents[2] / "scripts")
    arguments = ["--folder", str(folders["pipeline"]), "--repo-id", "me/thing", "--license", "cc-by-4.0", "--private"]
    status, printed = client(run, scripts=scripts, arguments=arguments)
    assert status == 0, printed
    assert printed.splitlines()[-1].endswith(hub.repository("me/thing").branches["main"])
    assert hub.repository("me/thing").private
    hub.fail("POST", "/commit/", 403, times=10**6)
    for wrong, expected in (
        (["--folder", str(tmp_path), "--repo-id", "me/thing"], "holds no finished tokenizer"),
        (["--folder", str(folders["prior"]), "--repo-id", "me/other"], "hf auth login"),
        (["--folder", str(folders["prior"]), "--repo-id", "a/b/c"], "a/b/c"),
        (["--folder", str(folders["prior"]), "--repo-id", "me/x", "--license", "MIT!"], "license is 'MIT!'"),
        (["--folder", str(folders["prior"]), "--repo-id", "me/x", "--subfolder", "../x"], "subfolder is '../x'"),
    ):
        status, printed = client(run, scripts=scripts, arguments=wrong)
        assert status == 1
        (line,) = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert expected in line
        assert "Traceback" not in printed


class TestRefused:
    """What may not be published is refused before anything is sent."""

    @pytest.fixture(autouse=True)
    def _nothing_is_sent(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")  # without a login a push ends before it looks at the folder
        monkeypatch.setattr(upload, "push_files", lambda *args, **options: pytest.fail("something was sent"))

    @pytest.fixture
    def copy(self, folders, tmp_path):
        return lambda kind: Path(shutil.copytree(folders[kind], tmp_path / kind, symlinks=True))

    def refused(self, folder: Path, message: str, error: type = LoadingError) -> None:
        with pytest.raises(error, match=message) as raised:
            push_folder(folder, "me/thing")
        assert "\n" not in str(raised.value) or error is not LoadingError

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.PT", "optimizer.pkl", "last.ckpt"])
    @pytest.mark.parametrize("place", ["", "tokenizer", "prior"])
    def test_pickles(self, copy, name, place):
        folder = copy("pipeline")
        torch.save({}, folder / place / name)
        self.refused(folder, "may be a pickle")

    def test_a_pickle_under_another_name(self, copy):
        folder = copy("tokenizer")
        torch.save({}, folder / "model.safetensors")
        self.refused(folder, "cannot be loaded")

    def test_ways_out_of_the_folder(self, copy, tmp_path):
        secret = tmp_path / "id_rsa.json"
        secret.write_text('"secret"')
        folder = copy("tokenizer")
        (folder / "evaluation.json").symlink_to(secret)
        self.refused(folder, "leads out of its folder")
        for kind in ("tokenizer", "prior"):
            shutil.rmtree(tmp_path / kind, ignore_errors=True)
            folder = copy(kind)
            shutil.move(folder / "model.safetensors", tmp_path / "elsewhere.safetensors")
            index = {"metadata": {}, "weight_map": {"decoder.conv_out.weight": "../elsewhere.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
            self.refused(folder, "Only .safetensors files in the same folder")
        folder = copy("codes")
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["shards"][0]["file"] = "../../etc/passwd"
        (folder / "manifest.json").write_text(json.dumps(manifest))
        self.refused(folder, "outside of its folder", CodesError)

    def test_unknown_classes(self, copy, folders):
        folder = copy("pipeline")
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "prior": ["os", "system"]}))
        self.refused(folder, "this pipeline loads")
        folder = copy("tokenizer")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
        self.refused(folder, "model_type 'bert'")
        folder = copy("prior")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architectures": ["EvilForCausalLM"]}))
        self.refused(folder, "EvilForCausalLM")

    def test_damage(self, copy, tmp_path):
        folder = copy("pipeline")
        weights = folder / "prior" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-10])
        self.refused(folder, "cannot be loaded")
        folder = copy("codes")
        (shard,) = (folder / "data").glob("*.parquet")
        shard.write_bytes(shard.read_bytes()[:-1] + b"X")
        self.refused(folder, "is not the one that the manifest describes", CodesError)
        folder = copy("tokenizer")
        (folder / "training_config.json").write_text("{")
        self.refused(folder, "training_config.json is damaged")
        (folder / "config.json").unlink()
        self.refused(folder, "holds no finished")
        (tmp_path / "empty").mkdir()
        self.refused(tmp_path / "empty", "holds no finished")

    def test_access_tokens(self, copy):
        folder = copy("tokenizer")
        (folder / "README.md").write_text(f"---\n---\n\nlog in with {TOKEN}\n")
        self.refused(folder, "holds an access token")

    def test_a_place_outside_of_the_repository(self, folders):
        for subfolder in ("../x", "/x", "a\\b"):
            with pytest.raises(PublishingError, match="which is not in the repository"):
                push_folder(folders["prior"], "me/thing", subfolder=subfolder)
            with pytest.raises(PublishingError, match="which is not in the repository"):
                VQModel.from_pretrained(folders["tokenizer"]).push_to_hub("me/thing", subfolder=subfolder)
