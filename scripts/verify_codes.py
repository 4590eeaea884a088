"""Check a code data set against its manifest and, by sample, against the tokenizer that made it."""

from __future__ import annotations

from command_line import run_config

from pipelines.verification import VerificationConfig, verify_codes

if __name__ == "__main__":
    run_config(VerificationConfig, verify_codes, __doc__)
