"""One against two workers: the fits of a study on Dask clusters of this machine, one BLAS thread each.

    python tests/benchmarks/bench_workers.py                  # a minute or more with one worker, three runs
    python tests/benchmarks/bench_workers.py --voxels 2000 --runs 1

Every run has a cluster and a folder of its own, so that nothing is found that was done before. Predictions are compared
before the times are.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from statistics import median

# Before numpy is loaded, here and in the workers.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import numpy as np  # noqa: E402
from distributed import Client, LocalCluster  # noqa: E402

from neuroenc import data  # noqa: E402
from neuroenc.study import Study, StudyConfig  # noqa: E402
from neuroenc.study.config import EvaluationConfig  # noqa: E402


def fitted(workers: int, config: StudyConfig, given: dict[str, object]) -> tuple[float, np.ndarray]:
    """Seconds of the fits on so many workers, and the median correlation of every voxel's predictions."""
    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster) as client, tempfile.TemporaryDirectory() as folder:
        # Imports of the workers are no part of a fit.
        client.run(lambda: __import__("neuroenc.study.commands"))
        study = Study(config, folder, client=client, progress=False, **given).until("fit")
        return study.seconds["fit"], study.predictions["features"][0].values


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--stimuli", type=int, default=4000)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--voxels", type=int, default=20_000)
    parser.add_argument("--folds", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    X = rng.standard_normal((arguments.stimuli, arguments.features), dtype=np.float32)
    W = rng.standard_normal((arguments.features, arguments.voxels), dtype=np.float32) / np.sqrt(arguments.features)
    Y = X @ W + rng.standard_normal((arguments.stimuli, arguments.voxels), dtype=np.float32)
    ids = [f"s{n}" for n in range(arguments.stimuli)]
    given = {
        "features": data.make_features(X, stimulus=ids),
        "responses": data.make_responses(Y, stimulus=ids, dim="stimulus"),
    }
    config = StudyConfig(evaluation=EvaluationConfig(n_splits=arguments.folds, permutations=0))
    times: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(arguments.runs):
        found = {}
        for workers in times:
            seconds, found[workers] = fitted(workers, config, given)
            times[workers].append(seconds)
        np.testing.assert_allclose(found[1], found[2], atol=1e-5)
    print("| workers | seconds (runs) | times as fast |\n|---|---|---|")
    for workers, seconds in times.items():
        runs = ", ".join(f"{s:.1f}" for s in seconds)
        print(f"| {workers} | {median(seconds):.1f} ({runs}) | {median(times[1]) / median(seconds):.2f} |")


if __name__ == "__main__":
    main()
