"""Where the stages, the devices and the disk meet."""

from pipelines.generation import ImageGenerationPipeline, ImagePipelineOutput, SamplingConfig

__all__ = ["ImageGenerationPipeline", "ImagePipelineOutput", "SamplingConfig"]
