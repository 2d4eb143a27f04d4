"""Base class of linear encoders: predict, score, to_linear, save, load, repr."""

from __future__ import annotations

import html
import inspect
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import xarray as xr
from sklearn import model_selection
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils.validation import check_is_fitted, validate_data

from neuroenc import stats
from neuroenc._core.arrays import as_numpy, is_dask
from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import hash_array, write_text
from neuroenc._core.paths import cache_dir
from neuroenc._core.provenance import provenance
from neuroenc._core.weights import Kind, read_folder, reading, write_folder
from neuroenc.encoders._card import EncoderCard, check_card, render_card
from neuroenc.encoders._labels import (
    describe_features,
    features_matrix,
    match_features,
    measured_responses,
    space_of,
    voxel_coords,
    wrap,
)


def summary_html(encoder: Any) -> str:
    """Shape, penalties, cross-validated score and data hash of a fitted encoder, as an HTML table."""
    p, v = encoder.coef_.shape
    rows = {"features × voxels": f"{p:,} × {v:,}", "fitted on": f"{encoder.n_samples_fit_:,} samples"}
    alpha = getattr(encoder, "alpha_", None)
    if alpha is not None and np.size(alpha):
        finite = np.asarray(alpha, dtype=float).ravel()
        finite = finite[np.isfinite(finite) & (finite > 0)]
        if len(finite):
            low, middle, high = np.quantile(finite, [0.05, 0.5, 0.95])
            rows["alpha, median (5 to 95 %)"] = f"{middle:.3g} ({low:.3g} to {high:.3g})"
    best = getattr(encoder, "best_score_", None)
    if best is not None:
        rows[f"cross-validated {html.escape(str(encoder.scoring))}, median"] = f"{np.nanmedian(best):.3f}"
    rows["features hash"] = html.escape(encoder._features_hash_[:12] or "unlabelled")
    rows["version"] = html.escape(json.loads(encoder.provenance_)["versions"]["neuroenc"])
    body = "".join(f"<tr><th style='text-align:left'>{k}</th><td>{x}</td></tr>" for k, x in rows.items())
    return f"<table>{body}</table>"


class LinearEncoder(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Base class of linear voxelwise encoders ``Y = X coef_ + intercept_``.

    Subclasses set ``coef_`` (feature, voxel) and ``intercept_`` (voxel,) in ``fit``.
    """

    coef_: np.ndarray
    intercept_: np.ndarray
    n_features_in_: int

    def _check_predict(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = match_features(self._features_, X)
        return validate_data(self, features_matrix(X), reset=False, dtype=[np.float32, np.float64])

    def _label_source(self, X: Any) -> Any:
        return X

    def predict(self, X: Any) -> Any:
        """Predicted responses ``X coef_ + intercept_``.

        Parameters
        ----------
        X : array (n, feature)
            numpy, torch, dask or labelled features. Labelled ones are matched with those of the fit.

        Returns
        -------
        array (n, voxel)
            In the form of X: labelled features give labelled responses, dask arrays lazy ones.

        Raises
        ------
        DataError
            Labelled features of another backbone, layer or normalisation, or with other labels.
        """
        source = self._label_source(X)
        if source is X and is_dask(X) and X.ndim == 2:
            return wrap(self._predict_dask(X), X, self._voxels_, name="predicted")
        values = self._check_predict(X).astype(self.coef_.dtype, copy=False)
        return wrap(self._predict_block(values), source, self._voxels_, name="predicted")

    def _predict_block(self, values: np.ndarray) -> np.ndarray:
        predicted = values.astype(self.coef_.dtype, copy=False) @ self.coef_ + self.intercept_
        return predicted[:, 0] if self._single_voxel_ else predicted

    def _predict_dask(self, X: Any) -> Any:
        """Predictions block by block of rows, when they are asked for."""
        check_is_fitted(self)
        X = match_features(self._features_, X)
        array = X.data if isinstance(X, xr.DataArray) else X
        if array.shape[1] != self.n_features_in_:
            raise DataError(f"X has {array.shape[1]} features, the encoder was fitted on {self.n_features_in_}.")
        array = array.rechunk({1: -1})
        if self._single_voxel_:
            return array.map_blocks(self._predict_block, dtype=self.coef_.dtype, drop_axis=1)
        chunks = (array.chunks[0], (self.coef_.shape[1],))
        return array.map_blocks(self._predict_block, dtype=self.coef_.dtype, chunks=chunks)

    def score_voxels(self, X: Any, Y: Any, metric: str = "r") -> Any:
        """Score of each voxel on new data.

        Parameters
        ----------
        X : array (n, feature)
        Y : array (n, voxel)
            Labelled responses are put in the order of the fitted voxels.
        metric : {"r", "r2", "ev"}
            Pearson correlation, R2, or explained variance (see `neuroenc.stats`).

        Returns
        -------
        array (voxel,)
            Labelled if the encoder was fitted on labelled responses, with the affine, volume shape, space and
            subject of these, which maps need.

        Raises
        ------
        DataError
            Responses of other stimuli, voxels, subjects or spaces.
        """
        return self._scores(self._label_source(X), Y, self.predict(X), metric)

    def _scores(self, source: Any, Y: Any, predicted: Any, metric: str) -> Any:
        """Scores of predictions, with all that a map of them needs."""
        predicted = np.asarray(predicted)
        measured = measured_responses(source, Y, predicted.shape, self._voxels_, self._space_)
        scores = stats.score(measured, predicted.reshape(measured.shape), metric=metric)
        if self._voxels_ is None:
            return scores
        found = xr.DataArray(scores, dims="voxel", coords=self._voxels_, name=metric)
        return self._placed(found, metric=metric, n_stimuli=len(measured))

    def _placed(self, found: Any, **attrs: Any) -> Any:
        """Labelled values with the affine, space and subject of the voxels."""
        space = dict(self._space_)
        subject = space.pop("subject", None)
        if subject is not None and "subject" not in found.coords:
            found = found.assign_coords(subject=subject)
        return found.assign_attrs(**space, **attrs)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Mean R2 over voxels.

        Parameters
        ----------
        X : array (n, feature)
        y : array (n, voxel) or (n,)
        sample_weight : array (n,), optional
        """
        predicted = np.asarray(self.predict(X))
        measured = measured_responses(self._label_source(X), y, predicted.shape, self._voxels_, self._space_)
        return float(r2_score(measured, predicted.reshape(measured.shape), sample_weight=sample_weight))

    def to_linear(self) -> tuple[xr.DataArray, xr.DataArray]:
        """Weights and intercept as labelled arrays: all that captions and maps need.

        Returns
        -------
        coef : DataArray (feature, voxel)
        intercept : DataArray (voxel,)
        """
        check_is_fitted(self)
        return self._label_linear(self.coef_, self.intercept_)

    def _label_linear(self, weights: np.ndarray, offsets: np.ndarray) -> tuple[xr.DataArray, xr.DataArray]:
        voxels = self._voxels_ or {"voxel": np.arange(weights.shape[1])}
        attrs = {"units": self._units_, "encoder": type(self).__name__, "features": self._features_hash_}
        # Captions project weights onto a bank, which must lie in the same space.
        origin = self._features_.get("origin", {})
        attrs |= {k: str(origin[k]) for k in ("backbone", "weights", "layer") if str(origin.get(k, ""))}
        coef = xr.DataArray(weights, dims=("feature", "voxel"), coords=voxels, name="coef")
        intercept = xr.DataArray(offsets, dims="voxel", coords=voxels, name="intercept")
        return self._placed(coef, **attrs), self._placed(intercept, **attrs)

    #: What a stranger must know of it; of one that was loaded, the card that it was saved with.
    card: EncoderCard | None = None

    def save(
        self,
        path: str | os.PathLike[str],
        card: EncoderCard | Mapping[str, Any] | None = None,
        *,
        dtype: Literal["float32", "float16"] = "float32",
    ) -> Path:
        """Write the fitted encoder to a folder: ``arrays.safetensors``, ``encoder.json`` and ``README.md``.

        Parameters
        ----------
        path : path
        card : EncoderCard or mapping of its fields, optional
            What a stranger must know of it, and how its features are made of pictures; default: the encoder's own
            ``card``. The README is written from it.
        dtype : {"float32", "float16"}
            "float16" keeps weights in half precision, to be shared: half the size, and every weight to three digits.

        Raises
        ------
        ConfigError
            Half precision cannot hold these weights.
        DataError
            The card's scores are of other voxels.
        """
        return save_encoder(self, path, card, dtype)

    @classmethod
    def load(cls, path: str | os.PathLike[str], **settings: Any) -> Self:
        """Read an encoder written by `save`; ``settings`` replace those that were saved."""

        encoder = load_encoder(path, **settings)
        if not isinstance(encoder, cls):
            raise DataError(f"{path} holds a {type(encoder).__name__}, not a {cls.__name__}.")
        return encoder

    def _pack(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Fitted attributes to save: arrays of numbers by name, and all others as JSON can hold them."""
        arrays: dict[str, np.ndarray] = {}
        plain: dict[str, Any] = {}
        for name, value in vars(self).items():
            if not name.endswith("_") or name == "_voxels_":
                continue
            if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
                arrays[name] = value
            elif isinstance(value, np.ndarray):
                plain[name] = {"strings": value.astype(str).tolist()}
            else:
                plain[name] = value
        return arrays, plain

    def _unpack(self, arrays: dict[str, np.ndarray], plain: dict[str, Any]) -> None:
        """Undo `_pack`."""
        for name, value in arrays.items():
            setattr(self, name, value)
        for name, value in plain.items():
            strings = isinstance(value, dict) and set(value) == {"strings"}
            setattr(self, name, np.array(value["strings"], dtype=object) if strings else value)

    # What fit remembers besides the weights.
    _voxels_: dict[str, Any] | None
    _single_voxel_: bool
    _units_: str
    _features_hash_: str
    # Encoders of earlier versions have none of these.
    _space_: dict[str, Any] = {}  # noqa: RUF012  (replaced, never changed)
    _features_: dict[str, Any] = {}  # noqa: RUF012

    def _remember(self, X: Any, Y: Any) -> None:
        self._single_voxel_ = (Y.ndim if hasattr(Y, "ndim") else as_numpy(Y, "responses").ndim) == 1
        self._voxels_, self._space_, self._features_ = voxel_coords(Y), space_of(Y), describe_features(X)
        self._units_ = str(Y.attrs.get("units", "")) if isinstance(Y, xr.DataArray) else ""
        self._features_hash_ = str(X.attrs.get("content_hash", "")) if isinstance(X, xr.DataArray) else ""
        self.provenance_ = provenance(
            encoder=type(self).__name__, settings=_plain_params(self), features=self._features_hash_
        )

    def _repr_html_inner(self) -> str:
        if not hasattr(self, "coef_"):
            return ""

        return summary_html(self)

    @property
    def _repr_html_(self) -> Any:
        inner = self._repr_html_inner()
        if not inner:
            return super()._repr_html_
        return lambda: f"<div><b>{html.escape(type(self).__name__)}</b>{inner}</div>"

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        if not hasattr(self, "coef_"):
            return dict(super()._repr_mimebundle_(**kwargs))
        return {"text/plain": repr(self), "text/html": self._repr_html_()}


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it, so that it comes back as what it was; None of it is guessed.

    A splitter of scikit-learn is its name and settings. What JSON cannot hold (an object of one's own) is its text
    behind "unsaved: ", which no encoder takes for a setting.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {k: _plain(v) for k, v in value.items()}
    kind = type(value)
    if kind.__module__.startswith("sklearn.model_selection") and hasattr(model_selection, kind.__name__):
        names = [n for n in inspect.signature(kind.__init__).parameters if n != "self" and hasattr(value, n)]
        return {"splitter": kind.__name__, "settings": {n: _plain(getattr(value, n)) for n in names}}
    return str(value) if kind.__module__ == "torch" and kind.__name__ == "device" else f"unsaved: {value!r}"


def from_plain(value: Any) -> Any:
    """Undo `_plain` for splitters."""
    if not isinstance(value, dict) or set(value) != {"splitter", "settings"}:
        return value
    kind = getattr(model_selection, str(value["splitter"]), None)
    if not isinstance(kind, type) or not hasattr(kind, "split"):
        raise DataError(f"splitter {value['splitter']!r} is not one of this version of scikit-learn.")
    return kind(**value["settings"])


def _plain_params(encoder: BaseEstimator) -> dict[str, Any]:
    """Parameters as JSON can hold them."""
    # Where a fit was kept while it ran says nothing about it, and is another folder on every machine.
    return {k: None if k == "checkpoint" else _plain(v) for k, v in encoder.get_params(deep=False).items()}


def check_alphas(alphas: Any) -> np.ndarray:
    """Penalties as a sorted float64 array (a,), all finite and positive."""
    try:
        given = np.atleast_1d(np.asarray(alphas, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"alphas={alphas!r} are not numbers. Next step: for example [0.1, 1, 10].") from error
    values = np.unique(given)
    if given.ndim != 1 or not len(values) or not np.all(np.isfinite(values)) or values[0] <= 0:
        raise ConfigError(
            f"alphas must be finite and positive; found {np.asarray(alphas).tolist()}. "
            "Next step: for example numpy.logspace(-1, 5, 13)."
        )
    return values


def default_alphas(scale: float) -> np.ndarray:
    """A third of a decade apart, over eight decades around the mean eigenvalue ``scale``."""
    return np.logspace(-4, 4, 25) * (scale if scale > 0 else 1.0)


_KIND = Kind(
    "encoder", "encoder.json", "arrays.safetensors", ("class", "params", "fitted", "voxel_labels", "labelled", "sha256")
)
_README, _SHIPPED = "README.md", Path(__file__).parent / "weights"
# Share of the weights' norm that half precision may lose.
_HALF = 1e-3
_HOMES = {
    "RidgeEncoder": "neuroenc.encoders",
    "BandedRidgeEncoder": "neuroenc.encoders",
    "StackedEncoder": "neuroenc.encoders",
    "ReadoutEncoder": "neuroenc.encoders",
    **dict.fromkeys(
        ("InContextEncoder", "ChunkAveraged", "EmpiricalBayesRidge", "PaperRidge"), "neuroenc.encoders.incontext"
    ),
}


def save_encoder(
    encoder: LinearEncoder,
    path: str | os.PathLike[str],
    card: EncoderCard | Mapping[str, Any] | None = None,
    dtype: str = "float32",
) -> Path:
    """Write a fitted encoder to the folder ``path``.

    Every fitted array and held-out score goes to ``arrays.safetensors``; settings, card, voxel labels that are text,
    versions and the checksum of the arrays go to ``encoder.json``, which holds its own checksum too. A kill leaves the
    encoder that stood there, or the new one. ``README.md`` is the card for people.
    """
    path = Path(path)
    check_is_fitted(encoder)
    arrays, plain = encoder._pack()
    labels: dict[str, list[str]] = {}
    for name, (_, values) in (encoder._voxels_ or {}).items():
        if values.dtype.kind in "fiub":
            arrays[f"voxel:{name}"] = values
        else:
            labels[name] = values.astype(str).tolist()
    known = card if card is not None else encoder.card
    made = check_card(EncoderCard() if known is None else known, encoder._voxels_)
    made = made if made.units else replace(made, units=encoder._units_)
    about, scores = made.pack()
    arrays |= {f"score:{name}": values for name, values in scores.items()}
    if one_of("dtype", dtype, ("float32", "float16")) == "float16":
        arrays = {name: _halved(name, values) for name, values in arrays.items()}
    page = render_card(encoder, made)
    record = {
        "class": type(encoder).__name__,
        "params": _plain_params(encoder),
        "fitted": plain,
        "voxel_labels": labels,
        "labelled": encoder._voxels_ is not None,
        "card": about,
        "readme": _hash_page(page.encode()),
    }
    write_folder(path, _KIND, record, arrays)
    # Last: one of an encoder that is not there yet would tell of what nobody has.
    write_text(path / _README, page)
    return path


def _hash_page(content: bytes) -> str:
    return hash_array(np.frombuffer(content, dtype=np.uint8))


def _halved(name: str, values: np.ndarray) -> np.ndarray:
    """Weights, whatever they are of, in half precision; what has one number a voxel, and penalties, as they are."""
    if values.ndim < 2 or values.dtype.kind != "f" or "alpha" in name:
        return values
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    lost = np.linalg.norm(half.astype(np.float64) - values) / max(float(np.linalg.norm(values)), 1e-300)
    if not lost < _HALF:
        raise ConfigError(
            f"{name} has numbers up to {np.abs(values).max():.3g}; float16 would change them by {100 * lost:.2g} %. "
            "Next step: dtype='float32', or features of another scale."
        )
    return half


def encoder_folder(name: str | os.PathLike[str]) -> Path:
    """Folder of a saved encoder: the path itself, or that of one that is shipped or was pulled, by name.

    Parameters
    ----------
    name : str or path
        A folder that ``encoder.save`` wrote, that of a run with one encoder, or a name of `list_encoders`.

    Raises
    ------
    DataError
        There is none, or there are several; the nearest names are told.

    Examples
    --------
    >>> encoder_folder("world-s1").name
    'world-s1'
    """
    given = Path(name)
    for place in (given, given / "encoder", *(root / str(name) for root in (_SHIPPED, pulled_dir()))):
        if (place / _KIND.record).is_file():
            return place
    inside = [p.parent for pattern in ("*", "encoder/*") for p in sorted(given.glob(f"{pattern}/{_KIND.record}"))]
    if inside:
        shown = ", ".join(map(str, inside[:8])) + (", ..." if len(inside) > 8 else "")
        raise DataError(f"{given} holds {len(inside)} encoders: {shown}. Next step: name one of them.")
    step = f"({given} holds no {_KIND.record}.) " if given.is_dir() else ""
    step += "Next step: one of these, or the folder that encoder.save, neuroenc run or neuroenc demo wrote."
    raise DataError(unknown_name("encoder", os.fspath(name), list_encoders(), step))


def pulled_dir() -> Path:
    """Folder of the encoders that were pulled: ``encoders`` in the cache folder."""
    return cache_dir() / "encoders"


def list_encoders() -> list[str]:
    """Names of the encoders on this machine: those that come with the package, and those that were pulled.

    Examples
    --------
    >>> list_encoders()[:3]
    ['world-s1', 'world-s2', 'world-s3']
    """
    return [*shipped_encoders(), *sorted(p.parent.name for p in pulled_dir().glob(f"*/{_KIND.record}"))]


def shipped_encoders() -> list[str]:
    """Names of the encoders that come with the package."""
    return sorted(p.parent.name for p in _SHIPPED.glob(f"*/{_KIND.record}"))


def load_encoder(path: str | os.PathLike[str], **settings: Any) -> LinearEncoder:
    """Load an encoder saved by `LinearEncoder.save`.

    Parameters
    ----------
    path : path or str
        The folder, or a name of `list_encoders`.
    **settings
        Arguments of the encoder to use instead of those that were saved, such as ``device``.

    Returns
    -------
    LinearEncoder
        Its ``card`` says what it was saved with; None for one of an earlier version.

    Raises
    ------
    DataError
        There is no such encoder (the nearest names are told), a newer format wrote it, or its arrays or record were
        changed.

    Warns
    -----
    UserWarning
        ``README.md`` is not the page that was saved: numbers are right, what the page says of them may not be.
    """
    path = encoder_folder(path)
    record, arrays = read_folder(path, _KIND, "numpy")
    arrays = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in arrays.items()}
    if record["class"] not in _HOMES:
        raise DataError(unknown_name("encoder", record["class"], _HOMES))
    encoder: LinearEncoder = getattr(import_module(_HOMES[record["class"]]), record["class"])()
    legal = encoder.get_params()
    for name in record["params"]:
        if name not in legal:
            raise DataError(
                f"{path} was saved with a setting that this version of {record['class']} does not have: "
                f"{unknown_name('setting', name, legal)}"
            )
    for name in settings:
        one_of(f"setting of {record['class']}", name, legal)
    with reading(path, str(record["class"])):
        encoder.set_params(**{**{k: from_plain(v) for k, v in record["params"].items()}, **settings})
        voxels = {k.removeprefix("voxel:"): ("voxel", v) for k, v in arrays.items() if k.startswith("voxel:")}
        voxels.update({k: ("voxel", np.array(v, dtype=str)) for k, v in record["voxel_labels"].items()})
        encoder._voxels_ = voxels if record["labelled"] else None
        scores = {k.removeprefix("score:"): v for k, v in arrays.items() if k.startswith("score:")}
        encoder._unpack({k: v for k, v in arrays.items() if not k.startswith(("voxel:", "score:"))}, record["fitted"])
        if "card" in record:
            encoder.card = EncoderCard.unpack(record["card"], scores, voxels)
    page = path / _README
    # People edit such pages, and hubs do: a reason to say so, not to refuse sound numbers.
    if "readme" in record and page.is_file() and _hash_page(page.read_bytes()) != record["readme"]:
        warnings.warn(
            f"{page} is not the page that was saved with this encoder: its record (encoder.json, card) says what was.",
            UserWarning,
            stacklevel=2,
        )
    return encoder
