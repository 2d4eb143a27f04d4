"""Controls of captions tell fitted weights from shuffled ones where there is something to tell, and say so."""

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.report import write_report
from neuroenc.workflows._caption_controls import BETTER, compared, mark, round_trip_control, sentence_control


def planted(n=120, v=30, f=8, seed=0):
    """Stimuli, responses that follow a planted direction of each voxel, and other directions."""
    rng = np.random.default_rng(seed)
    s, c, other = rng.standard_normal((n, f)), rng.standard_normal((v, f)), rng.standard_normal((v, f))
    y = s @ c.T + 4 * rng.standard_normal((n, v))
    ids = [f"s{k}" for k in range(n)]
    return (
        xr.DataArray(s, dims=("stimulus", "feature")),
        xr.DataArray(y, dims=("stimulus", "voxel"), coords={"stimulus": ids}),
        c,
        other,
    )


def test_captions_that_order_the_stimuli_pass_and_others_fail():
    s, y, c, other = planted()
    row = sentence_control(c, other, s, y, 0)
    assert row["verdict"] == BETTER
    assert row["fitted weights"] > 0.2 > abs(row["shuffled weights"])
    assert row["low"] < row["difference"] < row["high"]
    failed = sentence_control(other, np.roll(other, 1, axis=0), s, y, 0)
    assert failed["verdict"] == "no better than shuffled weights"


def test_noise_passes_at_the_rate_of_its_interval():
    """Directions that have nothing to do with the responses, whichever is called fitted."""
    passed = 0
    for seed in range(40):
        s, y, _, other = planted(n=40, v=10, seed=seed)
        passed += sentence_control(other, np.roll(other, 1, axis=0), s, y, seed)["verdict"] == BETTER
    assert passed <= 4


def test_repeats_of_a_stimulus_count_once():
    s, y, c, other = planted()
    twice = np.r_[np.arange(120), np.arange(120)]
    assert sentence_control(c, other, s[twice], y[twice], 0) == sentence_control(c, other, s, y, 0)


def test_round_trip_and_too_few_voxels():
    rng = np.random.default_rng(0)
    coef, corpus = rng.standard_normal((8, 12)), rng.standard_normal((300, 8))
    row = round_trip_control(coef, coef.T, rng.standard_normal((12, 8)), corpus, 0)
    assert row["verdict"] == BETTER
    assert row["fitted weights"] > 0.9
    assert round_trip_control(coef[:, :1], coef.T[:1], corpus[:1], corpus, 0)["verdict"].startswith("too few")


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
