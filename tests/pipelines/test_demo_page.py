"""The demo in a browser: real clicks make real images. Skipped without Gradio, Playwright or Chromium."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codegrid.pipelines import ImageGenerationPipeline
from codegrid.pipelines.demo import actions as demo
from codegrid.prior import PriorConfig, make_prior
from codegrid.tokenizer.images import to_pil

pytest.importorskip("gradio", reason="needs the extra demo")
playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra browser-tests")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium (apt install chromium)")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 90  # seconds; a loaded machine is slow


@pytest.fixture(scope="module")
def address(pipeline_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of scripts/demo.py, served by a process of its own."""
    with served(pipeline_folder, tmp_path_factory.mktemp("demo") / "log.txt") as url:
        yield url


@contextlib.contextmanager
def served(pipeline: Path, log: Path) -> Iterator[str]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    arguments = ["--pipeline", str(pipeline), "--port", str(port)]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(log.parent / "files"), "NO_PROXY": "127.0.0.1"}
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, ROOT / "scripts" / "demo.py", *arguments], stdout=output, stderr=output, env=environment
        )
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
        while not _answers(url):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=PATIENCE)


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser, address: str):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(1000 * PATIENCE)
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector("#generate")
    return page


def pixels(page, selector: str) -> list[np.ndarray]:
    """The pictures that the browser shows there, as it got them: uint8 [H, W, 3] each."""
    urls = [image.evaluate("node => node.src") for image in page.locator(f"{selector} img").all()]
    bodies = [page.request.get(url).body() for url in urls]
    return [np.asarray(Image.open(io.BytesIO(body)).convert("RGB")) for body in bodies]


def test_a_click_makes_the_images_of_the_seed_and_class(page, pipeline_folder):
    page.get_by_role("tab", name="Generate").click()
    page.locator("#class input").click()
    page.get_by_role("option", name="stripes").click()
    page.locator("#seed input").fill("5")
    page.locator("#seed input").press("Tab")
    page.click("#generate")
    page.wait_for_function("document.querySelectorAll('#samples img').length == 16")
    pipe = ImageGenerationPipeline.from_pretrained(pipeline_folder)
    expected = demo.generate(pipe, "stripes", 16, pipe.sampling.guidance_scale, pipe.sampling.temperature, 5)
    for shown, (picture, _) in zip(pixels(page, "#samples"), expected, strict=True):
        np.testing.assert_array_equal(shown, np.asarray(picture))


def test_an_uploaded_image_its_codes_and_a_click_on_one(page, pipeline_folder, pictures):
    pipe = ImageGenerationPipeline.from_pretrained(pipeline_folder)
    model = pipe.tokenizer
    file = pictures / "noise" / "1.png"
    image = demo.read_image(model, file)
    own = demo.encode(model, image)

    def as_expected(codes) -> bool:
        decoded = demo.decode(pipe, codes)
        for name, expected in {
            "image": demo.picture(image),
            "map": demo.codes_map(codes, changed=own),
            "reconstruction": demo.picture(decoded),
            "difference": demo.difference(image, decoded),
        }.items():
            shown = pixels(page, f"#{name}")
            # another process rounds pixels otherwise; the gain multiplies that
            most = demo.DIFFERENCE_GAIN if name == "difference" else int(name != "map")
            if not shown or np.abs(shown[0].astype(int) - np.asarray(expected)).max() > most:
                return False
        return True

    def becomes(codes) -> None:
        """Wait until the pictures are those of `codes`."""
        end = time.monotonic() + PATIENCE
        while not as_expected(codes):
            assert time.monotonic() < end, "the page never showed the pictures of these codes"
            page.wait_for_timeout(200)

    def click_cell(row: int, column: int) -> None:
        box = page.locator("#map img").bounding_box()
        page.mouse.click(box["x"] + (column + 0.5) * box["width"] / 4, box["y"] + (row + 0.5) * box["height"] / 4)

    page.get_by_role("tab", name="Codes").click()
    page.set_input_files("#upload input[type=file]", str(file))
    becomes(own)

    code = (demo.code_at(own, demo.Cell(2, 1)) + 7) % 32
    page.locator("#code input").fill(str(code))
    page.locator("#code input").press("Tab")
    click_cell(2, 1)
    becomes(demo.with_code(own, demo.Cell(2, 1), code, 32))

    page.get_by_label("pick up its code").click()
    click_cell(0, 3)
    picked = str(demo.code_at(own, demo.Cell(0, 3)))
    page.wait_for_function("code => document.querySelector('#code input').value == code", arg=picked)

    page.click("#back")
    becomes(own)


@pytest.mark.parametrize("width", [1280, 390])
def test_wrong_input_is_one_sentence_and_all_pictures_lie_inside_of_the_page(address, page, pictures, tmp_path, width):
    """Where nothing can be made of the input, what was shown stays, and no part of the page says "Error"."""
    page = page.context.browser.new_page(viewport={"width": width, "height": 900})
    page.set_default_timeout(1000 * PATIENCE)

    def check_places() -> None:
        beyond = page.evaluate(
            "[...document.querySelectorAll('img')].filter(node => node.offsetParent)"
            ".map(node => node.getBoundingClientRect()).filter(box => box.left < 0 || box.right > innerWidth).length"
        )
        assert (beyond, page.evaluate("document.documentElement.scrollWidth")) == (0, width)

    def check_sentence(place: str, words: str) -> None:
        page.wait_for_function(
            "([place, words]) => document.querySelector(`${place} textarea`)?.value.includes(words)", arg=[place, words]
        )
        assert page.get_by_text("Error", exact=True).count() == 0

    try:
        page.goto(address, wait_until="domcontentloaded")
        page.click("#generate")
        page.wait_for_function("document.querySelectorAll('#samples img').length == 16")
        check_places()
        page.locator("#seed input").fill("")
        page.click("#generate")
        check_sentence("#notice", "The seed is empty.")
        assert page.locator("#samples img").count() == 16

        page.get_by_role("tab", name="Codes").click()
        (tmp_path / "broken.png").write_bytes(b"no picture")
        page.set_input_files("#upload input[type=file]", str(tmp_path / "broken.png"))
        check_sentence("#message", "broken.png is no picture")
        page.get_by_label("Remove this file").or_(page.get_by_label("Clear")).first.click()
        page.set_input_files("#upload input[type=file]", str(pictures / "noise" / "1.png"))
        page.wait_for_selector("#difference img")
        check_places()
        before = page.locator("#map img").get_attribute("src")
        page.locator("#code input").fill("99")
        page.locator("#code input").press("Tab")
        page.locator("#map img").click(position={"x": 20, "y": 20})
        check_sentence("#message", "The code is 99")
        assert page.locator("#map img").get_attribute("src") == before
    finally:
        page.close()


def test_what_the_mouse_paints_is_drawn_again_and_a_result_goes_on(browser, pipeline_folder, pictures, tmp_path):
    """A stroke of the brush, four results, a click on one of them, and a second stroke elsewhere."""
    raster = ImageGenerationPipeline.from_pretrained(pipeline_folder)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.3}
    prior = make_prior(PriorConfig(**size, architecture="any_order_gpt2"), raster.sequence)
    ImageGenerationPipeline(raster.tokenizer, prior, raster.sequence).save_pretrained(tmp_path / "any")
    with served(tmp_path / "any", tmp_path / "log.txt") as url:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(1000 * PATIENCE)
        try:
            page.goto(url, wait_until="domcontentloaded")
            page.get_by_role("tab", name="Edit").click()
            file = pictures / "noise" / "1.png"
            page.set_input_files("#edit_upload input[type=file]", str(file))
            true = np.asarray(demo.enlarged(to_pil(demo.read_image(raster.tokenizer, file))[0], 384))
            page.wait_for_function("document.querySelector('#edited').innerText.includes('your picture')")
            first = results_of(page, (0.3, 0.2, 0.3, 0.8))
            changed = [(np.abs(one.astype(int) - true) > 1).any(-1) for one in first]
            columns = np.concatenate([mask.nonzero()[1] for mask in changed]) / true.shape[1]
            assert len(columns)
            assert columns.max() < 0.4  # where the stroke was; nothing changed elsewhere
            page.locator("#results button[aria-label^='Thumbnail']").nth(1).click()
            page.wait_for_function("document.querySelector('#edited').innerText.includes('result 2')")
            second = results_of(page, (0.7, 0.2, 0.7, 0.8), before=first)
            changed = [(np.abs(one.astype(int) - first[1]) > 1).any(-1) for one in second]
            columns = np.concatenate([mask.nonzero()[1] for mask in changed]) / true.shape[1]
            assert len(columns)
            assert columns.min() > 0.6  # the first stroke's part is that of the result that was clicked
        finally:
            page.close()


def results_of(page, stroke: tuple[float, float, float, float], before=None) -> list[np.ndarray]:
    """Paint a line over the editor's picture, fill it, and wait for four results other than `before`."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:  # a stroke is lost if the editor has not put its picture into place
        page.wait_for_timeout(1500)
        box = page.locator("#editor canvas").first.bounding_box()  # the picture is in its middle
        left, top, right, bottom = stroke
        page.mouse.move(box["x"] + left * box["width"], box["y"] + top * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + right * box["width"], box["y"] + bottom * box["height"], steps=12)
        page.mouse.up()
        page.wait_for_timeout(500)
        page.click("#fill")
        for _ in range(40):
            page.wait_for_timeout(250)
            shown, again = pixels(page, "#results"), pixels(page, "#results")  # one may fall into a change
            same = before is not None and all(map(np.array_equal, shown, before))
            if len(shown) == len(again) == 4 and not same and all(map(np.array_equal, shown, again)):
                return shown
    raise AssertionError("no results came")
