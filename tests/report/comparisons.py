"""Synthetic comparisons in the shapes that `neuroenc.encoders.comparison` gives, for tests of their page."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.report._regions import groups_of
from neuroenc.stats import median_samples, sample_interval

LAYERS = ("early", "middle", "late")
READOUTS = ("linear", "pooled", "gaussian", "factorized", "semantic")
ROIS = {"V1": 0.1, "V2": 0.2, "V4": 0.45, "LOC": 0.7, "PPA": 0.85, "FFA": 0.9}
GAIN = {"linear": 0.0, "pooled": -0.06, "gaussian": 0.01, "factorized": 0.03, "semantic": 0.05}


def cortex(n, rng):
    """Voxel coordinates on fsaverage5: a patch around a seed vertex for each region and hemisphere."""
    from neuroenc.report.brain._mesh import inflated_mesh

    per = max(1, n // (2 * len(ROIS)))
    names, hemis, vertices = [], [], []
    for hemi in "LR":
        xyz = inflated_mesh(hemi)[0]
        back = np.argsort(xyz[:, 1])[:3000]
        seeds = xyz[rng.choice(back, len(ROIS), replace=False)]
        taken = np.zeros(len(xyz), bool)
        for roi, seed in zip(ROIS, seeds):
            near = np.argsort(((xyz - seed) ** 2).sum(1) + 1e9 * taken)[:per]
            taken[near] = True
            names += [roi] * per
            hemis += [hemi] * per
            vertices += near.tolist()
    return {"roi": ("voxel", names), "hemi": ("voxel", hemis), "vertex": ("voxel", vertices)}


def interval(samples, estimate):
    """Of the median over voxels, as `compare` has it, over 200 stimuli."""
    return map(float, sample_interval(median_samples(samples, estimate), np.nanmedian(estimate), n_units=200))


def build(n_voxels=240, layers=LAYERS, readouts=READOUTS, place="surface", seed=0, n_resamples=200):
    """What `comparison_sections` takes and a page says of itself, from planted scores and their resamples."""
    rng = np.random.default_rng(seed)
    if place == "surface":
        coords = cortex(n_voxels, rng)
        n_voxels = len(coords["roi"][1])
    else:
        coords = {"roi": ("voxel", np.array(list(ROIS))[np.arange(n_voxels) % len(ROIS)].tolist())}
        if place == "animals":
            coords = {
                "animal": ("voxel", np.repeat(["monkey one", "monkey two"], [n_voxels // 2, -(-n_voxels // 2)])),
                "session": ("voxel", [f"session {1 + k % 4}" for k in range(n_voxels)]),
            }
        if place == "volume":
            coords |= {a: ("voxel", x) for a, x in zip("ijk", np.unravel_index(np.arange(n_voxels) * 3, (12, 14, 9)))}
    depth = np.array([ROIS[x] for x in coords["roi"][1]]) if "roi" in coords else rng.random(n_voxels)
    cells = [f"{layer}/{readout}" for layer in layers for readout in readouts]
    base = rng.uniform(0.25, 0.6, n_voxels)
    own = rng.normal(0, 0.02, (len(cells), n_voxels))
    truth = (
        np.stack(
            [
                base - 0.25 * np.abs(depth - k / max(1, len(layers) - 1)) + GAIN.get(readout, 0.0) * (0.5 + depth)
                for k in range(len(layers))
                for readout in readouts
            ]
        )
        + own
    )
    samples = (
        truth[:, None]
        + 0.5 * rng.normal(0, 0.06, (1, n_resamples, n_voxels))
        + rng.normal(0, 0.015, (len(cells), n_resamples, n_voxels))
    )
    truth[:, :3] = np.nan
    samples[..., :3] = np.nan
    scores = xr.Dataset(
        {"r": (("cell", "voxel"), truth), "r_normalised": (("cell", "voxel"), truth / 0.7)},
        coords={"cell": cells, "voxel": np.arange(n_voxels), **coords},
        attrs={"affine": np.diag([3.0, 3, 3, 1]).ravel(), "volume_shape": [12, 14, 9]} if place == "volume" else {},
    )
    masks = [("all", "all", np.ones(n_voxels, bool))]
    for kind in ("roi", "animal", "session"):
        if kind in scores.coords:
            values = scores[kind].values
            masks += [(kind, str(x), values == x) for x in dict.fromkeys(values.tolist())]
    rows, pairs = [], []
    for k, cell in enumerate(cells):
        layer, readout = cell.split("/")
        for kind, name, mask in masks:
            low, high, _ = interval(samples[k][:, mask], truth[k, mask])
            rows.append(
                {
                    "cell": cell,
                    "kind": kind,
                    "group": name,
                    "n_voxels": int(np.isfinite(truth[k, mask]).sum()),
                    "median_r": np.nanmedian(truth[k, mask]),
                    "low": low,
                    "high": high,
                    "median_r_normalised": np.nanmedian(truth[k, mask]) / 0.7,
                    "n_train": 800,
                    "n_validation": 160,
                    "n_test": 200,
                    "features": layer,
                    "core": "",
                    "readout": readout,
                    "n_candidates": 3,
                    "n_parameters": 50 * n_voxels * (1 + READOUTS.index(readout)) if readout in READOUTS else 10,
                    "best_epoch": np.nan if readout in ("linear", "pooled") else 17.0,
                    "seconds": 12.0 + 100 * k,
                    "seconds_per_fit": 0.8 + 7 * k,
                }
            )
    p_of = {}
    for a, b in itertools.combinations(range(len(cells)), 2):
        difference = truth[a] - truth[b]
        drawn = samples[a] - samples[b]
        p_of[a, b] = 2 * np.minimum((drawn > 0).mean(0), (drawn < 0).mean(0)).clip(1 / n_resamples, 0.5)
        for kind, name, mask in masks:
            low, high, p = interval(drawn[:, mask], difference[mask])
            pairs.append(
                {
                    "a": cells[a],
                    "b": cells[b],
                    "kind": kind,
                    "group": name,
                    "n_voxels": int(mask.sum()),
                    "median_difference": np.nanmedian(difference[mask]),
                    "low": low,
                    "high": high,
                    "p": p,
                    "share_a": 0.4,
                    "share_b": 0.2,
                    "q": p,
                }
            )
    filled = np.where(np.isfinite(truth), truth, -9)
    best = filled.argmax(0)
    worst = np.full(n_voxels, 0.0)
    for (a, b), p in p_of.items():
        worst = np.where((best == a) | (best == b), np.maximum(worst, p), worst)
    names = np.array([*cells, "tie", ""])
    found = np.where(np.isnan(truth[0]), len(cells) + 1, np.where(worst < 0.05, best, len(cells)))
    winner = xr.Dataset({"winner": ("voxel", names[found])}, coords={"voxel": np.arange(n_voxels)})
    curves = pd.DataFrame(
        [
            {
                "cell": cell,
                "fold": fold,
                "group": 0,
                "candidate": c,
                "epoch": e,
                "loss": 1 / e,
                "validation_r": 0.3 * (1 - np.exp(-e / (3 + c))) - 0.004 * max(0, e - 14) + 0.005 * rng.normal(),
            }
            for cell in cells
            if cell.split("/")[1] not in ("linear", "pooled")
            for fold in range(3)
            for c in range(2)
            for e in range(1, 21)
        ]
    )
    regions = []
    for shift in (0.0, 0.12):
        r = np.stack([base - 0.3 * depth, base - 0.3 * np.abs(depth - 0.55), base - 0.3 * (1 - depth) - shift])
        r[:, :3] = np.nan
        label = np.array(["vision", "dense", "single"])[np.where(np.isfinite(r), r, -9).argmax(0)]
        ordered = np.sort(r, axis=0)
        label = np.where(ordered[-1] - ordered[-2] < 0.03, "not separable", label)
        label[:3] = ""
        regions.append(xr.Dataset({"region": ("voxel", label), "r": (("space", "voxel"), r)}))
    regions = xr.concat(regions, dim=xr.DataArray(["linear", "semantic"], dims="readout", name="readout"))
    labels = regions["region"].values
    regions["agreement"] = ("voxel", labels[0] == labels[1])
    regions = regions.assign_coords(voxel=np.arange(n_voxels)).assign_attrs(vision="late", dense="grid", single="text")
    semantic = truth[[cells.index(f"{layer}/{readouts[-1]}") for layer in layers]]
    position = np.where(np.isfinite(semantic), semantic, -9).argmax(0) / max(1, len(layers) - 1)
    position[:3] = np.nan
    layer_map = xr.Dataset(
        {"r": (("layers", "voxel"), semantic), "position": ("voxel", position)},
        coords={"layers": list(layers), "voxel": np.arange(n_voxels)},
        attrs={"readout": "semantic"},
    )
    spread = np.full((len(cells), n_voxels), np.nan)
    for k, cell in enumerate(cells):
        if cell.endswith("semantic"):
            spread[k] = 0.1 + 0.4 * depth + 0.03 * rng.random(n_voxels)
    warp = xr.Dataset(
        {"warp_shift": (("cell", "voxel"), spread), "warp_scale": (("cell", "voxel"), spread / 3)},
        coords={"cell": cells, "voxel": np.arange(n_voxels)},
    )
    inner = {c: float(np.nanmedian(truth[k])) for k, c in enumerate(cells)}
    ranked = sorted(cells, key=lambda c: -inner[c])
    return {
        "title": "Readouts of a simulated cortex",
        "scores": scores,
        "table": pd.DataFrame(rows),
        "pairs": pd.DataFrame(pairs),
        "winner": winner,
        "regions": regions,
        "layers": layer_map,
        "layer_table": layer_table(layer_map, scores),
        "warp": warp,
        "curves": curves,
        "summary": {"n_cells": len(cells), "n_voxels": n_voxels, "n_stimuli": 1000, "best_cell": ranked[0]},
        "settings": {"cv": 5, "readouts": {"semantic": {"max_epochs": 40}}},
        "notes": ["The cortex is simulated.", "One seed."],
    }


def table_of(scores):
    """Medians of every cell and group, as `Comparison.table` has them, without resamples."""
    rows = []
    for cell, r in zip(scores["cell"].values.tolist(), scores["r"].values):
        features, *core, readout = cell.split("/")
        for group in groups_of(scores):
            own = r[group.voxels][np.isfinite(r[group.voxels])]
            middle = float(np.median(own)) if len(own) else np.nan
            about = {"cell": cell, "features": features, "core": "/".join(core), "readout": readout}
            about |= {"kind": group.kind, "group": group.name, "n_voxels": len(own), "n_parameters": 10}
            rows.append({**about, "median_r": middle, "low": middle, "high": middle})
    return pd.DataFrame(rows)


def layer_table(found, scores):
    """Best layer of every group, as `Comparison.layer_map` has it."""
    rows = []
    for group in groups_of(scores):
        own = found.isel(voxel=group.voxels)
        rows.append({"kind": group.kind, "group": group.name, "n_voxels": int(own["position"].notnull().sum())})
        medians = own["r"].median("voxel")
        rows[-1]["best_layer"] = str(medians.idxmax().values) if medians.notnull().any() else "–"
        rows[-1]["mean_position"] = float(own["position"].mean())
    return pd.DataFrame(rows)
