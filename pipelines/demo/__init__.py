"""The interactive demo page."""
