"""Identification of pictures from responses.

    python tests/benchmarks/bench_decode.py v4 [--sessions 201025 210224] [--layers block5 block8]
    python tests/benchmarks/bench_decode.py incontext [--seeds 17 18] [--supports 20 50 100 200]

``v4``: pictures of each session of ``v4-cowley2023`` among 100 (expected over all choices of distractors) and among all
held-out ones of a fold, by cross-validated ridge on layers of EfficientNet-Lite0; correlation against likelihood.
``incontext``: a new simulated subject, whose 300 query pictures (means of three presentations) are decoded by encoders
of a few of its trials: the shipped in-context model, empirical-Bayes ridge with the prior of three other subjects,
ridge, and ridge on the whole pool. Rows are ways to decode; controls are supports whose responses are permuted, and
weights taken as certain.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd


def v4(sessions, layers):
    from neuroenc.data import v4_sessions
    from neuroenc.study import Study, example_config

    rows = []
    for session in sessions or v4_sessions().index:
        for layer in layers:
            sets = [
                f"data.options.session={session}",
                f"features.block8.layer={layer}",
                "evaluation.permutations=0",
                "captions.enabled=false",
            ]
            sets += ["decode.sizes=[2, 100]", "decode.top=[1, 5]", "decode.regions=false"]
            study = Study(example_config("v4", sets), progress=False).until("score")
            r = float(study.scores["r"].median())
            table = study.until("decode").decoding
            for metric, part in table.groupby("metric", sort=False):
                at = part.set_index(["measure", "n"])
                among = at.loc[("accuracy", 100)]
                row = {"session": session, "layer": layer, "units": int(among["n_voxels"]), "median r": r}
                row |= {"metric": metric, "pairwise": at.loc[("accuracy", 2), "accuracy"], "of 100": among["accuracy"]}
                row |= {"low": among["low"], "high": among["high"], "of all": at.loc[("top_k", 1), "accuracy"]}
                row |= {"pictures": round(1 / at.loc[("top_k", 1), "chance"]), "p": at.loc[("top_k", 1), "p"]}
                rows.append(row)
                print(row, flush=True)
    print(pd.DataFrame(rows).to_markdown(index=False, floatfmt=".3f"))


def decoders(encoder, X, Y, queries, measured, *, repeats=3):
    """Accuracy among 100, and among all query pictures, by each way to decode, of one fitted encoder.

    Responses to decode are means of ``repeats`` presentations: their noise has that share of the variance.
    """
    from neuroenc.encoders import NoiseCovariance, decode_features, identify

    how = {"sizes": [2, 100], "top": [1], "n_permutations": 0, "n_bootstraps": 2}
    noise = NoiseCovariance.fit(Y - np.asarray(encoder.predict(X)))
    noise = noise.with_sd(noise.sd / repeats**0.5)
    ways, single = {"certain": None}, getattr(encoder, "noise_variance_", None)
    if single is not None:
        predicted, std = encoder.predict(queries, return_std=True)
        ways["uncertain"] = np.sqrt(np.maximum(std**2 - (1 - 1 / repeats) * single, 1e-6))
    predicted = encoder.predict(queries)
    found = {"correlation": identify(predicted, measured, **how)}
    for name, std in ways.items():
        one = identify(predicted, measured, metric="likelihood", noise=noise, std=std, **how)
        found[f"likelihood, weights {name}"] = one
        decoded = decode_features(encoder, measured, queries, noise=noise, std=std)
        middle = decoded["prior_mean"].values
        candidates, features = np.asarray(queries) - middle, decoded["features"].values - middle
        found[f"decoded features, weights {name}"] = identify(candidates, features, **how)
    return {k: (x["accuracy"].sel(size=100).item(), x["top_k"].sel(k=1).item()) for k, x in found.items()}


def incontext(seeds, supports):
    from neuroenc.encoders import InContextEncoder, RidgeEncoder
    from neuroenc.encoders.incontext import EmpiricalBayesRidge, WeightPrior
    from neuroenc.study.incontext.tasks import world_tasks

    rows = []
    for seed in seeds:
        tasks = world_tasks(seed, n_voxels=400)
        subject = tasks.test[0]
        X, Y, queries, measured = (np.asarray(a) for a in (subject.X, subject.Y, subject.X_query, subject.Y_query))
        clear = np.asarray(subject.noise_ceiling) > 0.1
        Y, measured = Y[:, clear], measured[:, clear]
        prior = WeightPrior.from_responses([s.X for s in tasks.train], [s.Y for s in tasks.train])
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(X))
        whole = decoders(RidgeEncoder().fit(X, Y), X, Y, queries, measured)
        rows += [{"seed": seed, "trials": len(X), "encoder": "ridge", "decoder": k, "v": v} for k, v in whole.items()]
        for n in supports:
            some = order[:n]
            mixed = rng.permutation(n)
            fits = {
                "in-context": (InContextEncoder("world"), Y[some]),
                "in-context, support permuted": (InContextEncoder("world"), Y[some][mixed]),
                "empirical Bayes": (EmpiricalBayesRidge(prior), Y[some]),
                "ridge": (RidgeEncoder(), Y[some]),
            }
            for name, (encoder, y) in fits.items():
                found = decoders(encoder.fit(X[some], y), X[some], y, queries, measured)
                rows += [{"seed": seed, "trials": n, "encoder": name, "decoder": k, "v": v} for k, v in found.items()]
                print(seed, n, name, {k: f"{v[0]:.3f} {v[1]:.3f}" for k, v in found.items()}, flush=True)
    table = pd.DataFrame(rows)
    table["of 100"], table["of 300"] = table["v"].str[0], table["v"].str[1]
    means = table.groupby(["trials", "encoder", "decoder"], sort=False)[["of 100", "of 300"]].mean().reset_index()
    print(means.to_markdown(index=False, floatfmt=".3f"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["v4", "incontext"])
    parser.add_argument("--sessions", nargs="*")
    parser.add_argument("--layers", nargs="*", default=["block5", "block8"])
    parser.add_argument("--seeds", nargs="*", type=int, default=[17, 18, 19])
    parser.add_argument("--supports", nargs="*", type=int, default=[20, 50, 100, 200])
    given = parser.parse_args()
    v4(given.sessions, given.layers) if given.what == "v4" else incontext(given.seeds, given.supports)
