"""Stage two's training."""
