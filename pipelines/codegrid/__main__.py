"""`python -m codegrid NAME`, for launchers of several processes: `torchrun -m codegrid train-tokenizer ...`."""

from __future__ import annotations

from codegrid.pipelines.commands import main

if __name__ == "__main__":
    main()
