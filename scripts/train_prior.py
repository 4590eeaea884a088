"""Train a prior on a code data set (stage two). To resume, run the same command again."""

from __future__ import annotations

from command_line import run_preset

from pipelines.training.prior_presets import PRIOR_PRESETS
from pipelines.training.train_prior import train_prior

if __name__ == "__main__":
    run_preset(PRIOR_PRESETS, train_prior, __doc__)
