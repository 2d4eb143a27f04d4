"""Reports as PDF."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest

from neuroenc._core.errors import DataError
from neuroenc.report import print_report, write_caption_report

pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
    pytest.skip("no Chromium on the PATH", allow_module_level=True)

_spec = importlib.util.spec_from_file_location("caption_studies", Path(__file__).with_name("studies.py"))
studies = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = studies
_spec.loader.exec_module(studies)


@pytest.mark.slow
def test_a_region_is_printed_on_a_few_sheets_with_its_words_and_figure(tmp_path):
    study = studies.made_up(80, "volume")
    write_caption_report(study, tmp_path / "report", figures=True, progress=False)
    html = (tmp_path / "report" / "rois" / "PPA.html").read_text()
    made = print_report(tmp_path, tmp_path / "ppa.pdf", roi="PPA").read_bytes()
    assert made.startswith(b"%PDF-")
    sheets = len(re.findall(rb"/Type /Page\b", made))
    assert sheets == int(re.search(rb"/Count (\d+)", made)[1])
    assert 3 <= sheets <= 8
    # A4 in points.
    assert re.search(rb"/MediaBox \[0 0 59[45]\.\d+ 84[12]\.\d+\]", made)
    # Headings are the outline: the aspects, which are named by the region's words.
    aspects = re.findall(r"<h3>([\w ,]+)</h3>\s*<p class=\"muted\"", html)
    assert len(aspects) >= 2
    for title in aspects:
        assert f"/Title ({title})".encode() in made
    assert "figures/PPA.svg" in html
    # The whole report, whose explorer reads its data before it is printed.
    whole = print_report(tmp_path)
    assert whole == tmp_path / "report" / "report.pdf"
    assert len(re.findall(rb"/Type /Page\b", whole.read_bytes())) >= 3
    with pytest.raises(DataError, match="no page of region 'V7'"):
        print_report(tmp_path, roi="V7")
