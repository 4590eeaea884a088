"""Talking to the Hugging Face Hub: pushes, cards, and weight files looked at before they are loaded."""
