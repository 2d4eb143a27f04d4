"""Pages as PDF, printed by a browser without a window."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import atomic_path
from neuroenc.report.explorer._groups import slugs

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
_FOOT = (
    '<div style="width:100%;padding:0 13mm;font:7pt sans-serif;color:#5c6670;display:flex;'
    'justify-content:space-between">'
    '<span class="title"></span><span><span class="pageNumber"></span> / <span class="totalPages"></span></span></div>'
)


def print_report(
    run: str | os.PathLike[str], file: str | os.PathLike[str] | None = None, *, roi: str | None = None
) -> Path:
    """Print a report, or the page of one of its regions, as PDF (A4, text as text, headings as outline).

    A headless Chromium prints what the page's own print style shows: no navigation, every table whole with its head on
    each sheet, figures uncut. Nothing is fetched.

    Parameters
    ----------
    run : path
        Folder of a finished run (with ``report/``), or of a report.
    file : path, optional
        By default ``report.pdf`` or ``REGION.pdf`` in the report's folder.
    roi : str, optional
        Region whose page is printed.

    Returns
    -------
    pathlib.Path
        ``file``.

    Raises
    ------
    DataError
        No report stands there, or it has no page of the region.
    ConfigError
        playwright or a Chromium is not installed; the page can be opened and printed by hand.

    Examples
    --------
    >>> print_report("no-such-run")
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: no-such-run holds no report: no index.html. Next step: neuroenc caption or run.
    """
    folder = Path(run) / "report" if (Path(run) / "report").is_dir() else Path(run)
    page = folder / "index.html"
    if not page.is_file():
        raise DataError(f"{run} holds no report: no index.html. Next step: neuroenc caption or run.")
    if roi is not None:
        page = folder / "rois" / f"{slugs([roi])[roi]}.html"
        if not page.is_file():
            there = sorted(x.stem for x in (folder / "rois").glob("*.html"))
            raise DataError(f"the report has no page of region {roi!r}. Legal: {', '.join(there) or 'none'}.")
    out = Path(file) if file is not None else folder / (f"{page.stem}.pdf" if roi is not None else "report.pdf")
    by_hand = f"Next step: pip install playwright, or open {page} in a browser and print it (A4)."
    if find_spec("playwright") is None:
        raise ConfigError(f"playwright, which drives the browser that prints, is not installed. {by_hand}")
    from playwright.sync_api import Error, sync_playwright

    found = next((x for x in map(shutil.which, _BROWSERS) if x), None)
    with sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=found)
        except Error as error:
            raise ConfigError(f"no Chromium could be started ({str(error).splitlines()[0]}). {by_hand}") from None
        try:
            sheet = browser.new_page()
            sheet.goto(page.resolve().as_uri())
            if sheet.locator("#meta").count():
                sheet.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
            sheet.wait_for_load_state("load")
            look: dict[str, Any] = {
                "prefer_css_page_size": True,
                "print_background": True,
                "outline": True,
                "tagged": True,
            }
            content = sheet.pdf(**look, display_header_footer=True, header_template="<i></i>", footer_template=_FOOT)
        finally:
            browser.close()
    with atomic_path(out) as temporary:
        temporary.write_bytes(content)
    return out
