"""Hugging Face Hub: pushes, model cards, and checks of weight files before they are loaded."""
