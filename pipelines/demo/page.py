"""The demo's page, made with Gradio (the extra `demo`). Its actions are in actions.py."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from codegrid.pipelines.artifacts.loading import LoadingError
from codegrid.pipelines.demo import actions as demo
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.tokenizer.images import BadImage, check_colours

_ALL = "all classes"
_PUT, _PICK = "put the code there", "pick up its code"


def run_demo(pipeline: str, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve a page for the browser: sample images by class, view an image's codes, change them, and decode again.

    Args:
        pipeline: folder or Hub name of a pipeline.
        host: address to listen on; 0.0.0.0 allows other machines.
        port: port of the page.

    Raises:
        LoadingError: the pipeline cannot be loaded, or Gradio is not installed.
    """
    gradio = _gradio()
    pipe = ImageGenerationPipeline.from_pretrained(pipeline).to(make_accelerator().device)
    check_colours(pipe.tokenizer.config.backbone_config.in_channels, "The demo")
    page = make_page(pipe, title=f"Codegrid: {pipeline}")
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # no web fonts
    print(f"The page is at http://{host}:{port} (Ctrl-C ends it).", flush=True)
    page.launch(
        server_name=host, server_port=port, quiet=True, ssr_mode=False, theme=gradio.themes.Default(**fonts), css=_CSS
    )


_CSS = "#samples img, #image img, #reconstruction img, #difference img { image-rendering: pixelated; }"


def make_page(pipe: ImageGenerationPipeline, title: str = "Codegrid") -> Any:
    """The page as a `gradio.Blocks`."""
    gradio = _gradio()
    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {title}")
        with gradio.Tab("Generate"):
            _generation(gradio, pipe)
        with gradio.Tab("Codes"):
            _Codes(gradio, pipe)
    return page


def _generation(gradio: Any, pipe: ImageGenerationPipeline) -> None:
    names = [_ALL, *(pipe.class_names or ())]
    conditional, guided, sampling = pipe.class_names is not None, pipe.sequence.can_be_guided, pipe.sampling
    with gradio.Row():
        with gradio.Column(scale=1, min_width=260):
            chosen = gradio.Dropdown(names, value=_ALL, label="Class", visible=conditional, elem_id="class")
            number = gradio.Slider(1, 64, 16, step=1, label="Images")
            guidance = gradio.Slider(1, 8, sampling.guidance_scale, step=0.1, label="Guidance", visible=guided)
            temperature = gradio.Slider(0, 2, sampling.temperature, step=0.05, label="Temperature")
            seed = gradio.Number(0, precision=0, label="Seed", elem_id="seed")
            button = gradio.Button("Generate", variant="primary", elem_id="generate")
        with gradio.Column(scale=3):
            gallery = gradio.Gallery(show_label=False, columns=6, height="auto", elem_id="samples", format="png")

    def generate(name: str, *numbers: Any) -> list[Any]:
        count, scale, heat, start = numbers
        try:
            return demo.generate(pipe, None if name == _ALL else name, int(count), scale, heat, int(start or 0))
        except ValueError as error:
            raise gradio.Error(str(error)) from error

    button.click(generate, [chosen, number, guidance, temperature, seed], gallery)


class _Codes:
    """The tab that shows and changes an image's codes. A session's state is (image, its codes, changed codes)."""

    def __init__(self, gradio: Any, pipe: ImageGenerationPipeline) -> None:
        self.gradio, self.pipe, self.model = gradio, pipe, pipe.tokenizer
        quantizer = self.model.config.quantizer_config
        self.size, depth = quantizer.codebook_size, quantizer.depth
        state = gradio.State(None)
        gradio.Markdown("Upload an image. A click on the map changes the code there, and the image is decoded again.")
        with gradio.Row():
            upload = gradio.Image(type="filepath", sources=["upload"], label="Your image", elem_id="upload", height=190)
            with gradio.Column() as settings:
                code = gradio.Number(0, precision=0, minimum=0, maximum=self.size - 1, label="Code", elem_id="code")
                action = gradio.Radio([_PUT, _PICK], value=_PUT, label="A click on the map will", elem_id="action")
                level = gradio.Slider(0, max(1, depth - 1), 0, step=1, label="Level", visible=depth > 1)
                back = gradio.Button("Back to the image's own codes", elem_id="back")
        with gradio.Row():
            image = self.picture("As the tokenizer sees it", "image")
            grid = self.picture("Its codes", "map")
            result = self.picture("Decoded", "reconstruction")
            apart = self.picture(f"Difference x {demo.DIFFERENCE_GAIN}", "difference")
        names, conditional = list(pipe.class_names or ()), bool(self.model.config.num_classes)
        with settings:
            class_name = gradio.Dropdown(names, label="Its class, for the decoder", visible=conditional)
        view = [level, class_name]
        shown = [state, image, grid, result, apart]
        upload.upload(self.read, [upload, *view], shown)
        # Gradio recognises `SelectData` by the annotation, which must be the class itself.
        self.click.__func__.__annotations__["event"] = gradio.SelectData
        grid.select(self.click, [state, code, action, *view], [code, *shown])
        back.click(self.restore, [state, *view], shown)
        for choice in view:
            choice.change(self.again, [state, *view], shown)

    def picture(self, title: str, name: str) -> Any:
        """A picture below its title: Gradio's own label would cover a corner."""
        with self.gradio.Column(min_width=200):
            self.gradio.Markdown(f"**{title}**")
            return self.gradio.Image(show_label=False, interactive=False, format="png", buttons=[], elem_id=name)

    def read(self, file: str, *view: Any) -> list[Any]:
        try:
            image = demo.read_image(self.model, file)
        except BadImage as error:
            raise self.gradio.Error(str(error)) from error
        codes = demo.encode(self.model, image)
        return self.show(image, codes, codes, *view)

    def restore(self, kept: Any, *view: Any) -> list[Any]:
        return self.again(kept and (kept[0], kept[1], kept[1]), *view)

    def again(self, kept: Any, *view: Any) -> list[Any]:
        return self.show(*kept, *view) if kept else [None] * 5

    def click(self, kept: Any, code: int, action: str, level: int, class_name: str | None, event: Any) -> list[Any]:
        if kept is None:
            raise self.gradio.Error("Upload an image first.")
        image, own, codes = kept
        cell = demo.cell_at(*event.index, codes)
        if action == _PICK:
            code = demo.code_at(codes, cell, level)
        else:
            try:
                codes = demo.with_code(codes, cell, int(code or 0), self.size, level)
            except ValueError as error:
                raise self.gradio.Error(str(error)) from error
        return [code, *self.show(image, own, codes, level, class_name)]

    def show(self, image: Tensor, own: Tensor, codes: Tensor, level: int, class_name: str | None) -> list[Any]:
        decoded = demo.decode(self.pipe, codes, class_name)
        return [
            (image, own, codes),
            demo.picture(image),
            demo.codes_map(codes, level, changed=own),
            demo.picture(decoded),
            demo.difference(image, decoded),
        ]


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise LoadingError("The demo needs Gradio: pip install 'codegrid[demo]'.") from error
    return gradio
