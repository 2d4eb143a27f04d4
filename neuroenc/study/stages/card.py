"""Model cards of the encoders that a study saves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import data
from neuroenc.encoders import EncoderCard
from neuroenc.study.config import FEATURES, FeaturesConfig, StudyConfig
from neuroenc.study.stages.load import Subject, with_joined

_SPLITS = {
    "test": "a test set apart",
    "stimulus": "stimuli left out",
    "run": "runs left out",
    "session": "sessions left out",
    "block": "blocks of volumes left out",
}


def make_card(
    config: StudyConfig,
    one: Subject,
    *,
    space: str,
    features: Mapping[str, FeaturesConfig],
    responses: xr.DataArray,
    scores: xr.Dataset | None,
    split: str,
) -> EncoderCard:
    """The card of an encoder of one subject: its recipe from stimuli to features, its data, its held-out scores.

    Parameters
    ----------
    space : str
        Feature space, one of ``features``.
    features : mapping of str to FeaturesConfig
        Empty where features were given in memory.
    responses : DataArray (row, voxel)
        What the encoder was fitted on.
    scores : Dataset over voxel
    split : str
        Scheme of ``scores``.
    """
    source, known, licence = config.data, {}, str(responses.attrs.get("licence", ""))
    kept = with_joined(features, [space]) if space in features else {}
    if any(x.kind in ("file", "trained", "series", "columns") or x.delays for x in kept.values()):
        kept = {}  # of another's files, or of a film, nothing can be made anew
    recipe = {}
    for name, settings in kept.items():
        also = {} if "model" not in FEATURES[settings.kind] else {"model": settings.model}
        recipe[name] = settings.model_dump(exclude_defaults=True) | {"kind": settings.kind, **also}
    if source.name in ("world", "movie"):
        known = {"dataset": f"{source.name}: a simulated subject", "licence": licence or "CC0-1.0"}
    elif source.name:
        manifest = data.load_manifest(source.name)
        citation = manifest.citation + (f" https://doi.org/{manifest.doi}" if manifest.doi else "")
        known = {"dataset": f"{manifest.name}: {manifest.title}", "citation": citation, "licence": manifest.licence}
    ids = tuple(dict.fromkeys(map(str, responses["stimulus"].values)))
    stimuli = one.stimuli
    origin = stimuli.source if stimuli is not None else ""
    n_test = 0 if scores is None or "r" not in scores else int(scores["r"].attrs.get("n_stimuli", 0))
    limits = ["Anything about brains: these responses were simulated."] if source.name in ("world", "movie") else []
    rows = "" if responses.dims[0] == "stimulus" else f" in {len(responses)} presentations"
    return EncoderCard(
        title=f"{config.title}: {one.name}, {space}",
        subject=one.name,
        features=recipe,
        space=space,
        units=str(responses.attrs.get("units", "")),
        zscored=str(responses.attrs.get("zscored", "")),
        pictures=f"{len(ids)} stimuli{rows}" + (f" of {origin}" if origin else "") + f", such as {', '.join(ids[:3])}",
        stimuli=ids,
        n_fit=len(responses),
        n_test=n_test,
        split=_SPLITS.get(split, split),
        notes=tuple(config.notes),
        limits=tuple(limits),
        scores=_of_voxels(scores, responses),
        **{"licence": licence, **known},
    )


def _of_voxels(scores: xr.Dataset | None, responses: xr.DataArray) -> xr.Dataset | None:
    """Numbers of every voxel, under the voxels of the responses."""
    if scores is None:
        return None
    names = [str(k) for k, v in scores.data_vars.items() if v.dims == ("voxel",) and np.issubdtype(v.dtype, np.number)]
    table: dict[str, Any] = {k: ("voxel", scores[k].values, scores[k].attrs) for k in names}
    return xr.Dataset(table, coords={"voxel": responses["voxel"].values})
