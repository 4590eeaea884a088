"""Train a prior on a code data set (stage two). To resume, run the same command again."""

from __future__ import annotations

from codegrid.pipelines.commands import run_preset
from codegrid.pipelines.training.prior.presets import PRIOR_PRESETS
from codegrid.pipelines.training.prior.train import train_prior

if __name__ == "__main__":
    run_preset(PRIOR_PRESETS, train_prior, __doc__)
