"""Quality of reconstructions and samples."""
