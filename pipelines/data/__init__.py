"""From files to batches of pixels: sources, records, workers, batches."""
