"""The page's tab "Edit": a picture under a brush, four results, and on from one of them. See edit_handlers.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from codegrid.pipelines.demo.actions import conditions_of
from codegrid.pipelines.demo.edit_handlers import RESULTS, EditHandlers, can_edit
from codegrid.pipelines.demo.handlers import ALL_CLASSES, class_choices
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline

_BRUSH, _COLOUR = 24, "#d01c8b"  # pixels of the enlarged picture; seen on white and on black


def edit_tab(
    gradio: Any,
    pipe: ImageGenerationPipeline,
    answering: Callable[..., Callable[..., list[Any]]],
    message_place: Callable[..., Any],
) -> None:
    """Fill the tab; of a pipeline whose prior knows raster order only, with one sentence."""
    if not can_edit(pipe):
        gradio.HTML(
            "This pipeline's prior knows raster order only, and cannot fill in a part. Train one that does: "
            "<code>codegrid train-prior ... --order mixed</code>."
        )
        return
    handlers, choices = EditHandlers(pipe), [("no class", ALL_CLASSES), *class_choices(pipe)]
    subject, results, follows = gradio.State(None), gradio.State(None), conditions_of(pipe)
    gradio.HTML(
        "Upload a picture or draw one, paint over what is to be drawn again, and fill it. A click on a result goes on "
        "from it: outside of what you paint, nothing changes."
    )
    with gradio.Row():
        with gradio.Column(scale=1, min_width=260):
            upload = gradio.File(label="Your picture", elem_id="edit_upload", height=120)
            draw = gradio.Button("Draw a picture", elem_id="draw")
            prompt = gradio.Textbox(label="Prompt", visible="text" in follows, lines=1, elem_id="edit_prompt")
            picture = gradio.File(
                label="Picture to follow", visible="picture" in follows, height=120, elem_id="edit_condition"
            )
            label = gradio.Dropdown(
                choices, value=ALL_CLASSES, label="Class", visible=len(choices) > 1, elem_id="edit_class"
            )
            seed = gradio.Number(0, label="Seed", elem_id="edit_seed")
            fill = gradio.Button("Fill what is painted", variant="primary", elem_id="fill")
        with gradio.Column(scale=2, min_width=300):
            message = message_place(gradio, "edit_message")
            edited = gradio.HTML("<b>No picture yet</b>", elem_id="edited")
            brush = gradio.Brush(default_size=_BRUSH, colors=[_COLOUR], color_mode="fixed")
            options = {"sources": (), "transforms": (), "layers": False, "buttons": [], "format": "png"}
            editor = gradio.ImageEditor(
                type="pil", show_label=False, brush=brush, canvas_size=(384, 384), elem_id="editor", **options
            )
        with gradio.Column(scale=2, min_width=300):
            gradio.HTML(f"<b>{RESULTS} results: click on one to go on from it</b>")
            gallery = gradio.Gallery(
                show_label=False,
                columns=2,
                buttons=[],
                height="auto",
                allow_preview=False,
                interactive=False,
                format="png",
                elem_id="results",
            )
    begun = [subject, editor, edited, message]
    upload.upload(answering(gradio, handlers.upload, 3), [upload], begun)
    wanted = [label, seed, prompt, picture]
    draw.click(answering(gradio, handlers.sample, 3), wanted, begun)
    fill.click(answering(gradio, handlers.fill, 2), [subject, editor, *wanted], [results, gallery, message])
    gallery.select(_with_place(gradio, answering(gradio, handlers.keep, 3)), [results], begun)


def _with_place(gradio: Any, called: Callable[[Any, int], Sequence[Any]]) -> Callable[..., Sequence[Any]]:
    """`called` with the number of the picture that was clicked."""

    def on_click(results: Any, event: Any) -> Sequence[Any]:
        return called(results, event.index)

    # Gradio recognises `SelectData` by the annotation, which must be the class itself.
    on_click.__annotations__["event"] = gradio.SelectData
    return on_click
