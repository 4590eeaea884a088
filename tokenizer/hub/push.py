"""A push to the Hub: all files in one commit or none, with retries for a busy server."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError

from codegrid.errors import CodegridError

T = TypeVar("T")
WEIGHT_FILES = ("model*.safetensors", "model.safetensors.index.json")

# Seconds before each further try. huggingface_hub retries uploads by itself, but not commits.
_WAITS = (1.0, 4.0, 15.0, 30.0)
_LONGEST_WAIT = 120.0
_NO_ANSWER = 0
# 409 and 412 mean that somebody else committed meanwhile. The others mean that the server is busy or down.
_WORTH_ANOTHER_TRY = {_NO_ANSWER, 408, 409, 412, 429, 500, 502, 503, 504}
_HTTP_ERROR = HfHubHTTPError.__mro__[1]  # the HTTPError of httpx or httpx2, whichever huggingface_hub uses

_logger = logging.getLogger(__name__)


class PublishingError(CodegridError):
    """The Hub did not accept something; the message says why and what to do."""


def in_subfolder(files: Mapping[str, T], subfolder: str | None) -> dict[str, T]:
    """The same files (or patterns) with their paths in `subfolder` of the repository.

    Raises:
        PublishingError: `subfolder` leaves the repository.
    """
    inside = PurePosixPath(subfolder or ".")
    if inside.is_absolute() or ".." in inside.parts or "\\" in str(inside):
        raise PublishingError(
            f"subfolder is {subfolder!r}, which is not in the repository.", "Give a path in it, such as 'tokenizer'."
        )
    return {str(inside / path): value for path, value in files.items()}


def check_login(token: str | bool | None = None) -> None:
    """Refuse a push without a login, before anything is computed or sent.

    Raises:
        PublishingError: there is no token.
    """
    if not (token if isinstance(token, str) else token is not False and get_token()):
        raise PublishingError(
            "There is no login for the Hub.",
            "Log in with `hf auth login`, or set HF_TOKEN to a token that may write there.",
        )


def push_files(
    files: Mapping[str, Path | bytes],
    repo_id: str,
    *,
    commit_message: str,
    repo_type: str = "model",
    replaces: tuple[str, ...] = (),
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | bool | None = None,
) -> str:
    """Put files into a repository in one commit. A missing repository or branch is made.

    `HfApi.upload_folder` cuts a large folder into several commits; this function never shows half of a folder. After an
    interruption, repeat the same call: large files that have arrived are not sent again.

    Args:
        files: contents by their path in the repository.
        replaces: patterns of paths that belong to the pushed object. Matching files that `files` lacks are deleted in
            the same commit: for example, the seventh shard of an older version with more shards.
        private: whether a new repository is private; None takes the account's default.
        revision: branch; None is the main branch.
        create_pr: open a pull request instead of changing the branch.
        token: None takes HF_TOKEN or the token that `hf auth login` stored. It is never printed.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        PublishingError: the Hub refuses, or could not be reached in repeated tries.
    """
    api = HfApi(token=token)
    for attempt, wait in enumerate((*_WAITS, None), start=1):
        try:
            return _push_once(
                api, files, repo_id, repo_type, replaces, private, revision, create_pr, commit_message=commit_message
            )
        except Exception as error:  # huggingface_hub passes on those of httpx, json and its threads
            status = _status(error)
            # A commit may succeed although its answer is lost. A second try then adds no commit, but with `create_pr`
            # it would open a second pull request.
            retried = status in _WORTH_ANOTHER_TRY and not (create_pr and status == _NO_ANSWER)
            # A Hub to which no connection comes about is a wrong address or no network, which seconds do not mend.
            if wait is None or not retried or (attempt > 1 and _is_out_of_reach(error)):
                raise PublishingError(*_sentences(error, status, repo_id, token)) from None
            wait = _wait(error, wait)
            _logger.warning("The Hub %s; try %d in %.0f s.", _what_happened(status), attempt + 1, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _push_once(
    api: HfApi,
    files: Mapping[str, Path | bytes],
    repo_id: str,
    repo_type: str,
    replaces: tuple[str, ...],
    private: bool | None,
    revision: str | None,
    create_pr: bool,
    commit_message: str,
) -> str:
    repo_id = api.create_repo(repo_id, private=private, repo_type=repo_type, exist_ok=True).repo_id
    if revision is not None and not create_pr and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, repo_type=repo_type, exist_ok=True)
    head = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
    present = api.list_repo_files(repo_id, repo_type=repo_type, revision=head)
    gone = [path for path in present if path not in files and any(fnmatchcase(path, each) for each in replaces)]
    added = [CommitOperationAdd(path, content) for path, content in files.items()]
    commit = api.create_commit(
        repo_id,
        [*added, *map(CommitOperationDelete, gone)],
        commit_message=commit_message,
        repo_type=repo_type,
        revision=revision,
        create_pr=create_pr,
        parent_commit=head,  # the list of deletions is based on this state
    )
    return str(commit.pr_url if create_pr else commit.commit_url)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status that ended a try; 0 if no answer came; None if the Hub did not cause the error."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        if response is not None:
            return response.status_code
        # If a proxy sends an HTML page and huggingface_hub expects JSON, that is no answer either.
        if isinstance(cause, (_HTTP_ERROR, json.JSONDecodeError)):
            return _NO_ANSWER
    return None


def _is_out_of_reach(error: BaseException) -> bool:
    return any(type(cause).__name__ in ("ConnectError", "ConnectTimeout") for cause in _chain(error))


def _wait(error: BaseException, wait: float) -> float:
    """Seconds to wait: at least the Hub's Retry-After, up to two minutes."""
    for cause in _chain(error):
        asked = getattr(getattr(cause, "response", None), "headers", {}).get("Retry-After", "")
        if asked.isdigit():
            return min(max(wait, float(asked)), _LONGEST_WAIT)
    return wait


def _what_happened(status: int | None) -> str:
    return "gave no answer" if status == _NO_ANSWER else f"answered {status}"


def _sentences(error: BaseException, status: int | None, repo_id: str, token: str | bool | None) -> list[str]:
    """What is wrong and what to do, without a token in them."""
    remedy = "A push is one commit: all of it is there or nothing. Run it again; what has arrived is not sent again."
    if status in (401, 403, 404):
        remedy = "Log in with `hf auth login`, or set HF_TOKEN to a token that may write there."
    elif status is None or (400 <= status < 500 and status not in _WORTH_ANOTHER_TRY):
        remedy = "Nothing was committed."
    cause = list(_chain(error))[-1] if status == _NO_ANSWER else error
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(". ")
    sentences = [f"The Hub did not take {repo_id}: {reason}.", remedy]
    for secret in (token, get_token()):
        if isinstance(secret, str) and secret:
            sentences = [sentence.replace(secret, "(token)") for sentence in sentences]
    return sentences
