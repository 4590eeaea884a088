"""Pictures <-> compressed files: the codec of a pipeline, its commands, and its comparison with other codecs."""
