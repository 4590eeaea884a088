"""Codes as compressed images: probabilities of codes, an entropy coder, and a file format (docs/file-format.md)."""
