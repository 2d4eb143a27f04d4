"""Eight V4 sessions of two animals as tasks of one trunk: separate, joint, balanced, conditioned, experts, merged.

    python tests/benchmarks/bench_many_subjects.py --mirror ../shared/data [--epochs 20] [--sessions 190923 201025]

Features are three layers of EfficientNet-Lite0 (blocks 5, 8, 12) averaged over 4 x 4 cells, side by side as feature
spaces; every row reads its maps through a factorised readout for each neuron. Equal pictures are one stimulus and on
one side of the split. "Fine-tuned" goes on from the joint trunk in each session; "merged" adds these trunks up, by a
coefficient for each of them and block that 300 pictures of a session choose, and reads the sum without training it on.
Prints one table: median r over neurons on a fifth of the pictures, its 95 % interval over resampled pictures, and the
paired difference to separate trunks, with its intervals over pictures and over sessions. Predictions are kept in
``--keep``, so that rows can be added to it.
"""

from __future__ import annotations

import argparse
import copy
import os
import time
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from neuroenc import data, stats
from neuroenc.data import EncodingData
from neuroenc.embedding import ImageEmbedder
from neuroenc.encoders import ReadoutEncoder
from neuroenc.encoders.merge import merge_cores
from neuroenc.study.stages.compare import join_subjects, scale_voxels

SESSIONS = ["190923", "190925", "190927", "190928", "201025", "210224", "210322", "210325"]
BLOCKS, CELLS = ("block5", "block8", "block12"), 4
TRUNK = {"width": 64, "depth": 1}
EQUAL = {"balanced": True, "sampling": "equal"}
GATED = {"conditioning": "affine+gate"}

#: Rows of the table: options of the trunk, and of training.
ROWS = {
    "joint": ({}, {}),
    "balanced": ({}, EQUAL),
    "conditioned": (GATED, {}),
    "conditioned, balanced": (GATED, EQUAL),
    "experts by session": ({"conditioning": "experts"}, {}),
    "experts by animal": ({"conditioning": "experts", "experts": "animal"}, {}),
    "experts by session, upcycled": ({"conditioning": "experts", "upcycle": 300}, {}),
    "slim": ({"widths": [8, 16, 32]}, {}),
    "experts, sessions shuffled": ({"conditioning": "experts", "experts": "shuffled"}, {}),
}
#: Rows that go on from the joint trunk: as it is, trained on in each session, or merged from these for each session.
ANEW, FINE, MERGED = "joint trunk, readouts anew", "fine-tuned in each session", "merged for each session"


def load(mirror, sessions):
    """Responses (stimulus, voxel) of all sessions side by side, and the joined maps."""
    parts = []
    for session in sessions:
        found = data.load_dataset("v4-cowley2023", mirror=mirror, session=session, progress=False)
        parts.append(EncodingData(found.responses, found.stimuli, extra={"animal": found.extra["animal"]}))
    joined = join_subjects(parts)
    maps, names = [], []
    for block in BLOCKS:
        embedder = ImageEmbedder(
            "efficientnet-lite0", layer=block, pooling="map", preprocessing={"size": 112}, progress=False
        )
        values = torch.as_tensor(embedder.embed(joined.stimuli).values)
        maps.append(torch.nn.functional.adaptive_avg_pool2d(values, CELLS).numpy())
        names += [block] * maps[-1].shape[1]
    features = xr.DataArray(
        np.concatenate(maps, axis=1),
        dims=("stimulus", "channel", "y", "x"),
        coords={"stimulus": joined.responses["stimulus"].values, "space": ("channel", names)},
    )
    return features, scale_voxels(joined.responses)


def split(responses, seed):
    """Rows of training, validation and test; a fifth each of the last two's stimuli, session by session."""
    rng = np.random.default_rng(seed)
    seen = ~np.isnan(responses.values)
    subjects = responses["subject"].values
    saw = np.stack([seen[:, subjects == name].any(axis=1) for name in np.unique(subjects)], axis=1)
    part = np.zeros(len(responses), dtype=int)
    for pattern in np.unique(saw, axis=0):
        rows = rng.permutation(np.flatnonzero((saw == pattern).all(axis=1)))
        part[rows[: len(rows) // 5]] = 2
        part[rows[len(rows) // 5 : len(rows) // 5 + len(rows) // 10]] = 1
    return [np.flatnonzero(part == k) for k in range(3)]


def correlations(predicted, measured, rows):
    """Pearson r (voxel,) over rows, of those that each voxel saw."""
    p, y = predicted[rows], measured[rows]
    known = ~np.isnan(y)
    n = known.sum(axis=0)
    p, y = np.where(known, p, 0.0), np.where(known, y, 0.0)
    p, y = np.where(known, p - p.sum(0) / n, 0.0), np.where(known, y - y.sum(0) / n, 0.0)
    return (p * y).sum(0) / np.sqrt((p**2).sum(0) * (y**2).sum(0))


def interval(drawn, r, n):
    """Interval of the median over neurons, of resamples (draw, neuron)."""
    low, high, _ = stats.sample_interval(stats.median_samples(drawn, r), np.nanmedian(r), n_units=n)
    return low, high


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mirror", type=Path, default=Path(os.environ.get("NEUROENC_MIRROR", "../shared/data")))
    parser.add_argument("--sessions", nargs="*", default=SESSIONS)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="*", default=["ridge, each session", "separate", *ROWS, ANEW, FINE, MERGED])
    parser.add_argument("--keep", type=Path, help="folder of predictions, to go on from")
    options = parser.parse_args()
    features, responses = load(options.mirror, options.sessions)
    train, held, test = split(responses, options.seed)
    taught = np.sort(np.concatenate([train, held]))
    inside = np.flatnonzero(np.isin(taught, held))
    X, Y, T = features[taught], responses[taught], features[test]
    subjects = Y["subject"].values
    training = {"max_epochs": options.epochs, "patience": 4, "lr": 3e-3, "seed": options.seed}
    print(f"{Y.shape[1]} neurons, {len(taught)} training and {len(test)} test pictures", flush=True)

    def seen_by(columns):
        return np.flatnonzero(~np.isnan(Y.values[:, columns]).all(axis=1))

    def fit(columns, core, how, readout="factorized", /, **more):
        settings = {} if readout == "linear" else {"core": "trunk", "core_options": {**TRUNK, **core}, **how}
        rows = seen_by(columns)
        settings |= training | {"validation": np.flatnonzero(np.isin(rows, inside)).tolist()}
        if len(columns) < len(subjects):
            # One session has a part of the stimuli: as many steps as all of them take together.
            settings |= {"max_epochs": options.epochs * len(options.sessions), "patience": 4 * len(options.sessions)}
        settings |= more
        encoder = ReadoutEncoder(readout, **settings).fit(X[rows], Y[rows, columns])
        return encoder.predict(T).values, encoder

    def going_on(cores, **more):
        """Predictions and encoders of every session, each behind a core of its own to begin with."""
        found, encoders = np.full((len(test), len(subjects)), np.nan, np.float32), {}
        for one, core in cores.items():
            own = np.flatnonzero(subjects == one)
            found[:, own], encoders[one] = fit(own, {}, {}, core=core, core_options=None, **more)
        return found, encoders

    def frozen(core):
        return copy.deepcopy(core).requires_grad_(False)

    predicted, costs, base, tuned = {}, {}, None, {}
    for name in options.rows:
        begin = time.perf_counter()
        kept = options.keep / f"{name}.npz" if options.keep else None
        if kept and kept.exists():
            with np.load(kept) as found:
                predicted[name], costs[name] = found["predicted"], tuple(found["costs"].tolist())
            continue
        if name in (ANEW, FINE, MERGED):
            base = base or fit(np.arange(len(subjects)), {}, {})[1]
            core, each = base.model_.core, [str(one) for one in np.unique(subjects)]
            parameters = core.n_parameters
            if name == ANEW:
                found = going_on(dict.fromkeys(each, frozen(core)))[0]
            else:
                if not tuned:
                    found, tuned = going_on(dict.fromkeys(each, core), lr=training["lr"] / 3)
                parameters *= len(each)
            if name == MERGED:
                merged = {}
                for one in each:
                    own = np.flatnonzero(subjects == one)
                    few = np.random.default_rng(options.seed).permutation(seen_by(own))[:300]
                    merged[one] = frozen(merge_cores(base, tuned, X[few], Y.values[few][:, own], n_steps=40))
                found = going_on(merged)[0]
            predicted[name] = found
        elif name in ROWS:
            core, how = ROWS[name]
            if core.get("experts") == "shuffled":
                # An expert serves neurons of all sessions: as many parameters, nothing to be of one mind about.
                mixed = np.random.default_rng(options.seed).permutation(subjects)
                tasks = Y.assign_coords(subject=("voxel", mixed))
                encoder = ReadoutEncoder(
                    "factorized",
                    core="trunk",
                    core_options={**TRUNK, "conditioning": "experts"},
                    validation=inside.tolist(),
                    **training,
                ).fit(X, tasks)
                found = encoder.predict(T).values
            else:
                found, encoder = fit(np.arange(len(subjects)), core, how)
            predicted[name], parameters = found, encoder.model_.core.n_parameters
            if name.startswith("conditioned"):
                print(f"gates, {name}:\n{encoder.gates.to_pandas().round(2).to_string()}", flush=True)
            if name == "slim":
                # Seconds an image of one session's neurons in batches, and of a picture alone, as in real time.
                table = encoder.width_table(T, responses[test]).groupby("width")[["r2", "seconds"]].mean()
                alone = []
                for width in table.index:
                    times = [time.perf_counter()]
                    for _ in range(20):
                        encoder.predict(T[:1], widths=int(width))
                        times.append(time.perf_counter())
                    alone.append(np.diff(times).min())
                print(f"widths:\n{table.assign(alone=alone).to_string()}", flush=True)
            if name == "joint":
                cosines = encoder.gradient_conflict(X, Y).to_pandas().round(2)
                print(f"gradient conflict, {name}:\n{cosines.to_string()}", flush=True)
        else:
            readout = "linear" if name.startswith("ridge") else "factorized"
            values, parameters = np.full((len(test), len(subjects)), np.nan, np.float32), 0
            for one in np.unique(subjects):
                own = np.flatnonzero(subjects == one)
                values[:, own], encoder = fit(own, {}, {}, readout)
                parameters += 0 if readout == "linear" else encoder.model_.core.n_parameters
            predicted[name] = values
        costs[name] = (parameters, time.perf_counter() - begin)
        if kept:
            options.keep.mkdir(parents=True, exist_ok=True)
            np.savez(kept, predicted=predicted[name], costs=costs[name])
        r = np.median(correlations(predicted[name], responses.values[test], np.arange(len(test))))
        print(f"  {name}: median r {r:.4f}, {costs[name][1]:.0f} s", flush=True)

    rng = np.random.default_rng(options.seed)
    draws = [rng.integers(0, len(test), len(test)) for _ in range(options.resamples)]
    measured = responses.values[test]
    drawn = {k: np.stack([correlations(v, measured, rows) for rows in draws]) for k, v in predicted.items()}
    alone = drawn.get("separate")
    animals = responses["animal"].values
    print("| row | median r | 95 % interval | to separate | over pictures | over sessions | WE | PE | parameters | s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, values in predicted.items():
        r = correlations(values, measured, np.arange(len(test)))
        low, high = interval(drawn[name], r, len(test))
        line = f"| {name} | {np.nanmedian(r):.3f} | {low:.3f} to {high:.3f} "
        if alone is not None and name != "separate":
            ahead = r - correlations(predicted["separate"], measured, np.arange(len(test)))
            low, high = interval(drawn[name] - alone, ahead, len(test))
            line += f"| {np.nanmedian(ahead):+.3f} | {low:+.3f} to {high:+.3f} "
            each = np.array([np.nanmedian(ahead[subjects == one]) for one in np.unique(subjects)])
            resampled = each[rng.integers(0, len(each), (options.resamples, len(each)))].mean(axis=1)
            low, high, _ = stats.sample_interval(resampled, each.mean(), n_units=len(each))
            line += f"| {low:+.3f} to {high:+.3f} "
        else:
            line += "| | | "
        line += "".join(f"| {np.nanmedian(r[animals == a]):.3f} " for a in ("WE", "PE"))
        print(f"{line}| {costs[name][0]:,.0f} | {costs[name][1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
