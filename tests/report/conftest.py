"""A synthetic analysis of the size of a small study: 9 ROIs on fsaverage5, 300 voxels, captions, images."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from neuroenc.data import Stimuli

# Rough MNI centres (mm, right hemisphere), the word that voxels prefer, and how well they are predicted.
REGIONS = {
    "V1": ((10, -90, 2), "bright light", 0.62),
    "V2": ((16, -88, -8), "striped wall", 0.58),
    "hV4": ((28, -76, -12), "colourful toy", 0.50),
    "OFA": ((38, -80, -8), "face", 0.46),
    "FFA": ((40, -52, -20), "face", 0.55),
    "EBA": ((48, -70, 4), "dancer", 0.52),
    "PPA": ((26, -44, -10), "kitchen", 0.57),
    "RSC": ((16, -54, 12), "street", 0.44),
    "VWFA": ((44, -58, -14), "sign", 0.40),
}
THINGS = ["on a table", "near a window", "under a red sky", "beside a dog", "in the rain", "at night"]


def _patches(rng):
    nilearn_datasets = pytest.importorskip("nilearn.datasets")
    surface = pytest.importorskip("nilearn.surface")
    files = nilearn_datasets.fetch_surf_fsaverage("fsaverage5")
    place, names = [], []
    for hemi, sign in (("L", -1), ("R", 1)):
        mesh = surface.load_surf_mesh(files["pial_" + {"L": "left", "R": "right"}[hemi]])
        for name, (centre, _, _) in REGIONS.items():
            n = 17 if name == "V1" else 16 if name in ("V2", "FFA", "PPA", "EBA", "hV4") else 18
            distance = np.linalg.norm(mesh.coordinates - np.array(centre) * [sign, 1, 1], axis=1)
            for vertex in np.argsort(distance)[:n]:
                place.append((hemi, int(vertex)))
                names.append(name)
    table = pd.DataFrame({"hemi": [h for h, _ in place], "vertex": [v for _, v in place], "roi": names})
    table = table.groupby(["hemi", "vertex"], sort=False)["roi"].agg(";".join).reset_index()
    outside = pd.DataFrame({"hemi": "R", "vertex": rng.choice(10242, 24, replace=False), "roi": ""})
    return pd.concat([table, outside]).drop_duplicates(["hemi", "vertex"]).head(300).reset_index(drop=True)


@pytest.fixture(scope="session")
def analysis():
    """Everything that write_report takes, as attributes."""
    rng = np.random.default_rng(7)
    table = _patches(rng)
    n = len(table)
    main = table["roi"].str.split(";").str[0]
    level = np.array([REGIONS[x][2] if x else 0.1 for x in main])
    ceiling = np.clip(level + 0.17 + 0.12 * rng.standard_normal(n), 0.08, 0.97)
    r = np.clip(ceiling * np.clip(0.84 + 0.12 * rng.standard_normal(n), -0.2, 1.05), -0.1, None)
    p = np.clip(np.exp(-40 * np.clip(r, 0, None)) * rng.random(n), 1e-4, 1)
    described = {"metric": "Pearson r", "split": "held-out stimuli", "n_stimuli": 120}
    scores = xr.Dataset(
        {
            "r": ("voxel", r.astype("float32"), described),
            "noise_ceiling_r": ("voxel", ceiling.astype("float32"), {"ceiling": "r_max from 3 repeats"}),
            "r_normalised": ("voxel", (r / ceiling).astype("float32")),
            "p_value": ("voxel", p),
            "q_value": ("voxel", np.minimum(p * 1.4, 1)),
            "alpha": ("voxel", 10.0 ** rng.integers(0, 4, n)),
        },
        coords={
            "voxel": np.arange(1000, 1000 + n),
            "roi": ("voxel", table["roi"].to_numpy().astype(str)),
            "vertex": ("voxel", table["vertex"].to_numpy(np.int64)),
            "hemi": ("voxel", table["hemi"].to_numpy().astype(str)),
        },
        attrs={"space": "fsaverage5"},
    )
    ids = np.array([f"scene-{k:03d}" for k in range(60)])
    yy, xx = np.mgrid[:64, :64] / 63
    images = np.stack([_picture(xx, yy, rng) for _ in ids])
    stimuli = Stimuli(ids, images, captions=[["a scene"]] * len(ids))
    rows, shown = [], []
    for v in range(n):
        if p[v] * 1.4 > 2e-4 or r[v] < 0.4:
            continue
        word = REGIONS[main[v]][1] if main[v] else "thing"
        best = rng.choice(ids, 6, replace=False)
        for rank in range(3):
            text = f"a {word} {THINGS[rng.integers(len(THINGS))]}" if rng.random() < 0.9 else "an empty room"
            rows.append((1000 + v, rank, text, 0.34 - 0.02 * rank + 0.03 * rng.random(), ";".join(best[:3])))
        shown += [(1000 + v, k, s, 2.4 - 0.2 * k + 0.1 * rng.random()) for k, s in enumerate(best)]
    captions = pd.DataFrame(rows, columns=["voxel", "rank", "caption", "score", "evidence"])
    evidence = pd.DataFrame(shown, columns=["voxel", "rank", "stimulus", "predicted"])
    controls = pd.DataFrame(
        {
            "control": ["own weights", "weights shuffled over voxels", "caption bank shuffled"],
            "family_accuracy": [0.91, 0.19, 0.21],
            "median_r": [0.49, 0.004, float("nan")],
        }
    )
    return SimpleNamespace(
        title="Voxel captions of a simulated cortex",
        subject="subject 01",
        scores=scores,
        captions=captions,
        evidence=evidence,
        stimuli=stimuli,
        controls=controls,
        summary={"median_r": 0.49, "caption_family_accuracy": 0.91, "n_voxels": n, "seconds": 84.2},
        settings={"backbone": "world", "ridge": {"alphas": [1, 10, 100], "folds": 5}, "seed": 0},
        notes=[
            "The cortex is simulated: preferences were planted, so accuracy here says nothing about real brains.",
            "Captions come from a bank of 1,200 sentences; a preference that no sentence names cannot be found.",
        ],
        progress=False,
    )


def _picture(xx, yy, rng):
    """Sky, ground and a disc: enough for a thumbnail to look like something."""
    sky, ground, thing = rng.integers(30, 255, (3, 3))
    horizon = rng.uniform(0.45, 0.75)
    picture = np.where((yy < horizon)[..., None], sky, ground) * (0.75 + 0.25 * yy[..., None])
    x, y, size = *rng.uniform(0.25, 0.75, 2), rng.uniform(0.12, 0.28)
    picture[(xx - x) ** 2 + (yy - y) ** 2 < size**2] = thing
    return picture.clip(0, 255).astype(np.uint8)
