"""Claims about images that stand for captions (Luo et al., BrainSCUBA, ICLR 2024; LaVCa, ICLR 2026), simulated cortex.

Fixed before the figures were looked at: images retrieved by captions of selective regions, and their voxels' best
images, are assigned to the region's category with a mean five-way accuracy above .6, those of shuffled weights within
.1 of chance (.2); the image-level score of captions on held-out stimuli is above that of other voxels' captions
(p < .05, its interval above their mean); where regions mean nothing, p of the accuracy is below .05 in 2 to 9 % of 300
cases.
"""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

pytest.importorskip("torch")
pytestmark = pytest.mark.slow

SEED = 23


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    from neuroenc.study import Study, example_config

    sets = [f"seed={SEED}", "data.options.n_subjects=1", "data.options.n_voxels=300"]
    sets += [f"captions.stability.{kind}=0" for kind in ("folds", "bootstraps", "halves")]
    sets += ["captions.grounding.enabled=false", "captions.analysis.images=retrieve"]
    config = example_config("world", sets, "caption")
    return Study(config, tmp_path_factory.mktemp("steps"), progress=False).until("check").captions


def test_images_of_selective_regions_show_their_category(checked):
    table = checked.quality["five-way accuracy"]
    mean = table[table["roi"] == "all"].set_index("kind")["accuracy"]
    assert mean["evidence"] > 0.6
    assert mean["caption"] > 0.6
    assert abs(mean["shuffled weights"] - 0.2) < 0.1


def test_images_of_captions_rank_held_out_stimuli_as_responses_do(checked):
    row = checked.quality["sentence-level scores"].set_index("kind").loc["image"]
    assert row["low"] > row["mean_shuffled"]
    assert row["p"] < 0.05
    assert row["p_shuffled_within_roi"] < 0.05


def test_p_is_nominal_where_regions_mean_nothing():
    from neuroenc.captions import category_accuracy

    names = ["face", "place", "body", "word", "food"]
    rng, small = np.random.default_rng(SEED), {}
    for _ in range(300):
        ids = [f"s{k}" for k in range(40)]
        vectors = xr.DataArray(rng.standard_normal((40, 5)), dims=("stimulus", "feature"), coords={"stimulus": ids})
        rois = rng.choice(["FFA", "PPA", "EBA", "VWFA", "food", "V1"], 90)
        images = pd.DataFrame({"voxel": np.repeat(np.arange(90), 3), "stimulus": rng.choice(ids, 270)})
        found = category_accuracy(
            images.assign(roi=np.repeat(rois, 3)),
            vectors,
            lambda texts: np.eye(5)[[next(k for k, n in enumerate(names) if n in t) for t in texts]],
            categories={name: [name] for name in names},
            n_permutations=199,
            n_bootstraps=2,
            seed=int(rng.integers(2**31)),
        )
        for roi, p in zip(found["roi"], found["p"]):
            small.setdefault(roi, []).append(p < 0.05)
    for roi in ("FFA", "all"):
        assert 0.02 <= np.mean(small[roi]) <= 0.09, (roi, np.mean(small[roi]))
