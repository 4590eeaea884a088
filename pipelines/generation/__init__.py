"""Sampling codes and decoding them: the pipeline, and what makes one."""
