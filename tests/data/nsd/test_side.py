"""NSD-synthetic and NSD-imagery beside a miniature of NSD: order of trials, tasks, targets, pictures, refusals."""

from __future__ import annotations

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy.io import savemat

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.data.datasets._nsd._side import _RUNS

RUN = {"progress": False, "cache": False}


def write_betas(root, stem, n, ending, seed):
    """Whole numbers (x, y, z, trial) beside NSD's own betas, and what they stand for in percent."""
    place = root / "nsddata_betas" / "ppdata" / "subj01" / "func1pt8mm"
    image = nib.load(root / "nsddata" / "ppdata" / "subj01" / "func1pt8mm" / "brainmask.nii.gz")
    values = np.random.default_rng(seed).integers(-900, 900, (*image.shape, n)).astype(np.int16)
    folder = place / f"{stem}betas_fithrf_GLMdenoise_RR"
    folder.mkdir()
    if ending == "hdf5":
        with h5py.File(folder / f"betas_{stem}.hdf5", "w") as handle:
            handle["betas"] = values.T
    else:
        nib.save(nib.Nifti1Image(values, image.affine), folder / f"betas_{stem}.nii.gz")
    return values / 300


@pytest.fixture
def synthetic(own):
    """Eight runs of five trials over 7 pictures, the last two in the subject's own colours."""
    order = np.random.default_rng(0).permutation(np.repeat([1, 2, 3, 4, 220, 221, 284, 284], 5))
    pattern = np.zeros((1, 8, 7), np.uint8)
    pattern[0, :, [0, 2, 3, 5, 6]] = 1
    folder = own / "nsddata" / "experiments" / "nsdsynthetic"
    folder.mkdir()
    savemat(folder / "nsdsynthetic_expdesign.mat", {"masterordering": order[None], "stimpattern": pattern})
    pictures = own / "nsddata_stimuli" / "stimuli" / "nsdsynthetic"
    pictures.mkdir()
    for name, n in (("stimuli", 220), ("colorstimuli_subj01", 64)):
        with h5py.File(pictures / f"nsdsynthetic_{name}.hdf5", "w") as handle:
            brick = np.arange(n, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 3, 3), np.uint8)
            handle["imgBrick"] = brick + np.uint8(100 if "color" in name else 0)
    return own, order, write_betas(own, "nsdsynthetic", 40, "hdf5", 1)


def test_synthetic_pictures_in_the_order_of_the_design(synthetic):
    root, order, values = synthetic
    found = data.load_dataset("nsd-synthetic", root=root, zscore=False, voxels="V1", images=True, **RUN)
    r = found.responses
    np.testing.assert_allclose(r.values, values[r.i.values, r.j.values, r.k.values].T, rtol=1e-5)
    assert r.stimulus.values.tolist() == [f"synthetic{n:03d}" for n in order]
    assert r.run.values.tolist() == np.repeat(np.arange(1, 9), 5).tolist()
    assert all("V1" in name for name in r.roi.values.tolist())
    assert found.extra["trials"]["task"].tolist() == ["fixation"] * 5 + ["memory"] * 5 + ["fixation"] * 5 + (
        ["memory"] * 5 + ["fixation"] * 5 + ["memory"] * 5 + ["fixation"] * 5 + ["memory"] * 5
    )
    assert found.stimuli.table["own"].tolist() == [False] * 5 + [True] * 2
    shown = [int(np.asarray(found.stimuli.image(f"synthetic{n:03d}"))[0, 0, 0]) for n in (1, 220, 221, 284)]
    assert shown == [0, 219, 100, 163]
    data.validate(found)
    z = data.load_dataset("nsd-synthetic", root=root, voxels="V1", repeats="average", **RUN).responses
    assert z.dims == ("stimulus", "voxel")
    assert z.sizes["stimulus"] == 7
    assert "nsd-synthetic" in [f.kind for f in data.describe(root)]


def test_a_design_of_another_session_is_refused(synthetic):
    root, order, _ = synthetic
    path = root / "nsddata" / "experiments" / "nsdsynthetic" / "nsdsynthetic_expdesign.mat"
    savemat(path, {"masterordering": order[None, :35], "stimpattern": np.ones((1, 7, 5), np.uint8)})
    with pytest.raises(DataError, match="holds 40 betas, the design 35"):
        data.load_dataset("nsd-synthetic", root=root, **RUN)
    with pytest.raises(DataError, match="nsdsyntheticbetas_fithrf/betas_nsdsynthetic"):
        data.load_dataset("nsd-synthetic", root=root, betas="b2", **RUN)
    with pytest.raises(ConfigError, match="unknown version of the betas"):
        data.load_dataset("nsd-synthetic", root=root, betas="b1", **RUN)


@pytest.fixture
def imagery(own):
    rng = np.random.default_rng(2)
    experiment, behaviour = (own / "nsddata" / x / "nsdimagery" for x in ("experiments", "bdata"))
    experiment.mkdir()
    behaviour.mkdir(parents=True)
    shown = {}
    for s in "ABC":
        pairs = np.empty((6, 3), dtype=object)
        for k in range(6):
            pairs[k] = [k + 1, f"target{s}{k + 1}.png", f"code{(k + 3) % 6}"]
        savemat(experiment / f"{s}_pair_list.mat", {"pair_list": pairs})
    for run in _RUNS:
        codes = rng.permutation(np.repeat(np.arange(6), 8))
        shown[run] = [f"{run[3]}{(c - 3) % 6 + 1}" for c in codes]
        other = rng.permutation(codes)
        columns = ("CONDITION", "CUE") if run.startswith("vis") else ("CUE", "CONDITION")
        table = pd.DataFrame({"TRIAL": np.arange(1, 49), columns[0]: codes, columns[1]: other})
        table[list(columns)] = "code" + table[list(columns)].astype(str)
        # Rows in another order: the number of the trial decides.
        table.sample(frac=1, random_state=1).to_csv(behaviour / f"nsdimagery_subj01_{run}.tsv", sep="\t", index=False)
    return own, shown, write_betas(own, "nsdimagery", 720, "nii.gz", 3)


def test_seen_and_imagined_targets_share_their_ids_and_attention_is_stepped_over(imagery):
    root, shown, values = imagery
    found = data.load_dataset("nsd-imagery", root=root, zscore=False, voxels="V1", **RUN)
    r = found.responses
    rows, ids, first = [], [], 0
    for run in _RUNS:
        if not run.startswith("att"):
            rows += range(first, first + 48)
            ids += shown[run]
        first += 96 if run.startswith("att") else 48
    assert first == 720
    assert r.stimulus.values.tolist() == ids
    np.testing.assert_allclose(r.values, values[r.i.values, r.j.values, r.k.values].T[rows], rtol=1e-5)
    counts = found.extra["trials"].groupby(["task", "stimulus"]).size().unstack(0)
    assert set(counts["vision"]) == {8}
    assert set(counts["imagery"]) == {16}
    one = data.load_dataset("nsd-imagery", root=root, voxels="V1", task="imagery", sets="A", **RUN)
    assert set(one.responses.run.values) == {3, 10}
    assert one.stimuli.table.loc["A1", "target"] == "targetA1.png"
    np.testing.assert_allclose(one.responses.groupby("run").std(), 1, rtol=1e-3)
    with pytest.raises(ConfigError, match="task of NSD-imagery 'attention'"):
        data.load_dataset("nsd-imagery", root=root, task="attention", **RUN)


def test_trials_that_do_not_fit_are_named(imagery):
    path = imagery[0] / "nsddata" / "bdata" / "nsdimagery" / "nsdimagery_subj01_visB.tsv"
    table = pd.read_csv(path, sep="\t")
    table.assign(CONDITION="codeX").to_csv(path, sep="\t", index=False)
    with pytest.raises(DataError, match="visB of subj01 names 'codeX'"):
        data.load_dataset("nsd-imagery", root=imagery[0], **RUN)
    table.iloc[:40].to_csv(path, sep="\t", index=False)
    with pytest.raises(DataError, match="40 trials; expected 48"):
        data.load_dataset("nsd-imagery", root=imagery[0], **RUN)
