"""LAION-fMRI on a miniature in the bucket's layout: trials, ceilings, regions, packed pictures, refusals."""

from __future__ import annotations

import io

import h5py
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError

AFFINE = np.diag([1.778, 1.778, 1.778, 1.0])
SHAPE = (3, 3, 2)


def laion_fmri_tree(root, n_sessions=2, n_trials=8, seed=0):
    """One subject: betas (x, y, z, trial) of every session, the pictures they show, and where the brain is."""
    rng = np.random.default_rng(seed)
    folder = root / "derivatives" / "glmsingle-tedana" / "sub-03"
    brain = np.ones(SHAPE, dtype=np.uint8)
    brain[0, 0] = 0
    ceiling = rng.uniform(0, 80, SHAPE).astype(np.float32)
    values, shown = {}, {}
    names = ["shared_12rep_LAION_1_i0.jpg", "shared_4rep_OOD_2.png", "sub-03_LAION_3_i1.jpg", "sub-03_THINGS_4.jpg"]

    def save(array, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, AFFINE), path)

    save(brain, folder / "sub-03_task-images_space-T1w_desc-meanR2gt15mask_mask.nii.gz")
    save(ceiling, folder / "sub-03_task-images_space-T1w_desc-Noiseceiling12rep_statmap.nii.gz")
    rois = root / "derivatives" / "atlases" / "sub-03" / "rois"
    save((np.arange(18).reshape(SHAPE) % 3 == 0).astype(np.uint8), rois / "hV4.nii.gz")
    for n in range(1, n_sessions + 1):
        ses = f"ses-{n:02d}"
        betas = rng.standard_normal((*SHAPE, n_trials)).astype(np.float32)
        betas[2, 2, 1] = np.nan if n == 2 else betas[2, 2, 1]
        stem = folder / ses / "func" / f"sub-03_{ses}_task-images"
        save(betas, stem.with_name(f"{stem.name}_space-T1w_stat-effect_desc-SingletrialBetas_statmap.nii.gz"))
        shown[n] = rng.permutation(np.tile(names, n_trials // 4)).tolist()
        trials = {"session": ses, "run": [f"run-{1 + k // 4:02d}" for k in range(n_trials)]}
        table = pd.DataFrame({**trials, "beta_index": range(n_trials), "label": shown[n]})
        table.to_csv(stem.with_name(f"{stem.name}_desc-SingletrialBetas_trials.tsv"), sep="\t", index=False)
        values[n] = betas
    stimuli = root / "stimuli"
    stimuli.mkdir()
    order = [names[2], names[0], names[3], names[1]]
    kinds = ["shared" if name.startswith("shared") else "unique" for name in order]
    meta = {"image_name": order, "dataset": "LAION", "participant": "sub-03", "unique_or_shared": kinds, "n_reps": 4}
    pd.DataFrame(meta).to_csv(stimuli / "task-images_metadata.csv", index=False)
    with h5py.File(stimuli / "task-images_stimuli.h5", "w") as handle:
        images = handle.create_dataset("images", (4,), dtype=h5py.vlen_dtype(np.uint8))
        for k, name in enumerate(order):
            buffer = io.BytesIO()
            kind = "PNG" if name.endswith("png") else "JPEG"
            Image.fromarray(np.full((8, 8, 3), 40 * k, np.uint8)).save(buffer, kind)
            images[k] = np.frombuffer(buffer.getvalue(), dtype=np.uint8)
    return {"values": values, "shown": shown, "brain": brain > 0, "ceiling": ceiling, "order": order}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("laion")
    return root, laion_fmri_tree(root)


def test_betas_trials_and_ceilings(tree, load):
    root, made = tree
    with pytest.warns(UserWarning, match="1 of 16 voxels of sub-03 have no betas"):
        found = load("laion-fmri", root, subject=3, zscore=False)
    r = found.responses
    places = r.i.values, r.j.values, r.k.values
    expected = np.concatenate([made["values"][n][places].T for n in (1, 2)])
    np.testing.assert_allclose(r.values, expected, rtol=1e-6)
    assert r.sizes["voxel"] == made["brain"].sum() - 1
    assert r.stimulus.values.tolist() == [x.rsplit(".", 1)[0] for n in (1, 2) for x in made["shown"][n]]
    assert r.session.values.tolist() == [1] * 8 + [2] * 8
    assert r.run.values[:8].tolist() == [1] * 4 + [2] * 4
    nc = 100 * r.ncsnr**2 / (r.ncsnr**2 + 1 / 12)
    np.testing.assert_allclose(nc, made["ceiling"][places], rtol=1e-4)
    assert set(r.roi.values) == {"", "hV4"}
    assert sorted(found.extra["splits"]["shared"]) == ["shared_12rep_LAION_1_i0", "shared_4rep_OOD_2"]
    assert found.stimuli.images is None
    data.validate(found)
    assert [f.kind for f in data.describe(root)] == ["laion-fmri"]


def test_regions_sessions_and_pictures(tree, load, tmp_path):
    root, made = tree
    found = load("laion-fmri", root, subject="sub-03", voxels="hV4", sessions=1, repeats="average", pictures=tmp_path)
    assert found.responses.sizes["voxel"] == 6
    assert set(found.responses.roi.values) == {"hV4"}
    for k, name in enumerate(made["order"]):
        assert abs(int(np.asarray(found.stimuli.image(name.rsplit(".", 1)[0]))[0, 0, 0]) - 40 * k) <= 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(made["order"])


def test_refusals(tmp_path, load):
    laion_fmri_tree(tmp_path, n_sessions=1)
    with pytest.raises(DataError, match="lacks betas of sub-01; it has sub-03"):
        load("laion-fmri", tmp_path)
    with pytest.raises(ConfigError, match="unknown region of LAION-fMRI 'hV5'; did you mean 'hV4'"):
        load("laion-fmri", tmp_path, subject=3, voxels="hV5")
    func = tmp_path / "derivatives" / "glmsingle-tedana" / "sub-03" / "ses-01" / "func"
    path = next(func.glob("*trials.tsv"))
    table = pd.read_csv(path, sep="\t")
    table.assign(label="other.jpg").to_csv(path, sep="\t", index=False)
    with pytest.raises(DataError, match="which trials name"):
        load("laion-fmri", tmp_path, subject=3)
    table.iloc[:-1].to_csv(path, sep="\t", index=False)
    with pytest.raises(DataError, match="names 7 trials, the betas beside it are of 8"):
        load("laion-fmri", tmp_path, subject=3)
