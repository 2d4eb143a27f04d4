"""Data sets by name: ``load_dataset("haxby2001-slice")`` gives responses, stimuli and what belongs to them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.data._manifest import Manifest, load_manifest
from neuroenc.data._schema import EncodingData
from neuroenc.data.loaders._source import Source

__all__ = ["Source", "load_dataset", "loader_options"]


def load_dataset(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    mirror: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **options: Any,
) -> EncodingData:
    """Load a data set of the manifests; its files are verified, and fetched where they are missing.

    ``v4-cowley2023``
        ``session="201025"``: one of the eight listed, or any other in ``root``; responses in stimulus form (spike
        count), images (n, 112, 112, 3).
    ``haxby2001-slice``
        ``image="1slice"`` or ``"25mm"``, ``mask=None`` (automatic), ``"all"`` or, at 25 mm, ``"brain"``, ``"gray"``,
        ``"white"``, ``"hoc"``, ``"vt"``; ``delay=2.5`` seconds. Block responses in presentation form, z-scored per run.
    ``coco-permissive``, ``coco-captions-val2017``, ``objects92``
        Stimuli only; ``objects92`` has dissimilarity matrices in ``extra``.
    ``nsd``
        Read from ``root`` in its official folders; ``subject=1`` and the other options of `neuroenc.data.nsd`.
    ``bold5000``, ``things-fmri``, ``algonauts2023``, ``god``
        Read from ``root`` as published; ``subject=1``, ``voxels``, ``repeats``, ``zscore``, ``max_memory``, ...; ids of
        the published splits in ``extra["splits"]``. `neuroenc.data.describe` says what a folder holds.

    Parameters
    ----------
    name
        Data set, as in ``neuroenc data list``.
    root
        The data set's own folder, where you keep it; default: data folder, mirror, download, in this order.
    mirror
        Folder laid out as ``MIRROR/NAME/path``, used in place; default NEUROENC_MIRROR.
    progress
        Show a bar while files are fetched.
    **options
        The loader's own, as above.

    Raises
    ------
    ConfigError
        Unknown data set, option or option value; the message names the nearest.
    ChecksumError, DataError
        A file is wrong or cannot be had.

    Examples
    --------
    >>> from neuroenc.data import load_dataset
    >>> load_dataset("haxby2001-slice", imagee="25mm")
    Traceback (most recent call last):
        ...
    neuroenc._core.errors.ConfigError: unknown option of haxby2001-slice 'imagee'; did you mean 'image'? ...
    """
    manifest = load_manifest(name)
    function = _loader(manifest)
    legal = loader_options(manifest)
    for option in options:
        if option not in legal:
            raise ConfigError(unknown_name(f"option of {name}", option, legal))
    return function(Source(manifest, root=root, mirror=mirror, progress=progress), **options)


def loader_options(manifest: Manifest) -> dict[str, Any]:
    """Options of a data set's loader with their defaults.

    Examples
    --------
    >>> from neuroenc.data import load_manifest
    >>> loader_options(load_manifest("v4-cowley2023"))
    {'session': '201025'}
    """
    parameters = inspect.signature(_loader(manifest)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def _loader(manifest: Manifest) -> Callable[..., EncodingData]:
    module, _, function = manifest.loader.rpartition(".")
    try:
        found: Callable[..., EncodingData] = getattr(import_module(module), function)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ConfigError(f"{manifest.name}: the loader {manifest.loader!r} does not exist ({error}).") from error
    return found
