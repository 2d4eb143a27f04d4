"""The picture of the page of ``neuroenc serve`` in its guide: ``tools/predicted_page.py OUT.png ENCODER``."""

from __future__ import annotations

import io
import shutil
import sys
import threading
from pathlib import Path

from PIL import Image

from neuroenc.data.simulate import simulate_world
from neuroenc.study import load_predictor
from neuroenc.study._serve import REFERENCE, PredictionServer


def take(out: Path, encoder: str, sample: int = 2) -> None:
    """Write a picture (PNG of 256 colours) of the page with a prediction for one of its pictures to try."""
    from playwright.sync_api import sync_playwright

    chromium = next(p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p)
    scenes = simulate_world(REFERENCE, seed=90_210)
    with PredictionServer({encoder: load_predictor(encoder, cache=False)}, scenes, "simulated scenes") as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 960})
            page.goto(server.url)
            page.click(f"#samples button:nth-child({sample + 1})")
            page.wait_for_selector("html[data-shown='0']", state="attached", timeout=120_000)
            page.wait_for_timeout(1000)  # the cortex behind the dots is decoded after they are drawn
            content = page.screenshot()
            browser.close()
        server.shutdown()
    image = Image.open(io.BytesIO(content)).convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT)
    image.save(out, optimize=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]), sys.argv[2])
