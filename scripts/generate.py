"""Sample images from a pipeline into a folder."""

from __future__ import annotations

from codegrid.pipelines.commands import run_function
from codegrid.pipelines.generation.to_folder import generate_images

if __name__ == "__main__":
    run_function(generate_images)
