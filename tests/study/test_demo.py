"""The demo, small: files that a new process reads, and numbers that say what they are about."""

import json

import numpy as np
import pandas as pd
import pytest

from neuroenc import data
from neuroenc.study import Study, demo
from neuroenc.study._demo import demo_config

pytest.importorskip("torch")

SCORE = """
import json, sys
import numpy as np
from neuroenc import data, stats
from neuroenc.encoders import load_encoder
encoder = load_encoder(sys.argv[1])
X, Y = data.load(sys.argv[2]), data.load(sys.argv[3])
print(json.dumps(stats.score(Y.values, np.asarray(encoder.predict(X.values)), metric="r").tolist()))
"""


@pytest.mark.slow
def test_the_saved_encoder_scores_what_the_demo_scored(tmp_path, fresh):
    """In a new process, on the demo's own test scenes, with the features that the encoder says it takes."""
    out, n_train, n_test = tmp_path / "out", 300, 60
    summary = demo(out, n_train=n_train, n_test=n_test, n_bank=200, progress=False, say=lambda _: None)
    rows = Study(demo_config(0, n_train, n_test, 200), out, progress=False).until("weights").fitted.rows[0]
    data.save(rows.X_test, tmp_path / "x.nc")
    data.save(rows.Y_test, tmp_path / "y.nc")
    r = np.array(fresh(SCORE, out / "encoder", tmp_path / "x.nc", tmp_path / "y.nc"))
    scores = data.load(out / "report" / "scores.nc")
    np.testing.assert_allclose(r, scores["r"].values, atol=1e-4)

    # Every number names the voxels that it is about.
    assert summary["median_r"] == pytest.approx(np.median(r), abs=1e-4)
    assert summary["n_voxels"] == len(r) > summary["n_voxels_selective"] > summary["n_voxels_judged"]
    assert summary["selective_median_r"] > summary["median_r"]
    captions = pd.read_csv(out / "report" / "captions.csv")
    passed = scores["voxel"].values[(scores["q_value"].values < 0.05) & (r > 0)]
    assert sorted(captions["voxel"].unique()) == sorted(passed)
    assert summary["n_captioned"] == len(passed) < len(r)
    assert json.loads((out / "summary.json").read_text())["judged_caption_family_accuracy"] > 0.5
