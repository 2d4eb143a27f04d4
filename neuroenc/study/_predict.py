"""Predicted responses to pictures (or captions, or features) that nobody has shown, by a saved encoder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data
from neuroenc._core.device import resolve_device
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.tables import read_table, write_table
from neuroenc.data import Stimuli, in_roi, list_pictures, roi_names
from neuroenc.embedding import ImageEmbedder
from neuroenc.encoders import EncoderCard, LinearEncoder, load_encoder
from neuroenc.study.config import FeaturesConfig
from neuroenc.study.stages.load import flatten, image_embedder, load_labelled, make_spaces

_TABLES, _ARRAYS = (".csv", ".tsv"), (".nc", ".zarr")


class Predictor:
    """A saved encoder with its recipe: from pictures to predicted responses of voxels.

    ``predict`` is ``encoder.predict(features(stimuli))``, with the features made as for the fit. `load_predictor`
    makes one.

    Attributes
    ----------
    encoder : LinearEncoder
    card : EncoderCard
        What a predicted value means, what the encoder was fitted on, its limits.
    voxels : Dataset over voxel
        Places and regions as coordinates; held-out scores and ceilings as variables (``r``, ``noise_ceiling_r``, ...).
    """

    def __init__(
        self,
        encoder: LinearEncoder,
        *,
        device: str = "auto",
        batch_size: int = 64,
        cache: bool = True,
        progress: bool = False,
    ) -> None:
        self.encoder, self.card = encoder, encoder.card or EncoderCard(units=encoder._units_)
        self.voxels = xr.Dataset(coords=encoder._voxels_) if self.card.scores is None else self.card.scores
        self.voxels = self.voxels.assign_attrs(encoder._space_)
        try:
            self._features = {name: FeaturesConfig(**dict(table)) for name, table in self.card.features.items()}
        except ConfigError as error:
            raise DataError(f"the recipe of this encoder's features is not one of this version: {error}") from error
        if any(config.kind in ("file", "trained") for config in self._features.values()):
            self._features = {}  # no pictures lead to them
        self._options: dict[str, Any] = {"device": device, "batch_size": batch_size, "cache": cache}
        self._progress = progress
        self._embedder: ImageEmbedder | None = None

    def __repr__(self) -> str:
        title = self.card.title or type(self.encoder).__name__
        n = self.voxels.sizes.get("voxel", "unlabelled")
        return f"Predictor({title!r}, {n} voxels, {_recipe(self.card) or 'features of your own'})"

    def predict(self, stimuli: Any) -> xr.DataArray:
        """Predicted responses to stimuli.

        Parameters
        ----------
        stimuli : path, list of paths, Stimuli, DataArray (stimulus, feature), or mapping of space to DataArray
            Pictures and folders of pictures; a table (.csv) with ``stimulus`` and ``caption`` for encoders of captions;
            features (.nc, .zarr) that were made as for the fit, of each space for encoders of several.

        Returns
        -------
        DataArray (stimulus, voxel)
            Float, in ``attrs["units"]``; places and regions of voxels as coordinates.

        Raises
        ------
        DataError
            No pictures, pictures that cannot be read, or features of another backbone, layer or width.
        ConfigError
            The encoder was saved without a recipe, and these are no features.
        ModuleNotFoundError
            The backbone's package is missing; the extra that brings it is named.
        """
        if isinstance(stimuli, Mapping):
            if not hasattr(self.encoder, "band_names_"):
                raise DataError(
                    f"features of {len(stimuli)} spaces were given; this encoder reads one array of features."
                )
            return self._told(self.encoder.predict({k: flatten(self._made(x)) for k, x in stimuli.items()}), "")
        X = self.features(stimuli)
        n, width = int(np.prod(X.shape[1:])), self.encoder.n_features_in_
        if n != width:
            raise DataError(
                f"features have {n} numbers a stimulus, shape {tuple(X.shape)}; the encoder reads {width}. "
                f"Next step: features made as for the fit ({_recipe(self.card) or 'its README says which'})."
            )
        return self._told(self.encoder.predict(X), X.attrs.get("content_hash", ""))

    def _told(self, found: xr.DataArray, features: str) -> xr.DataArray:
        """Predictions with what they mean."""
        attrs = {"units": self.card.units, "zscored": self.card.zscored, "encoder": self.card.title}
        attrs |= {
            "meaning": self.card.meaning,
            "licence": self.card.licence,
            "features": features,
        }
        attrs |= {k: v for k, v in self.encoder._space_.items() if k != "subject"}
        return found.rename("predicted").assign_attrs({k: v for k, v in attrs.items() if not isinstance(v, str) or v})

    def features(self, stimuli: Any) -> xr.DataArray:
        """Features of stimuli, made as for the fit: (stimulus, feature), or maps for a readout of maps.

        Those that are features already stay as they are.
        """
        found = self._made(stimuli)
        maps = len(self.encoder._features_.get("dims", ())) > 1
        return found if maps else flatten(found)

    def _made(self, stimuli: Any) -> xr.DataArray:
        given = stimuli if isinstance(stimuli, (Stimuli, xr.DataArray)) else read_stimuli(stimuli)
        if isinstance(given, xr.DataArray):
            return data.validate_features(given)
        if not self._features:
            raise ConfigError(
                "this encoder was saved without the recipe of its features, so that pictures do not lead to it. Next "
                "step: give features (.nc), or save it with encoder.save(folder, card={'features': ..., 'space': ...})."
            )
        name = self.card.space or next(iter(self._features))
        config = self._features[name]
        needs = "captions" if config.kind in ("captions", "aspects") else "images"
        if getattr(given, needs) is None:
            raise DataError(
                f"this encoder reads {needs} (kind {config.kind!r}), and these {len(given)} stimuli have none. Next "
                + (
                    "step: a table with the columns stimulus and caption."
                    if needs == "captions"
                    else "step: files of pictures."
                )
            )
        if len(self._features) == 1 and config.kind == "image":
            # Kept: a page that predicts one picture after the other loads the model once.
            if self._embedder is None:
                self._embedder = image_embedder(config, self._progress, **self._options)
            return self._embedder.embed(given)
        return make_spaces(self._features, given, self._progress)[name]


def _recipe(card: EncoderCard) -> str:
    """The space that is read, in words."""
    table = card.features.get(card.space, {})
    return ", ".join(f"{k} {table[k]}" for k in ("model", "pretrained", "layer", "pooling") if table.get(k))


def load_predictor(
    encoder: str | os.PathLike[str],
    device: str = "auto",
    *,
    batch_size: int = 64,
    cache: bool = True,
    progress: bool = False,
) -> Predictor:
    """Load a saved encoder with all that leads from pictures to predicted responses.

    Parameters
    ----------
    encoder : str or path
        A folder that ``encoder.save``, ``neuroenc run`` or ``neuroenc demo`` wrote, or the name of a shipped encoder.
    device : str
        Of the backbone: "auto" takes CUDA, then MPS, then the CPU.
    batch_size : int
        Pictures at a time; results do not depend on it (to float32 rounding).
    cache : bool
        Keep features in NEUROENC_CACHE, and take them from there.
    progress : bool

    Raises
    ------
    DataError
        No such encoder (the nearest names are told), or one that was changed after it was saved.

    Examples
    --------
    >>> import tempfile
    >>> from neuroenc.data import make_features, make_responses
    >>> from neuroenc.encoders import RidgeEncoder
    >>> rng = np.random.default_rng(0)
    >>> X = make_features(rng.standard_normal((40, 3)), stimulus=[f"s{n}" for n in range(40)])
    >>> Y = make_responses(X.values, stimulus=X.stimulus.values, dim="stimulus", units="spikes/s")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     predictor = load_predictor(RidgeEncoder(progress=False).fit(X, Y).save(folder))
    >>> predictor.predict(X).dims, predictor.card.meaning
    (('stimulus', 'voxel'), 'Values are in the units of the measured responses: spikes/s.')
    """
    resolve_device(device)  # whether or not features are in the cache
    return Predictor(load_encoder(encoder), device=device, batch_size=batch_size, cache=cache, progress=progress)


def read_stimuli(sources: Any) -> Stimuli | xr.DataArray:
    """Pictures, folders of pictures, a table of captions or features, as an encoder's recipe reads them.

    A picture's id is its name without the ending; where two have the same, their path.

    Parameters
    ----------
    sources : path or iterable of paths

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("RGB", (4, 4)).save(f"{folder}/cat.png")
    ...     found = read_stimuli(folder)
    >>> found.ids.tolist()
    ['cat']
    """
    single = isinstance(sources, (str, os.PathLike))
    if not single and not isinstance(sources, Iterable):
        raise DataError(f"stimuli are a {type(sources).__name__}; legal are paths, Stimuli, or features.")
    given = [sources] if single else list(sources)
    if strange := [type(x).__name__ for x in given if not isinstance(x, (str, os.PathLike))]:
        raise DataError(
            f"stimuli are a {type(sources).__name__} of {strange[0]}; legal are paths, Stimuli, or features."
        )
    paths = [Path(x) for x in given]
    if not paths:
        raise DataError("no stimuli were given. Next step: a picture, a folder of pictures, or features (.nc).")
    kinds = Counter(p.suffix.lower() if p.suffix.lower() in (*_TABLES, *_ARRAYS) else "pictures" for p in paths)
    if len(paths) > 1 and set(kinds) != {"pictures"}:
        raise DataError(f"{len(paths)} files of kinds {', '.join(kinds)}; legal are pictures, or one table or array.")
    if paths[0].suffix.lower() in _ARRAYS:
        return load_labelled(paths[0], "features")
    if paths[0].suffix.lower() in _TABLES:
        table = read_table(paths[0], ["stimulus", "caption"], what="captions")
        grouped = table.groupby("stimulus", sort=False)["caption"].agg(tuple)
        return Stimuli(grouped.index.to_numpy(dtype=str), captions=tuple(grouped), source=str(paths[0]))
    files: list[Path] = []
    for path in paths:
        inside = [path / name for name in list_pictures(path)] if path.is_dir() else [path]
        if not inside:
            raise DataError(f"{path} holds no pictures. Next step: a folder of .png, .jpg or other pictures.")
        files += inside
    files = list(dict.fromkeys(files))
    names = Counter(p.stem for p in files)
    ids = [p.stem if names[p.stem] == 1 else p.as_posix() for p in files]
    return Stimuli(np.array(ids, dtype=str), files, source=str(paths[0]))


def predict(
    stimuli: Any,
    encoder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    rois: bool = False,
    device: str = "auto",
    batch_size: int = 64,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> xr.DataArray:
    """Predict the responses of a saved encoder's voxels to pictures, and tell what the numbers mean.

    Parameters
    ----------
    stimuli : path, list of paths, Stimuli or DataArray
        As of `Predictor.predict`.
    encoder : str or path
        As of `load_predictor`.
    out : path, optional
        A .nc (``predicted`` (stimulus, voxel) with the held-out scores of the voxels) or a .csv (one row a stimulus).
    rois : bool
        Means over the voxels of each region in place of voxels, (stimulus, roi).
    device, batch_size, progress
        As of `load_predictor`.
    say : callable
        Called with each line that the command prints.

    Returns
    -------
    DataArray (stimulus, voxel) or (stimulus, roi)

    Raises
    ------
    ConfigError, DataError
        See `load_predictor` and `Predictor.predict`; an ending of ``out`` that is not written.
    """
    if out is not None and Path(out).suffix.lower() not in (".nc", ".csv"):
        raise ConfigError(f"out = {str(out)!r} ends in {Path(out).suffix!r}; legal endings are .nc and .csv.")
    predictor = load_predictor(encoder, device, batch_size=batch_size, progress=progress)
    if rois and "roi" not in predictor.voxels.coords:
        raise ConfigError("the voxels of this encoder have no regions (roi). Next step: leave rois out.")
    found = predictor.predict(stimuli)
    for line in prediction_lines(predictor, found):
        say(line)
    result = region_means(found) if rois else found
    if out is not None:
        say(f"written: {_write(result, predictor, Path(out))}")
    return result


def region_means(predicted: xr.DataArray) -> xr.DataArray:
    """Mean predicted response (stimulus, roi) over the voxels of each region; a voxel of several counts in each.

    Voxels without a number (NaN) are left out.

    Examples
    --------
    >>> rois = {"roi": ("voxel", ["V1", "V1;V2", "V2"])}
    >>> Y = xr.DataArray([[1.0, 2.0, 6.0]], dims=("stimulus", "voxel"), coords=rois)
    >>> region_means(Y).values.tolist()
    [[1.5, 4.0]]
    """
    names = roi_names(predicted)
    means = [predicted[:, in_roi(predicted, name)].mean("voxel") for name in names]
    found = xr.concat(means, pd.Index(names, name="roi"), coords="minimal") if names else predicted[:, :0]
    return found.transpose("stimulus", "roi").assign_attrs(predicted.attrs).rename("predicted")


def prediction_lines(predictor: Predictor, predicted: xr.DataArray) -> list[str]:
    """What the command prints: what a value means, what regions answer, and which voxels to trust."""
    card, voxels = predictor.card, predictor.voxels
    seen = sorted(set(map(str, predicted["stimulus"].values)) & set(card.stimuli))
    lines = [repr(predictor), f"  what a value means: {card.meaning}"]
    if seen:
        lines.append(
            f"  {len(seen)} of {len(predicted)} stimuli have ids of the fit (first: {seen[0]}): if they are the same, "
            "their predictions are no test."
        )
    table = card.regions().set_index("roi")[["n_voxels", "median_r"]]
    if "roi" in voxels.coords and roi_names(voxels):
        means, ids = region_means(predicted), predicted["stimulus"].values
        answers = pd.DataFrame({"mean": means.values.mean(axis=0)}, index=pd.Index(means["roi"].values, name="roi"))
        for name, at in (("highest", means.values.argmax(axis=0)), ("lowest", means.values.argmin(axis=0))):
            answers[name] = [f"{x:.2f} {ids[n]}" for x, n in zip(means.values[at, np.arange(len(at))], at)]
        table = table.reindex([*answers.index, "all voxels"][: None if len(table) else -1]).join(answers)
    if len(table):
        shown = table.reset_index().to_string(index=False, float_format=lambda x: f"{x:.2f}", na_rep="-")
        lines += [f"  {line}" for line in shown.splitlines()]
    r = voxels["r"].values if "r" in voxels else np.array([np.nan])
    if np.isfinite(r).any():
        for word, n in (("best", int(np.nanargmax(r))), ("worst", int(np.nanargmin(r)))):
            place = f" ({voxels['roi'].values[n]})" if "roi" in voxels.coords and voxels["roi"].values[n] else ""
            top = f", noise ceiling {float(voxels['noise_ceiling_r'][n]):.2f}" if "noise_ceiling_r" in voxels else ""
            lines.append(f"  {word} predicted: voxel {voxels['voxel'].values[n]}{place}, held-out r {r[n]:.2f}{top}")
    return lines


def _write(found: xr.DataArray, predictor: Predictor, path: Path) -> Path:
    if path.suffix.lower() == ".csv":
        names = [f"voxel {x}" if "voxel" in found.dims else str(x) for x in found[found.dims[1]].values]
        table = pd.DataFrame(found.values, columns=names)
        table.insert(0, "stimulus", found["stimulus"].values)
        write_table(table, path)
        return path
    scores = predictor.voxels.data_vars.items() if "voxel" in found.dims else ()
    kept = {str(k): ("voxel", v.values, v.attrs) for k, v in scores}
    return data.save(xr.Dataset({"predicted": found, **kept}), path)
