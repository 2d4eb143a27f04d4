"""Responses and stimuli: the schema, files, preprocessing, splits, volumes, data sets and simulation.

Examples
--------
>>> import neuroenc.data as data
>>> r = data.make_responses([[1.0], [3.0]], stimulus=["a", "b"], session=1)
>>> data.zscore(r, by="session").values.ravel().tolist()
[-1.0, 1.0]
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuroenc.data import simulate
    from neuroenc.data._describe import describe
    from neuroenc.data._fetch import data_dir, fetch, mirror_dir, presence, verify
    from neuroenc.data._io import load, save
    from neuroenc.data._manifest import Manifest, list_manifests, load_manifest
    from neuroenc.data._nifti import Masked, check_affine, label_rois, load_masked, region_mask, to_gifti, unmask
    from neuroenc.data._nsd._load import nsd
    from neuroenc.data._nsd._rois import nsd_mask, nsd_rois
    from neuroenc.data._nsd._splits import NSDSplit, nsd_noise_ceiling, nsd_split
    from neuroenc.data._nsd._transform import nsd_to_surface
    from neuroenc.data._pictures import find_pictures, read_picture
    from neuroenc.data._pixels import PixelBank
    from neuroenc.data._preprocess import average_repeats, zscore
    from neuroenc.data._schema import (
        EncodingData,
        Stimuli,
        align,
        in_roi,
        make_features,
        make_responses,
        match,
        roi_names,
        validate,
        validate_features,
        validate_responses,
    )
    from neuroenc.data._splits import check_disjoint, folds, shared_test, split_by, split_by_stimulus
    from neuroenc.data._surfaces import read_surface, volume_to_surface, write_surface
    from neuroenc.data.loaders import load_dataset, loader_options
    from neuroenc.data.loaders._bids import read_bids
    from neuroenc.data.loaders._glmsingle import read_glmsingle
    from neuroenc.data.simulate import simulate_cortex, simulate_world

# Loaded on first use: downloads need requests, volumes need nibabel, and none of it is needed to read a netCDF.
_MODULES = {
    "_describe": ("describe",),
    "_fetch": ("data_dir", "fetch", "mirror_dir", "presence", "verify"),
    "_io": ("load", "save"),
    "_manifest": ("Manifest", "list_manifests", "load_manifest"),
    "_nifti": ("Masked", "check_affine", "label_rois", "load_masked", "region_mask", "to_gifti", "unmask"),
    "_nsd._load": ("nsd",),
    "_nsd._rois": ("nsd_mask", "nsd_rois"),
    "_nsd._splits": ("NSDSplit", "nsd_noise_ceiling", "nsd_split"),
    "_nsd._transform": ("nsd_to_surface",),
    "_pictures": ("find_pictures", "read_picture"),
    "_pixels": ("PixelBank",),
    "_preprocess": ("average_repeats", "zscore"),
    "_schema": (
        "EncodingData",
        "Stimuli",
        "align",
        "in_roi",
        "make_features",
        "make_responses",
        "match",
        "roi_names",
        "validate",
        "validate_features",
        "validate_responses",
    ),
    "_splits": ("check_disjoint", "folds", "shared_test", "split_by", "split_by_stimulus"),
    "_surfaces": ("read_surface", "volume_to_surface", "write_surface"),
    "loaders._bids": ("read_bids",),
    "loaders._glmsingle": ("read_glmsingle",),
    "loaders": ("load_dataset", "loader_options"),
    "simulate": ("simulate_cortex", "simulate_world"),
}
_NAMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "EncodingData",
    "Manifest",
    "Masked",
    "NSDSplit",
    "PixelBank",
    "Stimuli",
    "align",
    "average_repeats",
    "check_affine",
    "check_disjoint",
    "data_dir",
    "describe",
    "fetch",
    "find_pictures",
    "folds",
    "in_roi",
    "label_rois",
    "list_manifests",
    "load",
    "load_dataset",
    "load_manifest",
    "load_masked",
    "loader_options",
    "make_features",
    "make_responses",
    "match",
    "mirror_dir",
    "nsd",
    "nsd_mask",
    "nsd_noise_ceiling",
    "nsd_rois",
    "nsd_split",
    "nsd_to_surface",
    "presence",
    "read_bids",
    "read_glmsingle",
    "read_picture",
    "read_surface",
    "region_mask",
    "roi_names",
    "save",
    "shared_test",
    "simulate",
    "simulate_cortex",
    "simulate_world",
    "split_by",
    "split_by_stimulus",
    "to_gifti",
    "unmask",
    "validate",
    "validate_features",
    "validate_responses",
    "verify",
    "volume_to_surface",
    "write_surface",
    "zscore",
]


def __getattr__(name: str) -> Any:
    if name == "simulate":
        return import_module("neuroenc.data.simulate")
    if name in _NAMES:
        return getattr(import_module(f"neuroenc.data.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'neuroenc.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
