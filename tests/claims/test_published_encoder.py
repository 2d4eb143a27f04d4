"""Claims about the encoder that BrainSCUBA published (Luo et al., ICLR 2024), on simulated cortex.

Fixed before the figures were looked at: with the published settings gradient descent predicts held-out responses
better than closed-form ridge with a penalty of its own for each voxel (median r), and augmented copies of the training
pictures better than the pictures themselves.
"""

import numpy as np
import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def median_r(tmp_path_factory):
    """Median held-out r of a cortex of 300 voxels and 1200 pictures, by encoder."""
    from neuroenc.study import Study, example_config

    folder, found = tmp_path_factory.mktemp("steps"), {}
    sets = ["seed=23", "data.options.n_subjects=1", "data.options.n_voxels=300", "evaluation.permutations=0"]
    sets += ["captions.gate.kind=none"]
    more = {"ridge": [], "plain": ["captions.encoder.augment=0"], "augmented": []}
    for name, own in more.items():
        own = own if name == "ridge" else ["captions.encoder.kind=adamw", *own]
        config = example_config("world", [*sets, *own], "caption")
        scores = Study(config, folder, progress=False).until("weights").fitted.scores
        found[name] = float(np.nanmedian(scores["r"].values))
    return found


def test_published_descent_predicts_responses(median_r):
    assert median_r["augmented"] > 0.3


@pytest.mark.xfail(strict=True, reason="median r .502, ridge .521")
def test_published_descent_predicts_better_than_ridge(median_r):
    assert median_r["augmented"] > median_r["ridge"], median_r


@pytest.mark.xfail(strict=True, reason="median r .502 with copies, .503 without")
def test_augmented_copies_help(median_r):
    assert median_r["augmented"] > median_r["plain"] + 0.005, median_r
