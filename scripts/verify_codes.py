"""Check a code data set against its manifest and, by sample, against the tokenizer that made it."""

from __future__ import annotations

from codegrid.pipelines.codes.verify import VerificationConfig, verify_codes
from codegrid.pipelines.commands import run_config

if __name__ == "__main__":
    run_config(VerificationConfig, verify_codes, __doc__)
