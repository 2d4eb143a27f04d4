"""Identification of held-out stimuli by the predictions of every cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import ConfigError
from neuroenc.encoders._decode import identification_table, identify
from neuroenc.encoders._labels import seen_patterns
from neuroenc.encoders._noise import NoiseCovariance
from neuroenc.encoders.comparison._result import Comparison


def identify_cells(
    found: Comparison,
    *,
    metric: str = "correlation",
    sizes: Sequence[int] | None = None,
    top: Sequence[int] = (1, 5),
    n_permutations: int = 1000,
    n_bootstraps: int = 1000,
) -> pd.DataFrame:
    """Identification accuracy of every cell: which held-out stimulus was seen.

    Trials are ranked among the test stimuli of their fold, as `neuroenc.encoders.identify` does; voxels that saw other
    stimuli (of other subjects) are decoded apart.

    Parameters
    ----------
    found : Comparison
    metric : {"correlation", "likelihood", "cosine"}
        Of `neuroenc.encoders.identify`. Likelihood: under the noise covariance (Ledoit-Wolf) of what the
        cell's held-out predictions miss of the other folds' trials.
    sizes, top, n_permutations, n_bootstraps
        Of `neuroenc.encoders.identify`.

    Returns
    -------
    DataFrame
        Rows of `neuroenc.encoders.identification_table` with ``cell`` and, where there are several, ``subject``.

    Raises
    ------
    ConfigError
        Likelihood of a comparison with one fold.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.data import make_features, make_responses
    >>> from neuroenc.encoders.comparison import compare
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((60, 4)).astype("float32")
    >>> ids = [f"s{n}" for n in range(60)]
    >>> y = make_responses(x @ rng.standard_normal((4, 9)) + rng.standard_normal((60, 9)), stimulus=ids, dim="stimulus")
    >>> spaces = {"right": make_features(x, stimulus=ids), "wrong": make_features(x[::-1], stimulus=ids)}
    >>> table = identify_cells(compare(spaces, {"linear": {}}, y, cv=3, progress=False), sizes=[2], n_permutations=0)
    >>> pairs = table[table["measure"] == "accuracy"].set_index("cell")["accuracy"]
    >>> bool(pairs["right/linear"] > 0.8), bool(pairs["wrong/linear"] < 0.7)
    (True, True)
    """
    responses = found.responses
    how: dict[str, Any] = {"top": top, "n_permutations": n_permutations, "n_bootstraps": n_bootstraps}
    patterns = seen_patterns(~np.isnan(responses.values))
    tables = []
    for cell in found.cells:
        predicted = found.predictions(cell)
        tests = {job.fold: job.rows.test for job in found._jobs[cell]}
        for number, (rows, columns) in enumerate(patterns):
            parts = [np.intersect1d(test, rows) for test in tests.values()]
            parts = [part for part in parts if len(np.unique(responses["stimulus"].values[part])) > 1]
            some = responses[:, columns]
            usable = np.ones(some.shape[1], dtype=bool)
            for part in parts:  # rows that no fold tests have no prediction
                usable &= np.isfinite(predicted.values[np.ix_(part, columns)]).all(axis=0)
                usable &= np.ptp(some.values[part], axis=0) > 0
            if not parts or usable.sum() < 3:
                continue
            galleries = []
            for part in parts:
                _, first = np.unique(responses["stimulus"].values[part], return_index=True)
                galleries.append(predicted[part[np.sort(first)], columns][:, usable])
            most = min(map(len, galleries))
            wanted = None if sizes is None else [n for n in sizes if n <= most] or None
            measured = [some[part][:, usable] for part in parts]
            noise = None
            if metric == "likelihood":
                if len(parts) < 2:
                    raise ConfigError(
                        "likelihood takes the noise covariance from the other folds, and there is one fold. "
                        "Next step: several folds, or metric='correlation'."
                    )
                # The noise of a fold is that of trials that are not decoded in it.
                others = [np.setdiff1d(np.concatenate(parts), part) for part in parts]
                left = some.copy(data=some.values - predicted.values[:, columns])[:, usable]
                noise = [NoiseCovariance.fit(left[rest]) for rest in others]
            result = identify(galleries, measured, metric=metric, noise=noise, sizes=wanted, seed=found.seed, **how)
            table = identification_table(result)
            if metric != "correlation":
                table["metric"] = metric
            named = some["subject"].values.astype(str) if "subject" in some.coords else np.array([""])
            subject = str(named.flat[0]) if len(np.unique(named)) == 1 else f"voxels {number + 1}"
            tables.append(table.drop(columns="name").assign(cell=cell, subject=subject if len(patterns) > 1 else ""))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
