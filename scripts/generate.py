"""Sample images from a pipeline into a folder."""

from __future__ import annotations

from command_line import run_function

from pipelines.generate_images import generate_images

if __name__ == "__main__":
    run_function(generate_images)
