"""Folders of finished things: loading, writing and describing them, and what of them goes to the Hub."""
