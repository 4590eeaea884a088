"""The machine and the disk. Nothing here knows about images or models."""
