"""The page of voxel captions in a real browser: Chromium, driven by playwright, opening the file from disk."""

from __future__ import annotations

import dataclasses
import importlib.util
import shutil
import sys
import time
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest

from neuroenc.captions import score_words, search_captions
from neuroenc.report import study_page, write_caption_report

_spec = importlib.util.spec_from_file_location("caption_studies", Path(__file__).with_name("studies.py"))
studies = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = studies
_spec.loader.exec_module(studies)


@pytest.fixture
def look(browser):
    """Open a page; whatever the console says, and every request beyond the disk, fails the test in the end."""
    pages, wrong = [], []

    def opened(file, fragment="", wait="html[data-ready]"):
        page = browser.new_page(viewport={"width": 1366, "height": 768})
        pages.append(page)
        page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else wrong.append(r.url))
        page.on("requestfailed", lambda r: wrong.append(f"failed: {r.url}"))
        page.goto(Path(file).as_uri() + fragment)
        if wait:
            page.wait_for_selector(wait, state="attached", timeout=30_000)
        return page

    yield opened
    for page in pages:
        page.close()
    assert wrong == []


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    study = studies.made_up(80, "volume", subjects=2)
    return study, write_caption_report(study, tmp_path_factory.mktemp("volume"), progress=False)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    study = studies.made_up(40)
    return study, write_caption_report(study, tmp_path_factory.mktemp("grid"), progress=False)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    study = studies.made_up(24, "volume", evil=True)
    return study, write_caption_report(study, tmp_path_factory.mktemp("hostile"), progress=False)


def said(page):
    return [line.strip() for line in page.locator("#panel .said .text").all_inner_texts()]


def listed(page):
    return [int(x) for x in page.locator("#list .row > :first-child").all_inner_texts()]


def own(study, voxel):
    return study.captions[study.captions.voxel == voxel].caption.tolist()


def click_on(page, voxel, study):
    """Click where the page's own data say that the voxel lies."""
    scores = study.scores
    row = int(np.flatnonzero(scores.voxel.values == voxel)[0])
    x, y, width = page.evaluate(
        """async ([k, fresh]) => {
            const meta = JSON.parse(document.getElementById("meta").textContent);
            const taken = window.neuroencData;
            const packed = await new Promise((done) => {
                window.neuroencData = (name, text) => done(text);
                const script = document.createElement("script");
                script.src = `assets/${meta.subjects[0].core}`;
                document.head.append(script);
            });
            window.neuroencData = taken;
            const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
            const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
            const core = await new Response(plain).json();
            const map = core.maps[0], p = map.voxel.indexOf(k);
            return [map.x[p], map.y[p], map.width];
        }""",
        [row, True],
    )
    canvas = page.locator("#map")
    canvas.scroll_into_view_if_needed()
    scale = canvas.bounding_box()["width"] / width
    canvas.click(position={"x": x * scale, "y": y * scale})


def test_clicking_a_voxel_on_the_map_shows_its_captions(volume, look):
    study, file = volume
    page = look(file)
    for voxel in study.captions.voxel.unique()[[3, 9]]:
        click_on(page, voxel, study)
        page.wait_for_selector(f"#panel h3:has-text('Voxel {voxel}')")
        page.wait_for_selector("#panel mark")
        assert said(page) == own(study, voxel)
        assert page.evaluate("location.hash") == f"#voxel={voxel}"
        shown = page.locator("#panel .thumbs .id").all_inner_texts()
        assert shown == study.evidence[study.evidence.voxel == voxel].stimulus.tolist()
        page.click("#panel summary:has-text('From 3 disjoint parts of the bank')")
        parts = page.locator("#panel details[open] li").all_inner_texts()
        assert parts == [f"{text} (1)" for text in study.folds[study.folds.voxel == voxel].caption]


def test_the_first_screen_says_what_its_numbers_and_lines_mean(volume, look):
    _, file = volume
    page = look(file)
    page.wait_for_selector("#panel .key")
    assert page.locator("#panel .key").inner_text() == (
        "Number: score of the caption. Phrases: supported, uncertain, unsupported."
    )


def test_tabs_show_one_part_and_an_address_opens_its_own(look, tmp_path):
    study = studies.made_up(12, "volume")
    page = study_page("two parts", accuracy=study.scores, captions=study)
    page = look(page.write(tmp_path))
    shown = page.locator(".tab:visible")
    assert shown.count() == 1
    assert shown.get_attribute("id") == "accuracy"
    page.get_by_role("link", name="Captions", exact=True).click()
    page.wait_for_selector("#map:visible")
    assert page.locator("#accuracy").is_hidden()
    page.goto((tmp_path / "index.html").as_uri())
    voxel = study.captions.voxel.iloc[0]
    page.evaluate(f"location.hash = '#voxel={voxel}'")
    page.wait_for_selector(f"#panel h3:has-text('Voxel {voxel}'):visible")
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".tab:visible").count() == 2


def test_phrases_are_marked_and_their_numbers_can_be_read_and_reached_by_key(volume, look):
    study, file = volume
    voxel = study.captions.voxel.iloc[0]
    page = look(file, f"#voxel={voxel}")
    page.wait_for_selector("#panel mark")
    told = study.phrases[study.phrases.voxel == voxel]
    marks = page.locator("#panel mark")
    assert marks.all_inner_texts() == told.phrase.tolist()
    assert [m.get_attribute("class") for m in marks.all()] == told.verdict.tolist()
    first = told.iloc[0]
    note = marks.first.get_attribute("title")
    assert first.verdict in note
    assert f"in {100 * first.in_images:.0f} % of its images" in note
    assert note in marks.first.get_attribute("aria-label")
    marks.first.focus()
    assert page.evaluate("document.activeElement.tagName") == "MARK"
    table = page.locator("#panel table.phrases").first.inner_text()
    for line in told[told["rank"] == 1].itertuples():
        assert line.phrase in table
        assert f"{100 * line.in_images:.0f} %" in table


def test_a_link_opens_its_voxel_and_an_unknown_one_is_said(volume, look):
    study, file = volume
    voxel = study.captions.voxel.iloc[-1]  # of the second subject
    page = look(file, f"#voxel={voxel}")
    assert said(page) == own(study, voxel)
    other = study.captions.voxel.iloc[0]
    page.evaluate(f"location.hash = '#voxel={other}'")
    page.wait_for_selector(f"#panel h3:has-text('Voxel {other}')")
    assert said(page) == own(study, other)
    assert "No voxel 7777" in look(file, "#voxel=7777").locator("#panel").inner_text()


def test_a_voxel_that_was_held_back_says_why(volume, look):
    study, file = volume
    held = study.gate[~study.gate.captioned].iloc[0]
    page = look(file, f"#voxel={held.voxel}")
    assert held.reason in page.locator("#panel").inner_text()
    assert said(page) == []


def test_filters_keep_exactly_the_voxels_that_they_name(grid, look):
    study, file = grid
    page = look(file)
    frame = pd.DataFrame({"voxel": study.scores.voxel, "roi": study.scores.roi, "r": study.scores.r})
    frame = frame.merge(study.gate, on="voxel")
    bad = study.phrases.groupby("voxel").verdict.apply(lambda v: (v == "unsupported").any())
    frame["bad"] = frame.voxel.map(bad)
    assert sorted(listed(page)) == frame.voxel.tolist()
    page.select_option("#region", "FBA")
    assert set(listed(page)) == set(frame.voxel[frame.roi == "EBA;FBA"])
    page.fill("#least", "0.4")
    assert set(listed(page)) == set(frame.voxel[(frame.roi == "EBA;FBA") & (frame.r >= 0.4)])
    page.click("#clear")
    page.select_option("#verdict", "unsupported")
    assert set(listed(page)) == set(frame.voxel[frame.bad == True])  # noqa: E712
    page.select_option("#verdict", "clean")
    assert set(listed(page)) == set(frame.voxel[frame.bad == False])  # noqa: E712
    page.select_option("#verdict", "gated")
    assert set(listed(page)) == set(frame.voxel[~frame.captioned])
    page.select_option("#verdict", "captioned")
    page.select_option("#sort", "r")
    r = frame.set_index("voxel").r
    assert listed(page) == r[frame.set_index("voxel").captioned].sort_values(ascending=False).index.tolist()
    assert page.locator("#count").inner_text() == f"{int(frame.captioned.sum())} of {len(frame)} voxels"


def searched(page, words):
    page.fill("#search", words)
    page.wait_for_timeout(350)
    return listed(page)


def test_search_finds_words_plurals_beginnings_phrases_and_ids(grid, look):
    study, file = grid
    page = look(file)
    texts = study.captions.groupby("voxel").caption.apply(" / ".join)
    assert set(searched(page, "pizza")) == set(texts.index[texts.str.contains("pizza")])
    assert set(searched(page, "churches")) == set(texts.index[texts.str.contains("church")])
    assert set(searched(page, "piz")) == set(texts.index[texts.str.contains("pizza")])
    assert set(searched(page, '"red house"')) == set(texts.index[texts.str.contains("red house")])
    both = searched(page, "church sign")
    holds = texts.reindex(both).str.contains("church") & texts.reindex(both).str.contains("sign")
    assert holds.sum() > 0
    assert holds.tolist() == sorted(holds.tolist(), reverse=True), "voxels with both words come first"
    one = study.captions[study.captions.caption.str.contains("pizza")].groupby("voxel")["rank"].min()
    first = searched(page, "pizza")[0]
    assert one[first] == 1
    assert page.locator("#list .hit").first.inner_text() == "pizza"
    assert searched(page, str(texts.index[4]))[0] == texts.index[4]
    assert searched(page, "zebra") == []
    assert page.locator("#count").inner_text().startswith("0 of")
    assert "“zebra”" in page.locator("#hint").inner_text()
    page.locator("#hint button").last.click()
    assert listed(page)
    assert page.locator("#hint").inner_text() == ""


def test_search_by_what_words_mean_lists_what_python_finds(look, tmp_path):
    study = studies.with_vectors(studies.made_up(60, subjects=2, seed=4))
    page = look(write_caption_report(study, tmp_path, progress=False))
    for query in ("meal", "pizza", "red house", '"red house"'):
        found = search_captions(query, study)
        assert 0 < len(found) <= 60
        assert searched(page, query) == found["voxel"].tolist()
        by = [" + ".join(k for k in ("words", "vectors") if row[k]) for _, row in found.iterrows()]
        assert [x.strip() for x in page.locator("#list .by").all_inner_texts()] == by
    assert searched(page, "zebra") == []
    # The card's box for words of one's own, which stay when another voxel is opened.
    wanted = score_words("a meal of zebra", study).set_index("voxel")
    for voxel in wanted.index[:2]:
        page.evaluate(f"location.hash = '#voxel={voxel}'")
        page.wait_for_selector("#panel table.phrases")
        if not page.input_value("#ask"):
            page.fill("#ask", "a meal of zebra")
        shown = page.locator("#ask + .meters").inner_text()
        for column in ("among_words", "among_voxels"):
            assert f"{int(100 * wanted.loc[voxel, column] + 0.5)} %" in shown
        assert "Not known, and left out: zebra." in page.locator("#panel").inner_text()


@pytest.mark.slow
def test_map_and_list_can_be_used_with_keys_alone(grid, look):
    _, file = grid
    page = look(file)
    page.focus("#map")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    announced = page.locator("#where").inner_text()
    voxel = int(announced.split()[1])
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#panel h3:has-text('Voxel {voxel}')")
    page.focus("#search")
    page.keyboard.type("pizza")
    page.wait_for_timeout(350)
    page.keyboard.press("Enter")
    assert page.locator("#panel h3 span").first.inner_text() == f"Voxel {listed(page)[0]}"
    second = listed(page)[1]
    page.get_by_role("button", name="Next ›").press("Enter")
    assert page.locator("#panel h3 span").first.inner_text() == f"Voxel {second}"


@pytest.mark.slow
def test_every_colour_and_view_draws_something_else(volume, look):
    _, file = volume
    page = look(file)
    drawn = set()
    choices = page.locator("#colour option").all_inner_texts()
    assert {"Region", "Noun", "Unsupported phrases, share", "Caption stability over folds"} <= set(choices)
    for view in page.locator("#views button").all():
        view.click()
        for choice in choices:
            page.select_option("#colour", label=choice)
            drawn.add(page.evaluate("document.getElementById('map').toDataURL()"))
    assert len(drawn) == len(choices) * page.locator("#views button").count()


def test_hostile_text_stays_text(hostile, look):
    study, file = hostile
    page = look(file)
    page.wait_for_selector("#panel mark")
    voxel = int(page.locator("#panel h3 span").first.inner_text().split()[1])
    flat = [" ".join(x.split()) for x in own(study, voxel)]
    assert [" ".join(x.split()) for x in said(page)] == flat
    assert page.locator("#panel mark").all_inner_texts() == study.phrases[study.phrases.voxel == voxel].phrase.tolist()
    searched(page, "onerror")
    page.hover("#map", position={"x": 60, "y": 60})
    for choice in page.locator("#colour option").all_inner_texts():
        page.select_option("#colour", label=choice)
    assert page.evaluate("window.taken") is None
    assert page.locator("img[src=x]").count() == 0
    assert " ".join(page.title().split()) == " ".join(studies.EVIL.split())
    for other in [*(file.parent / "rois").iterdir(), *(file.parent / "subjects").glob("*.html")]:
        page = look(other, wait="main")
        assert page.evaluate("window.taken") is None
        assert page.locator("img[src=x]").count() == 0


def test_the_policy_stops_a_script_that_slipped_in(grid, browser, tmp_path):
    _, file = grid
    shutil.copytree(file.parent, tmp_path / "copy")
    other = tmp_path / "copy" / "index.html"
    other.write_text(
        file.read_text().replace(
            "<main>", "<main><script>window.taken = 1</script><img src=x onerror='window.taken=2'>"
        )
    )
    page = browser.new_page()
    page.goto(other.as_uri())
    page.wait_for_selector("html[data-ready]", state="attached")
    assert page.evaluate("window.taken") is None
    page.close()


@pytest.mark.slow
def test_print_shows_the_best_voxels_without_controls(volume, look, tmp_path):
    study, file = volume
    page = look(file)
    page.emulate_media(media="print")
    for gone in ("#controls", "#list", "#panel", "nav", "#colour"):
        assert not page.locator(gone).first.is_visible(), gone
    assert page.locator("#map").is_visible()
    best = study.captions.merge(pd.DataFrame({"voxel": study.scores.voxel, "r": study.scores.r})).nlargest(1, "r")
    card = page.locator("#best .vcard").first
    assert f"Voxel {best.voxel.iloc[0]}" in card.inner_text()
    assert own(study, best.voxel.iloc[0])[0] in card.inner_text()
    assert "percentile" in card.inner_text()
    sheet = page.pdf(prefer_css_page_size=True)
    assert sheet[:5] == b"%PDF-"
    assert len(sheet) > 20_000


def test_nothing_is_wider_than_a_laptop_or_the_sheet(volume, look):
    _, file = volume
    pages = [look(file), look(next((file.parent / "rois").iterdir()), wait="main")]
    for page in pages:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.set_viewport_size({"width": 700, "height": 990})
        page.emulate_media(media="print")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1")


@pytest.mark.slow
def test_pages_of_regions_lead_back_to_the_map(volume, look):
    study, file = volume
    page = look(file)
    page.get_by_role("link", name="PPA", exact=True).first.click()
    page.wait_for_selector("body.group h1")
    assert page.locator("h1").inner_text() == "PPA"
    page.get_by_role("link", name="Explore these voxels on the map").click()
    page.wait_for_selector("html[data-ready]", state="attached")
    inside = study.scores.voxel.values[study.scores.roi.values == "PPA"]
    assert set(listed(page)) == set(inside.tolist())


@pytest.mark.slow
def test_two_of_three_subjects_are_chosen_on_a_page_of_a_region(look, tmp_path):
    study = studies.made_up(60, "volume", subjects=3)
    write_caption_report(study, tmp_path, progress=False)
    page = look(tmp_path / "rois" / "PPA.html", wait="#beside")
    seen = page.locator(".side:visible h3").all_inner_texts()
    assert [x.split()[0] for x in seen] == ["sub-0", "sub-1"]
    assert page.locator(".side:visible").count() == 2
    page.select_option("#left", label="sub-2")
    assert page.locator(".side:visible").count() == 2
    assert not page.locator(".side").nth(0).is_visible()
    boxes = [page.locator(".side").nth(k).bounding_box() for k in (2, 1)]
    assert boxes[0]["x"] < boxes[1]["x"]
    link = page.locator(".side:visible a").first
    voxel = link.inner_text()
    link.click()
    page.wait_for_selector(f"#panel h3:has-text('Voxel {voxel}')")


@pytest.mark.slow
def test_without_script_the_page_still_tells(volume, browser):
    _, file = volume
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("#best .vcard").count() == 8
    assert not page.locator("#controls").is_visible()
    context.close()


def test_voxels_with_odd_names_have_links(look, tmp_path):
    study = studies.made_up(6)
    names = {v: f"sub/1 #{v}&é" for v in study.scores.voxel.values}
    tables = {
        n: getattr(study, n).assign(voxel=lambda f: f.voxel.map(names))
        for n in ("captions", "evidence", "gate", "phrases", "stability", "folds")
    }
    scores = study.scores.assign_coords(voxel=[names[v] for v in study.scores.voxel.values])
    study = dataclasses.replace(study, scores=scores, **tables)
    file = write_caption_report(study, tmp_path, progress=False)
    voxel = study.captions.voxel.iloc[-1]
    page = look(file, "#voxel=" + quote(voxel, safe=""))
    assert page.locator("#panel h3 span").first.inner_text() == f"Voxel {voxel}"
    assert said(page) == own(study, voxel)


@pytest.mark.slow
def test_twenty_thousand_voxels_open_in_seconds(look, tmp_path, capsys):
    study = studies.made_up(20_000, captions_each=5, n_stimuli=3000)
    began = time.perf_counter()
    file = write_caption_report(study, tmp_path, progress=False)
    written = time.perf_counter() - began
    began = time.perf_counter()
    page = look(file)
    opened = time.perf_counter() - began
    sizes = {p.suffix: 0 for p in tmp_path.rglob("*")}
    for p in (tmp_path / "assets").iterdir():
        sizes[p.suffix] += p.stat().st_size
    began = time.perf_counter()
    found = searched(page, "pizza near church")
    seconds = time.perf_counter() - began
    size = f"index {file.stat().st_size / 1e6:.2f} MB, data {sizes['.js'] / 1e6:.1f} MB"
    with capsys.disabled():
        print(f"\n20,000 voxels: written {written:.0f} s, opened {opened:.1f} s, searched {seconds:.2f} s, {size}")
    assert len(found) == 60
    assert file.stat().st_size < 3e6


@pytest.mark.slow
def test_simulated_cortex_from_responses_to_page(look, tmp_path):
    study, unseen = studies.simulated(n_subjects=2)
    file = write_caption_report(study, tmp_path, stimuli=unseen, progress=False)
    page = look(file)
    assert page.locator("#views button").all_inner_texts() == ["Flat", "Inflated", "Slices", "Grid"]
    captioned = study.captions.voxel.unique()
    for voxel in captioned[[0, len(captioned) // 2, -1]]:
        page.evaluate(f"location.hash = '#voxel={voxel}'")
        page.wait_for_selector(f"#panel h3:has-text('Voxel {voxel}')")
        page.wait_for_selector("#panel .thumbs img")
        assert said(page) == own(study, voxel)
        page.wait_for_function("[...document.querySelectorAll('#panel .thumbs img')].every((i) => i.naturalWidth > 0)")
    assert unseen.licence in page.locator("#panel .credit").inner_text()


@pytest.mark.slow
def test_a_tip_at_the_edge_does_not_make_the_page_jump(look, tmp_path):
    # A map of one row, lower than the tip is high.
    study = studies.made_up(6, "grid", n_stimuli=8)
    page = look(write_caption_report(study, tmp_path, progress=False))
    size = "() => { const b = document.querySelector('.mapbox'); return [b.scrollWidth, b.scrollHeight, b.clientWidth, "
    size += "document.documentElement.scrollHeight, document.documentElement.scrollWidth]; }"
    # What the page still lays out by itself is not the tip's doing.
    before = None
    for _ in range(50):
        before, last = page.evaluate(size), before
        if before == last:
            break
        page.wait_for_timeout(300)
    box = page.locator("#map").bounding_box()
    shown = 0
    for down in (0.06, 0.3, 0.55, 0.8, 0.94, 0.99):
        for across in (0.02, 0.35, 0.7, 0.97):
            page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["height"])
            assert page.evaluate(size) == before
    for k in range(60):
        page.mouse.move(box["x"] + (0.5 + k) / 60 * box["width"], box["y"] + box["height"] * ((k * 7) % 60 + 0.5) / 60)
        if page.locator("#tip").is_visible():
            shown += 1
            tip = page.locator("#tip").bounding_box()
            assert tip["x"] >= 0
            assert tip["x"] + tip["width"] <= 1366
        assert page.evaluate(size) == before
    assert shown > 0
