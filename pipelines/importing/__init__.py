"""Checkpoints of other projects: importing, exporting, and the comparison with their own code."""
