"""Controls of captions tell fitted weights from shuffled ones where there is something to tell, and say so."""

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.report import write_report
from neuroenc.study._demo import BETTER, compared, mark


def test_what_fails_is_marked_on_cards_and_in_tables(tmp_path):
    scores = xr.Dataset({"r": ("voxel", [0.2, 0.4])}, coords={"voxel": [0, 1], "roi": ("voxel", ["V1", "V4"])})
    captions = pd.DataFrame({"voxel": [0, 1], "rank": 1, "caption": ["a cat", "a dog"], "score": 0.5})
    good = compared("sentence-level score", 2, 0.2, 0.0, 0.2 + 0.001 * np.arange(50), 60)
    bad = compared("round trip", 2, 0.2, 0.2, np.linspace(-1, 1, 50), 60)
    for rows, marks in (([good], 0), ([good, bad], 2)):
        told = mark(captions, pd.DataFrame(rows))
        page = write_report(
            tmp_path, title="t", scores=scores, captions=told, controls=pd.DataFrame(rows), progress=False
        ).read_text()
        said = "The best caption is not above its control: no better than shuffled weights (round trip)."
        assert page.count(said) == marks
        assert BETTER in page
        written = pd.read_csv(tmp_path / "captions.csv", keep_default_na=False)
        assert written["control"].tolist() == ["no better than shuffled weights (round trip)" if marks else ""] * 2
