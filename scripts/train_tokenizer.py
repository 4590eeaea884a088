"""Train a tokenizer (stage one). To resume, run the same command again."""

from __future__ import annotations

from command_line import run_preset

from pipelines.training.presets import TOKENIZER_PRESETS
from pipelines.training.train_tokenizer import train_tokenizer

if __name__ == "__main__":
    run_preset(TOKENIZER_PRESETS, train_tokenizer, __doc__)
