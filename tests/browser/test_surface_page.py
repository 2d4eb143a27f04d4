"""The interactive cortex in a real browser: it draws, turns, flattens, tells values, and fetches nothing."""

from __future__ import annotations

import base64
import shutil

import numpy as np
import pytest
import xarray as xr

from neuroenc.report import surface_html

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("nilearn")
    from neuroenc.report._brain_mesh import _mesh

    # A patch on the underside of the left hemisphere, a region in one part of it.
    xyz = _mesh("L")[0]
    vertex = np.argsort(np.linalg.norm(xyz - [-10, -60, -45], axis=1))[:120]
    scores = xr.Dataset(
        {"r": ("voxel", np.linspace(0, 1, 120)), "ev": ("voxel", np.zeros(120))},
        coords={
            "voxel": np.arange(500, 620),
            "vertex": ("voxel", vertex),
            "hemi": ("voxel", ["L"] * 120),
            "roi": ("voxel", ["FFA"] * 60 + [""] * 60),
        },
    )
    file = surface_html(scores, tmp_path_factory.mktemp("surface"))
    flags = [
        "--no-sandbox",
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    wrong: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 720, "height": 600}, reduced_motion="reduce")
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(r.url))
        page.goto(file.as_uri())
        page.wait_for_selector("html[data-ready]", state="attached", timeout=30_000)
        if page.evaluate("document.documentElement.dataset.ready") != "yes":
            pytest.skip("this Chromium draws no WebGL")
        yield page
        browser.close()
    assert wrong == []


def _pixels(page) -> np.ndarray:
    """Pixels of the left half as numbers: (n, 4)."""
    text = page.evaluate(
        """() => { const c = document.getElementById("cortex"), gl = c.getContext("webgl"), w = c.width / 2 | 0;
        const p = new Uint8Array(4 * w * c.height);
        gl.readPixels(0, 0, w, c.height, gl.RGBA, gl.UNSIGNED_BYTE, p);
        let text = ""; for (let k = 0; k < p.length; k += 4096) text += String.fromCharCode(...p.subarray(k, k + 4096));
        return btoa(text); }"""
    )
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, 4)


def _changed(one: np.ndarray, two: np.ndarray) -> float:
    """Share of pixels that differ."""
    return float((one != two).any(axis=1).mean()) if one.shape == two.shape else 1.0


def _coloured(pixels: np.ndarray) -> int:
    return int((np.ptp(pixels[:, :3].astype(int), axis=1) > 40).sum())


def test_it_draws_and_answers(page):
    ventral = _pixels(page)
    assert _coloured(ventral) > 100
    assert (ventral[:, :3].max(axis=1) < 50).sum() > 20  # the outline
    label = page.locator("#overlay span", has_text="FFA").first.bounding_box()
    page.mouse.move(label["x"] + label["width"] / 2, label["y"] + label["height"] / 2)
    tip = page.locator("#tip")
    assert tip.is_visible()
    text = tip.inner_text()
    assert "FFA" in text
    assert "L vertex" in text
    voxel = int(text.split("voxel ")[1].split(" ")[0])
    assert f"Pearson r: {(voxel - 500) / 119:.3g}" in text


def test_views_maps_and_the_flat_cortex(page):
    # Lines are drawn anew at every change, by a software renderer not always alike; without them a view that is
    # come back to is equal in every pixel.
    page.uncheck("#outlines")
    before = _pixels(page)
    assert (before[:, :3].max(axis=1) < 50).sum() < 10
    page.select_option("#view", "dorsal")
    assert _coloured(_pixels(page)) < 0.2 * _coloured(before)  # the patch faces the floor
    page.select_option("#view", "ventral")
    legend = page.get_attribute("#legend", "src")
    page.select_option("#map", "1")
    assert page.get_attribute("#legend", "src") != legend
    page.select_option("#map", "0")
    page.check("input[value=flat]")
    page.wait_for_selector("html[data-mesh=flat]", state="attached")
    assert _coloured(_pixels(page)) > 100
    assert page.locator("#view").is_disabled()
    page.check("input[value=inflated]")
    page.wait_for_selector("html[data-mesh=inflated]", state="attached")
    assert _changed(_pixels(page), before) == 0
    page.focus("#cortex")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert _changed(_pixels(page), before) > 0.05
    page.click("#reset")
    assert _changed(_pixels(page), before) == 0
