"""A process of its own that talks to the stand-in for the Hub (hub_server.py), and runs the code that a test sends.

huggingface_hub reads HF_ENDPOINT when it is imported, so a test's own process cannot be the client; and starting one
for each call would cost the imports each time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TOKEN = "hf_" + "secret" * 5


class ClientError(Exception):
    """What the code raised there: "Kind: message"."""


class HubClient:
    """`client("result = 1 + 1")` gives 2; `log()` is all that the process ever printed, warnings and errors too."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log.txt"
        plain = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = {
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(folder / "home"),
            "HF_TOKEN": TOKEN,
            "HF_DEBUG": "",
            "NO_PROXY": "127.0.0.1",
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**plain, **settings},
                text=True,
            )

    def __call__(self, code: str, **values: Any) -> Any:
        """Run `code` with `values` (plain JSON) as names; gives what it leaves in `result`."""
        self._process.stdin.write(json.dumps({"code": code, "values": values}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The client ended:\n{self.log()}")
        answer = json.loads(line)
        if "error" in answer:
            raise ClientError(answer["error"])
        return answer["result"]

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=30)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the code prints goes to the log
    real_sleep = time.sleep
    time.sleep = lambda seconds: real_sleep(min(seconds, 0.01))  # waits before another try are not what is tested
    for line in sys.stdin:
        task = json.loads(line)
        names = dict(task["values"])
        try:
            exec(task["code"], names)
            answer = json.dumps({"result": names.get("result")})
        except (Exception, SystemExit) as error:
            answer = json.dumps({"error": f"{type(error).__name__}: {error}"})
        sys.stdout.flush()
        answers.write(answer + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
