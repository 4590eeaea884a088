"""The whole job on the embedded Fashion-MNIST images."""

from __future__ import annotations

import sys

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main(["quickstart", *sys.argv[1:]])
