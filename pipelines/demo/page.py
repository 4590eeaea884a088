"""The demo's page, made with Gradio (the extra `demo`). What its controls do is in handlers.py."""

from __future__ import annotations

import errno
import html
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

from codegrid.errors import CodegridError, require
from codegrid.names import printable
from codegrid.pipelines.artifacts.loading import LoadingError
from codegrid.pipelines.demo import actions
from codegrid.pipelines.demo.actions import DIFFERENCE_GAIN
from codegrid.pipelines.demo.edit_page import edit_tab
from codegrid.pipelines.demo.handlers import ALL_CLASSES, NUMBER_SHOWN, PICK, PUT, Handlers, answer, class_choices
from codegrid.pipelines.generation.pipeline import ImageGenerationPipeline
from codegrid.pipelines.system.devices import make_accelerator
from codegrid.prior.conditions import parts_of
from codegrid.tokenizer.images import check_colours


def run_demo(pipeline: str, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve a page for the browser: sample images by class, view an image's codes, change them, and decode again.

    Args:
        pipeline: folder or Hub name of a pipeline; "fashion-mnist" comes with the package.
        host: address to listen on; 0.0.0.0 allows other machines.
        port: port of the page.

    Raises:
        LoadingError: the pipeline cannot be loaded, or Gradio is not installed.
        CodegridError: another program has the port, or this machine has no such address.
    """
    gradio = _gradio()
    check_port(host, port)
    pipe = ImageGenerationPipeline.from_pretrained(pipeline).to(make_accelerator().device)
    check_colours(pipe.tokenizer.config.backbone_config.in_channels, "The demo")
    page = make_page(pipe, title=f"Codegrid: {pipeline}")
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}  # no web fonts
    look = {"theme": gradio.themes.Default(**fonts), "css": _CSS}
    check_port(host, port)  # loading takes a while
    try:
        page.launch(server_name=host, server_port=port, quiet=True, ssr_mode=False, prevent_thread_lock=True, **look)
    except OSError as error:  # Gradio asks for the port of 127.0.0.1 too, whatever the address
        raise _taken(host, port) from error
    print(f"The page is at http://{f'[{host}]' if ':' in host else host}:{port} (Ctrl-C ends it).", flush=True)
    page.block_thread()


def check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on.

    Raises:
        CodegridError: another program has the port, it needs other rights, or this machine has no such address.
    """
    require(1 <= port <= 65_535, f"--port is {port}.", "Give one from 1024 to 65535.")
    try:
        for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as found:
                if os.name == "posix":  # as servers do: a port that was closed a moment ago is free
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                found.bind(place)
                found.listen(1)
    except (OSError, UnicodeError) as error:
        if isinstance(error, UnicodeError | socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            remedy = "Give an address of this machine, such as --host 127.0.0.1."
            raise CodegridError(f"--host {printable(host)} is no address of this machine.", remedy) from error
        if isinstance(error, PermissionError):
            raise CodegridError(f"Port {port} is not for this user.", "Give another: --port 7860.") from error
        raise _taken(host, port) from error


def _taken(host: str, port: int) -> CodegridError:
    other = port + 1 if port < 65_535 else 7860
    return CodegridError(f"Port {port} of {host} is taken by another program.", f"Give another: --port {other}.")


_CSS = """
#samples img, #results img, #image img, #reconstruction img, #difference img { image-rendering: pixelated; }
#image img, #map img, #reconstruction img, #difference img { max-width: 100%; }
#samples .grid-container { grid-template-columns: repeat(auto-fill, minmax(min(100px, 30%), 1fr)) !important; }
#message textarea, #notice textarea, #edit_message textarea { color: var(--error-text-color, #b91c1c); }
"""


def make_page(pipe: ImageGenerationPipeline, title: str = "Codegrid") -> Any:
    """The page as a `gradio.Blocks`."""
    gradio = _gradio()
    title = printable(title)
    with gradio.Blocks(title=title, analytics_enabled=False) as page:
        gradio.HTML(f"<h1>{html.escape(title)}</h1>")
        with gradio.Tab("Generate"):
            _generation(gradio, pipe)
        with gradio.Tab("Edit"):
            edit_tab(gradio, pipe, answering, message_place)
        with gradio.Tab("Codes"):
            _codes(gradio, pipe)
    return page


def _generation(gradio: Any, pipe: ImageGenerationPipeline) -> None:
    follows, classes, sampling = actions.conditions_of(pipe), class_choices(pipe), pipe.sampling
    choices = [("no class" if follows else "all classes", ALL_CLASSES), *classes]
    parts = [part.type for part in parts_of(pipe.sequence.conditioning)]
    given = sampling.part_guidance or (sampling.guidance_scale,) * len(parts)
    with gradio.Row():
        with gradio.Column(scale=1, min_width=260):
            prompt = gradio.Textbox(label="Prompt", visible="text" in follows, lines=1, elem_id="prompt")
            picture = gradio.File(
                label="Picture to follow", visible="picture" in follows, height=120, elem_id="condition"
            )
            chosen = gradio.Dropdown(choices, value=ALL_CLASSES, label="Class", visible=bool(classes), elem_id="class")
            number = gradio.Slider(1, 64, 4 if follows else 16, step=1, label="Images")
            scales = []
            for part, scale in zip(parts, given, strict=True):
                name = f"Guidance: {part}" if len(parts) > 1 else "Guidance"
                can_be = pipe.sequence.can_be_guided
                scales.append(gradio.Slider(0 if len(parts) > 1 else 1, 8, scale, step=0.1, label=name, visible=can_be))
            temperature = gradio.Slider(0, 2, sampling.temperature, step=0.05, label="Temperature")
            seed = gradio.Number(0, label="Seed", elem_id="seed")
            button = gradio.Button("Generate", variant="primary", elem_id="generate")
        with gradio.Column(scale=3):
            message = message_place(gradio, "notice")
            gallery = gradio.Gallery(show_label=False, columns=6, height="auto", elem_id="samples", format="png")
    inputs = [chosen, number, scales[0], temperature, seed, prompt, picture, *scales[1:]]
    button.click(answering(gradio, Handlers(pipe).generate, 1), inputs, [gallery, message])


def _codes(gradio: Any, pipe: ImageGenerationPipeline) -> None:
    """The tab that shows and changes an image's codes."""
    handlers, depth = Handlers(pipe), pipe.tokenizer.config.quantizer_config.depth
    names, conditional = class_choices(pipe), bool(pipe.tokenizer.config.num_classes)
    state = gradio.State(None)
    gradio.HTML("Upload an image. A click on the map changes the code there, and the image is decoded again.")
    with gradio.Row():
        # Any file: what is no picture is answered by this project's own sentence, and phones have formats of their own.
        upload = gradio.File(label="Your image", elem_id="upload", height=190)
        with gradio.Column():
            code = gradio.Number(0, label="Code", elem_id="code")
            action = gradio.Radio([PUT, PICK], value=PUT, label="A click on the map will", elem_id="action")
            level = gradio.Slider(0, max(1, depth - 1), 0, step=1, label="Level", visible=depth > 1)
            label = gradio.Dropdown(
                names, value=0 if conditional else None, label="Its class, for the decoder", visible=conditional
            )
            back = gradio.Button("Back to the image's own codes", elem_id="back")
    message = message_place(gradio, "message")
    with gradio.Row():
        image = _picture(gradio, "As the tokenizer sees it", "image")
        grid = _picture(gradio, "Its codes", "map")
        result = _picture(gradio, "Decoded", "reconstruction")
        apart = _picture(gradio, f"Difference x {DIFFERENCE_GAIN}", "difference")
    view, shown = [level, label], [state, image, grid, result, apart]
    upload.upload(answering(gradio, handlers.read, NUMBER_SHOWN), [upload, *view], [*shown, message])
    back.click(answering(gradio, handlers.restore, NUMBER_SHOWN), [state, *view], [*shown, message])
    again = answering(gradio, handlers.again, NUMBER_SHOWN)
    for choice in view:
        choice.change(
            lambda kept, *view: again(kept, *view) if kept else gradio.skip(), [state, *view], [*shown, message]
        )
    clicked = answering(gradio, handlers.click, 1 + NUMBER_SHOWN)
    grid.select(_with_event(gradio, clicked), [state, code, action, *view], [code, *shown, message])


def answering(gradio: Any, handler: Callable[..., Sequence[Any]], number: int) -> Callable[..., list[Any]]:
    """`handler` as Gradio calls it, with `number` values and the message; see `answer`."""

    def called(*values: Any) -> list[Any]:
        *changed, sentence = answer(handler, values, number, gradio.skip())
        return [*changed, gradio.update(value=sentence, visible=bool(sentence))]

    return called


def _with_event(gradio: Any, called: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """`called` with the place of a click as its last value."""

    def on_click(kept: Any, code: Any, action: Any, level: Any, label: Any, event: Any) -> list[Any]:
        return called(kept, code, action, level, label, event.index)

    # Gradio recognises `SelectData` by the annotation, which must be the class itself.
    on_click.__annotations__["event"] = gradio.SelectData
    return on_click


def message_place(gradio: Any, name: str) -> Any:
    """The place of a sentence about what is to be mended: plain text, hidden while there is none."""
    return gradio.Textbox(show_label=False, interactive=False, visible=False, lines=1, max_lines=6, elem_id=name)


def _picture(gradio: Any, title: str, name: str) -> Any:
    """A picture below its title: Gradio's own label would cover a corner."""
    with gradio.Column(min_width=200):
        gradio.HTML(f"<b>{html.escape(title)}</b>")
        return gradio.Image(show_label=False, interactive=False, format="png", buttons=[], elem_id=name)


def _gradio() -> Any:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio
    except ImportError as error:
        raise LoadingError("The demo needs Gradio.", "Install it: pip install 'codegrid[demo]'.") from error
    return gradio
