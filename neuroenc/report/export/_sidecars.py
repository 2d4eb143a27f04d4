"""What the sidecars and the description of a BIDS derivative say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.provenance import versions
from neuroenc._version import __version__

BIDS_VERSION = "1.10.0"

# Name, unit and meaning. Attributes of a score ("long_name", "units", "description") stand above these.
_KNOWN: dict[str, tuple[str, str, str]] = {
    "r": ("Pearson r", "1", "correlation of measured and predicted responses over held-out stimuli"),
    "r2": ("coefficient of determination", "1", "1 - residual / total sum of squares over held-out stimuli"),
    "ev": ("explained variance", "1", "1 - variance of residuals / variance of responses over held-out stimuli"),
    "r_captions": ("Pearson r of captions", "1", "correlation predicted from the embedded captions of the voxel"),
    "ncsnr": ("noise ceiling signal-to-noise ratio", "1", "standard deviation of the signal over that of the noise"),
    "noise_ceiling_r": ("noise ceiling", "1", "highest correlation that the noise allows"),
    "noise_ceiling_r2": ("noise ceiling", "1", "share of variance that the signal causes"),
    "r_normalised": ("normalised Pearson r", "1", "Pearson r over the noise ceiling in units of correlation"),
    "alpha": ("ridge penalty", "1", "penalty chosen by cross-validation"),
    "p_value": ("p", "1", "p-value of a permutation test of the correlation, uncorrected"),
    "q_value": ("q", "1", "p-value adjusted for the false discovery rate over voxels"),
}
_CEILINGS = {
    "ncsnr": "ncsnr = sd(signal) / sd(noise) from repeated stimuli; noise_ceiling_r2 = ncsnr^2 / (ncsnr^2 + "
    "mean over stimuli of 1 / repeats), noise_ceiling_r its square root (Allen et al. 2022)",
    "split_half": "split-half reliability, corrected by Spearman-Brown",
}


def ceiling_convention(name: str, scores: xr.Dataset) -> str:
    """In words, what the ceiling of a score is; said of every score, so that none is taken for another."""
    own = str(scores[name].attrs.get("ceiling", ""))
    if name.endswith("normalised"):
        divisor = "noise_ceiling_r2" if "r2" in name or "variance" in own else "noise_ceiling_r"
        if divisor not in scores:
            return f"divided by a noise ceiling; {own or 'convention not recorded'}"
        base = str(scores[divisor].attrs.get("ceiling", "")) or own
        return f"divided by {divisor}; {_CEILINGS.get(base, base or 'convention not recorded')}"
    if name == "ncsnr":
        return _CEILINGS["ncsnr"]
    if own or name.startswith("noise_ceiling"):
        return _CEILINGS.get(own, own or "convention not recorded")
    return "none: not divided by a noise ceiling"


def _plain_attributes(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as JSON holds them; what it does not hold is written as text."""
    found = {}
    for name, value in attrs.items():
        value = value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            value = str(value)
        found[str(name)] = value
    return found


def parsed(provenance: str | Mapping[str, Any] | None) -> Any:
    """Provenance as JSON writes it; text that is no JSON stays text."""
    if not isinstance(provenance, str):
        return dict(provenance) if provenance else None
    try:
        return json.loads(provenance)
    except json.JSONDecodeError:
        return provenance


def sidecar(
    name: str, scores: xr.Dataset, sources: Sequence[str], reference: str | None, labels: Mapping[str, str], origin: Any
) -> dict[str, Any]:
    """Sidecar of the map of a score, or of the regions (``roi``)."""
    software = [{"Name": package, "Version": v} for package, v in versions().items() if package != "platform"]
    common = {"SpatialReference": reference, **labels, "Sources": list(sources), "Software": software}
    own = _of_regions(scores) if name == "roi" else _of_score(name, scores)
    return own | {key: value for key, value in (common | {"Provenance": origin}).items() if value}


def _of_score(name: str, scores: xr.Dataset) -> dict[str, Any]:
    attrs = _plain_attributes(scores[name].attrs)
    long, unit, meaning = _KNOWN.get(name, (name.replace("_", " "), "arbitrary", ""))
    values = np.asarray(scores[name].values, float)
    out = {
        "LongName": attrs.get("long_name", long),
        "Description": attrs.get("description", meaning or f"{name.replace('_', ' ')} of each voxel"),
        "Units": attrs.get("units") or (unit if name in _KNOWN else attrs.get("unit") or unit),
        "Statistic": attrs.get("metric", name),
        "CeilingConvention": ceiling_convention(name, scores),
        "NumberOfVoxels": int(values.size),
        "NumberOfFiniteVoxels": int(np.isfinite(values).sum()),
        "FillValue": "NaN",
        "FillMeaning": "not part of the analysis, or without a value",
    }
    for key, attribute in (("NumberOfStimuli", "n_stimuli"), ("Split", "split"), ("Permutations", "n_permutations")):
        if attribute in attrs:
            out[key] = attrs[attribute]
    if attrs:
        out["Attributes"] = attrs
    return out


def _of_regions(scores: xr.Dataset) -> dict[str, Any]:
    return {
        "Description": "Regions of interest of each voxel; a voxel of several regions has a number of its own, whose "
        "name lists them with ';'. The numbers are explained in the .tsv file.",
        "NumberOfVoxels": int(scores.sizes["voxel"]),
        "Manual": False,
    }


def description(name: str, source_datasets: Sequence[str], licence: str | None) -> dict[str, Any]:
    """``dataset_description.json``."""
    maker = {
        "Name": "neuroenc",
        "Version": __version__,
        "Description": "Voxelwise encoding models of human visual cortex",
        "CodeURL": "https://github.com/neuroenc/neuroenc",
    }
    out = {"Name": name, "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative", "GeneratedBy": [maker]}
    more = {"License": licence, "SourceDatasets": [{"URL": url} for url in source_datasets]}
    return out | {key: value for key, value in more.items() if value}
