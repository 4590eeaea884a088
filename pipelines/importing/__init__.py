"""Checkpoints of other projects: import, export, and comparison with the projects' own code."""
