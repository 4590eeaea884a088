"""Where the stages, the devices and the disk meet."""

from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline, ImagePipelineOutput, SamplingConfig

__all__ = ["ImageGenerationPipeline", "ImagePipelineOutput", "SamplingConfig"]
