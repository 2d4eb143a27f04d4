"""The page of predictions in a real browser: pictures are dropped and compared, and numbers are the encoder's."""

from __future__ import annotations

import base64
import io
import threading

import numpy as np
import pytest
from PIL import Image

from neuroenc.data import Stimuli
from neuroenc.study import _serve
from serving import ColourPredictor

NUMBERS = "[...document.querySelectorAll('#regions tbody tr')].map((r) => [...r.children].map((c) => c.innerText))"


@pytest.fixture(scope="module")
def server():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 12, 16, 3), dtype=np.uint8)
    shown = Stimuli([f"picture {k} <b>" for k in range(6)], pixels)
    # Places would take a second to draw; they are those of the explorer's maps, which have their own tests.
    predictors = {"colours": ColourPredictor(placed=False), "other": ColourPredictor(9, placed=False, seed=1)}
    with _serve.PredictionServer(predictors, shown, "made up") as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def page(browser, server):
    """The page; what its console says, and requests beyond its server, fail the test in the end."""
    wrong = []
    page = browser.new_page(viewport={"width": 1366, "height": 768})
    page.on("console", lambda m: None if "status of 400" in m.text else wrong.append(m.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((server.url, "data:", "blob:")) else wrong.append(r.url))
    page.goto(server.url)
    page.wait_for_selector("html[data-ready]", state="attached", timeout=10_000)
    yield page
    page.close()
    assert wrong == []


def drop(page, content, name, more=0):
    """Drop a file on the page as a file manager does, with ``more`` zeros behind its content."""
    page.evaluate(
        """([packed, name, more]) => {
            const data = new DataTransfer();
            const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
            data.items.add(new File([bytes, new Uint8Array(more)], name));
            const drop = document.getElementById("drop");
            drop.dispatchEvent(new DragEvent("dragover", { dataTransfer: data, bubbles: true, cancelable: true }));
            drop.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        [base64.b64encode(content).decode(), name, more],
    )


def number(text):
    return float(text.replace("−", "-"))


def test_a_dropped_picture_shows_what_the_encoder_predicts(page, tmp_path):
    predictor = ColourPredictor(placed=False)
    rng = np.random.default_rng(7)
    images = [Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in range(2)]
    expected = predictor.predict(Stimuli(["a", "b"], np.stack(images))).values
    rois = predictor.voxels["roi"].values

    def mean(k, roi):
        return expected[k][rois == roi].mean()

    for k, image in enumerate(images):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        drop(page, buffer.getvalue(), f"photo {k}.png")
        page.wait_for_selector(f"html[data-shown='{k}']", state="attached")
        rows = {row[0]: row for row in page.evaluate(NUMBERS)}
        assert list(rows) == ["V1", "FFA", "PPA"]
        for roi, row in rows.items():
            assert number(row[2]) == pytest.approx(mean(k, roi), abs=0.0051)
            assert number(row[3]) == pytest.approx(expected[k][rois == roi].std(), abs=0.0051)
            assert number(row[6]) == pytest.approx(np.median(predictor.voxels["r"].values[rois == roi]), abs=0.0051)
    assert page.locator("#seen img").count() == 2
    # The difference of two pictures, and every voxel in a file.
    page.select_option("#other", "0")
    for row in page.evaluate(NUMBERS):
        assert number(row[2]) == pytest.approx(mean(1, row[0]) - mean(0, row[0]), abs=0.0051)
    with page.expect_download() as waiting:
        page.click("#save")
    waiting.value.save_as(tmp_path / "predicted.csv")
    lines = (tmp_path / "predicted.csv").read_text().splitlines()
    assert lines[0] == "voxel,roi,place,r,1 photo 0.png,2 photo 1.png"
    assert len(lines) == 31
    np.testing.assert_allclose([float(x) for x in lines[3].split(",")[4:]], expected[:, 2], rtol=1e-6)
    # Another encoder answers to the pictures that are shown.
    page.select_option("#encoder", "other")
    page.wait_for_selector("#regions tbody tr:first-child td:last-child:text-is('3')")


def test_keys_reach_everything_and_what_is_refused_is_told(page):
    page.locator("#samples button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("html[data-shown='0']", state="attached")
    # Names of pictures are text, whatever they hold.
    assert page.locator("#seen img").get_attribute("alt") == "picture 0 <b>"
    before = page.evaluate(NUMBERS)
    drop(page, b"<svg/>", "drawing.svg")
    page.wait_for_selector("#state.bad:has-text('no picture of a kind that is read')")
    assert page.evaluate(NUMBERS) == before
    drop(page, b"", "big.png", more=_serve.MOST_BYTES + 1)
    page.wait_for_selector("#state.bad:has-text('at most 10 MB are read')")
    page.locator("#map").focus()
    page.keyboard.press("ArrowRight")
    assert "held-out r" in page.locator("#tip").inner_text()
    # Regions that are not predicted well are faint.
    assert page.locator("#regions tr.faint").count() == 0
    page.fill("#least", "0.9")
    assert page.locator("#regions tr.faint").count() == 3
