"""The machine and the disk: nothing here knows an image or a model."""
