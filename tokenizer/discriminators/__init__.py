"""Discriminators, one a file."""

from tokenizer.discriminators.patchgan import PatchGAN, PatchGANConfig

__all__ = ["PatchGAN", "PatchGANConfig"]
