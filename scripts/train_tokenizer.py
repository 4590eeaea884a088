"""Train a tokenizer (stage one). To resume, run the same command again."""

from __future__ import annotations

from codegrid.pipelines.commands import run_preset
from codegrid.pipelines.training.tokenizer.presets import TOKENIZER_PRESETS
from codegrid.pipelines.training.tokenizer.train import train_tokenizer

if __name__ == "__main__":
    run_preset(TOKENIZER_PRESETS, train_tokenizer, __doc__)
