"""Probes: what of labels or responses is linearly readable from features, predicted for rows that were left out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data, stats
from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import at_least, check_whole, one_of
from neuroenc._core.errors import DataError
from neuroenc.encoders._folds import Folds, resolve_folds
from neuroenc.encoders._labels import feature_scaling, sample_coords, voxel_coords
from neuroenc.encoders.comparison._statistics import draw_samples
from neuroenc.encoders.linear._ridge import RidgeEncoder

#: Probes of labels.
PROBES = ("ridge", "logistic")
#: Correlation below which responses are not told from no prediction.
FLOOR = 0.05
_INNER = 3


class Labels:
    """Labels of stimuli, one column a concept, read by a linear classifier and scored by balanced accuracy."""

    dim, metric = "target", "balanced accuracy"

    def __init__(self, table: pd.DataFrame, stimuli: np.ndarray | None, probe: str) -> None:
        self.probe, self.stimuli = one_of("probe", probe, PROBES), stimuli
        self.names = [str(name) for name in table.columns]
        self.classes, codes = [], []
        for name in table.columns:
            values = table[name]
            if values.isna().any():
                raise DataError(f"target {str(name)!r} has {int(values.isna().sum())} labels missing of {len(values)}.")
            found, code = np.unique(values.to_numpy().astype(str), return_inverse=True)
            if len(found) < 2:
                raise DataError(f"target {str(name)!r} has one label only ({found[0]!r}); a probe needs two.")
            self.classes.append(found.tolist())
            codes.append(code)
        self.codes = np.stack(codes, axis=1)
        self.chance = np.array([1.0 / len(c) for c in self.classes])
        self.floor = self.chance
        self.coords: dict[str, Any] = {self.dim: self.names}

    def fit(self, X: np.ndarray, rows: np.ndarray, T: np.ndarray, inner: bool) -> tuple[np.ndarray, np.ndarray]:
        """Classes (n_test, target) that probes of scaled training features predict, and their score inside training."""
        from sklearn.model_selection import cross_val_predict

        predicted = np.empty((len(T), len(self.names)), dtype=np.float32)
        inside = np.full(len(self.names), np.nan)
        for k, classes in enumerate(self.classes):
            y = self.codes[rows, k]
            count = np.bincount(y, minlength=len(classes))
            if count.min() < _INNER:
                name = classes[int(count.argmin())]
                raise DataError(
                    f"label {name!r} of target {self.names[k]!r} stands {int(count.min())} times among the training "
                    f"rows of a fold; at least {_INNER} are needed. Next step: more examples, or fewer folds."
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of iterations: a probe that nearly converged is as good
                predicted[:, k] = self._model().fit(X, y).predict(T)
                if inner:
                    guess = cross_val_predict(self._model(), X, y, cv=_INNER)
                    inside[k] = np.mean([(guess[y == c] == c).mean() for c in range(len(classes))])
        return predicted, inside

    def score(self, predicted: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Balanced accuracies (target,) over some rows, of the classes that they hold."""
        codes = self.codes[rows]
        found = [
            [(predicted[:, k] == c)[codes[:, k] == c].mean() for c in np.unique(codes[:, k])]
            for k in range(len(self.names))
        ]
        return np.array([np.mean(each) for each in found])

    def _model(self) -> Any:
        from sklearn.linear_model import LogisticRegression, RidgeClassifierCV

        if self.probe == "logistic":
            return LogisticRegression(max_iter=500, class_weight="balanced")
        return RidgeClassifierCV(np.logspace(-1, 5, 7), class_weight="balanced")

    def draw(self, predictions: Sequence[np.ndarray], n_bootstraps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (cell, target), and of every resample of the stimuli (cell, resample, target)."""
        resampler = stats.Resampler(n_bootstraps, groups=self.stimuli, seed=seed)
        estimate = np.empty((len(predictions), len(self.names)))
        samples = np.empty((len(predictions), n_bootstraps, len(self.names)), dtype=np.float32)
        for k, classes in enumerate(self.classes):
            member = self.codes[:, k][:, None] == np.arange(len(classes))
            share, shares = resampler.means(member)
            for cell, predicted in enumerate(predictions):
                right, rights = resampler.means(member & (predicted[:, k] == self.codes[:, k])[:, None])
                estimate[cell, k] = (right / share).mean()
                with np.errstate(invalid="ignore", divide="ignore"):  # a class that a resample left out
                    samples[cell, :, k] = np.nanmean(rights / shares, axis=1)
        return estimate, samples

    @property
    def n_units(self) -> int:
        """Stimuli that are resampled."""
        return len(self.codes) if self.stimuli is None else len(np.unique(self.stimuli))


class Responses:
    """Responses of voxels, read by ridge with a penalty each and scored by the correlation of predictions."""

    dim, metric = "voxel", "r"

    def __init__(self, responses: Any) -> None:
        values = as_numpy(responses, "responses")
        if values.ndim != 2 or not values.size:
            raise DataError(f"responses have shape {values.shape}; expected (stimulus, voxel).")
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).any(axis=0).sum())
            raise DataError(
                f"{bad} of {values.shape[1]} voxels hold NaN or infinity. Next step: drop them, or a comparison "
                "([compare.layers]), which takes voxels that saw part of the stimuli."
            )
        self.values = values.astype(np.float64)
        self.coords: dict[str, Any] = voxel_coords(responses) or {"voxel": np.arange(values.shape[1])}
        self.stimuli = sample_coords(responses).get("stimulus", np.arange(len(values)))
        self.chance, self.floor = np.zeros(values.shape[1]), np.full(values.shape[1], FLOOR)

    def fit(self, X: np.ndarray, rows: np.ndarray, T: np.ndarray, inner: bool) -> tuple[np.ndarray, np.ndarray]:
        """Responses (n_test, voxel) that ridge on scaled training features predicts, and its r inside training."""
        return ridge_probe(X, self.values[rows], T, 5, inner)[:2]

    def score(self, predicted: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Correlations (voxel,) over some rows."""
        return np.asarray(stats.score(self.values[rows], predicted, "r"))

    def draw(self, predictions: Sequence[np.ndarray], n_bootstraps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (cell, voxel), and of every resample of the stimuli (cell, resample, voxel)."""
        drawn = draw_samples(self.values, predictions, n_bootstraps=n_bootstraps, groups=self.stimuli, seed=seed)
        return drawn.estimate, drawn.samples

    @property
    def n_units(self) -> int:
        """Stimuli that are resampled."""
        return len(np.unique(self.stimuli))


def ridge_probe(
    X: np.ndarray, Y: np.ndarray, T: np.ndarray, cv: Any, inner: bool = True
) -> tuple[np.ndarray, np.ndarray, RidgeEncoder]:
    """Predictions (n_test, voxel) of ridge, its r (voxel,) inside training, NaN unless ``inner``, and the encoder.

    R2 chooses penalties, whose folds go together in one score; r of the same fits is told.
    """
    how: dict[str, Any] = {"n_jobs": 1, "cv": cv}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of penalties at the ends of the grid: layers may well predict nothing
        encoder = RidgeEncoder(scoring="r2", **how).fit(X, Y)
        inside = np.full(Y.shape[1], np.nan)
        if inner:
            scores = RidgeEncoder(encoder.alphas_, scoring="r", **how).fit(X, Y).cv_scores_
            inside = scores[np.searchsorted(encoder.alphas_, encoder.alpha_), np.arange(Y.shape[1])]
    # A voxel that is constant in training has no score and predicts its mean.
    encoder.coef_[:, ~np.isfinite(encoder.coef_).all(axis=0)] = 0
    return np.asarray(encoder.predict(T), dtype=np.float32), np.asarray(inside), encoder


def read_targets(targets: Any, probe: str) -> Labels | Responses:
    """Labels (a table, a mapping, or a column that does not hold fractions) or responses (fractions)."""
    if isinstance(targets, pd.Series):
        targets = targets.to_frame(targets.name or "target")
    if isinstance(targets, Mapping):
        columns = {str(k): np.asarray(v) for k, v in targets.items()}
        if len({len(v) for v in columns.values()}) != 1:
            sizes = ", ".join(f"{k} {len(v)}" for k, v in columns.items()) or "none"
            raise DataError(f"targets need one label a stimulus; found numbers of labels: {sizes}.")
        return Labels(pd.DataFrame(columns), None, probe)
    if isinstance(targets, pd.DataFrame):
        named = not isinstance(targets.index, pd.RangeIndex)
        return Labels(targets, targets.index.to_numpy().astype(str) if named else None, probe)
    values = as_numpy(targets, "targets")
    if values.dtype.kind == "f":
        if values.ndim == 1:
            targets = targets.expand_dims("voxel", 1) if isinstance(targets, xr.DataArray) else values[:, None]
        return Responses(targets)
    if values.ndim != 1:
        raise DataError(
            f"targets have dtype {values.dtype} and shape {values.shape}: labels are one column, or a table with a "
            "name for each concept; responses are fractions. Next step: responses.astype('float32'), or a mapping."
        )
    ids = sample_coords(targets).get("stimulus")
    name = str(getattr(targets, "name", None) or "target")
    return Labels(pd.DataFrame({name: values}), None if ids is None else ids.astype(str), probe)


def read_layers(features: Mapping[str, Any], targets: Labels | Responses, n: int) -> dict[str, xr.DataArray]:
    """Features of each layer with a row for each row of the targets, by stimulus id where both have labels."""
    if not isinstance(features, Mapping) or len(features) < 2:
        found = f"{len(features)} layers" if isinstance(features, Mapping) else type(features).__name__
        raise DataError(
            f"features are a mapping of two layers or more, from early to late; found {found}. "
            "Next step: ImageEmbedder(..., layers=[...]).embed_layers(stimuli)."
        )
    rows = None
    if targets.stimuli is not None:
        rows = xr.DataArray(np.zeros(n), dims="stimulus", coords={"stimulus": targets.stimuli.astype(str)})
    made: dict[str, xr.DataArray] = {}
    for name, X in features.items():
        if isinstance(X, xr.DataArray) and "stimulus" in X.coords and rows is not None:
            X = data.match(X, rows)
        elif not isinstance(X, xr.DataArray):
            values = as_numpy(X, f"features of {name}")
            if values.ndim < 2:
                raise DataError(f"features of layer {name!r} have shape {values.shape}; expected (stimulus, feature).")
            dims = ("stimulus", *(f"d{k}" for k in range(values.ndim - 2)), "feature")
            X = xr.DataArray(values, dims=dims)
        if len(X) != n:
            raise DataError(f"layer {name!r} has {len(X)} rows, the targets {n}. Next step: label both by stimulus.")
        made[str(name)] = X
    return made


def shuffled_folds(cv: Any, n: int, stimuli: np.ndarray | None, seed: int) -> Folds:
    """Folds of a number, shuffled (stimuli are often listed by category) and whole stimuli each; others as they are."""
    coords = {} if stimuli is None else {"stimulus": np.asarray(stimuli)}
    if isinstance(cv, (int, np.integer)) and not isinstance(cv, bool):
        unit = np.arange(n) if stimuli is None else np.unique(stimuli, return_inverse=True)[1]
        count = check_whole("cv", cv, 2)
        order = np.random.default_rng([seed, 11]).permutation(unit.max() + 1)
        cv = [
            (np.flatnonzero(order[unit] % count != k), np.flatnonzero(order[unit] % count == k)) for k in range(count)
        ]
    return resolve_folds(cv, n, coords)


def disturbed(X: xr.DataArray, noise: float, n_bits: int | None, seed: Sequence[int]) -> xr.DataArray:
    """Features with noise of ``noise`` s.d. of each, then rounded to ``n_bits`` bits between their extremes."""
    noise = at_least("noise", noise)
    if not noise and n_bits is None:
        return X
    values = np.asarray(as_numpy(X), dtype=np.float64)
    if noise:
        spread = values.std(axis=0, keepdims=True)
        values = values + noise * spread * np.random.default_rng(list(seed)).standard_normal(values.shape)
    if n_bits is not None:
        steps = 2 ** check_whole("n_bits", n_bits) - 1
        low, high = float(values.min()), float(values.max())
        size = (high - low) / steps or 1.0
        values = low + np.round((values - low) / size) * size
    return X.copy(data=values.astype(np.float32))


def scaled(X: xr.DataArray, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows of mean 0 and s.d. 1 over the training rows; a channel of maps is scaled as a whole."""
    part = X[train]
    flat = np.asarray(part.values, dtype=np.float32).reshape(len(train), -1)
    mean, scale = feature_scaling(flat, part)
    rest = np.asarray(X[test].values, dtype=np.float32).reshape(len(test), -1)
    return tuple(((x - mean) / scale).astype(np.float32) for x in (flat, rest))  # type: ignore[return-value]
