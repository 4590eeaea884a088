"""Folders of finished models and data sets: loading, writing, describing them, and choosing files for the Hub."""
