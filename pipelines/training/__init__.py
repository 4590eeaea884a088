"""Training runs of both stages."""
