"""Stage one's training."""
