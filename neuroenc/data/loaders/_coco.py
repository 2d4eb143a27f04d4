"""COCO photographs and captions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import DataError
from neuroenc._core.files import read_json
from neuroenc.data._schema import EncodingData, Stimuli
from neuroenc.data.loaders._source import Source

__all__ = ["load_captions", "load_permissive"]


def load_permissive(source: Source) -> EncodingData:
    """111 photographs under CC BY 2.0 or CC BY-SA 2.0, each with five captions.

    Parameters
    ----------
    source
        Files of ``coco-permissive``.

    Returns
    -------
    EncodingData
        No responses. ``stimuli``: ids are COCO ids as text, images are paths (different sizes), five captions each,
        ``table`` with ``file, licence, licence_url, coco_url, flickr_url`` for attribution.

    References
    ----------
    Lin et al. (2014). Microsoft COCO: Common objects in context. ECCV.
    """
    root = source.folder()
    rows = _read(root / "manifest.json", list)
    known = {f.path for f in source.manifest.files}
    stray = [str(r.get("file")) for r in rows if r.get("file") not in known]
    if stray:
        raise DataError(f"manifest.json names files that the manifest does not list: {stray[:3]}.")
    ids = [str(r["id"]) for r in rows]
    table = pd.DataFrame(
        {
            "file": [r["file"] for r in rows],
            "licence": [r["license"][0] for r in rows],
            "licence_url": [r["license"][1] for r in rows],
            "coco_url": [r["coco_url"] for r in rows],
            "flickr_url": [r["flickr_url"] for r in rows],
        },
        index=ids,
    )
    captions = tuple(tuple(_tidy(c) for c in r["captions"]) for r in rows)
    images = [root / r["file"] for r in rows]
    stimuli = Stimuli(np.array(ids), images, captions, table, source.manifest.name, source.manifest.licence)
    return EncodingData(None, stimuli)


def load_captions(source: Source) -> EncodingData:
    """25,014 human captions of the 5,000 validation photographs of COCO 2017, without pixels.

    Parameters
    ----------
    source
        Files of ``coco-captions-val2017``.

    Returns
    -------
    EncodingData
        No responses. ``stimuli``: ids are COCO ids as text in the file's order, images None, five to seven captions
        each, ``table`` with ``file, licence, licence_url, coco_url, flickr_url, height, width`` (pixels).

    References
    ----------
    Chen et al. (2015). Microsoft COCO Captions: Data collection and evaluation server. arXiv:1504.00325.
    """
    root = source.folder()
    content = _read(root / "captions_val2017.json", dict)
    licences = {x["id"]: x for x in content["licenses"]}
    captions: dict[int, list[str]] = {x["id"]: [] for x in content["images"]}
    for annotation in content["annotations"]:
        captions[annotation["image_id"]].append(_tidy(annotation["caption"]))
    images = content["images"]
    ids = [str(x["id"]) for x in images]
    table = pd.DataFrame(
        {
            "file": [x["file_name"] for x in images],
            "licence": [licences[x["license"]]["name"] for x in images],
            "licence_url": [licences[x["license"]]["url"] for x in images],
            "coco_url": [x["coco_url"] for x in images],
            "flickr_url": [x["flickr_url"] for x in images],
            "height": [x["height"] for x in images],
            "width": [x["width"] for x in images],
        },
        index=ids,
    )
    texts = tuple(tuple(captions[x["id"]]) for x in images)
    stimuli = Stimuli(np.array(ids), None, texts, table, source.manifest.name, source.manifest.licence)
    return EncodingData(None, stimuli)


def _read(path: Path, kind: type) -> Any:
    content = read_json(path)
    if not isinstance(content, kind):
        raise DataError(f"{path} holds a {type(content).__name__}, expected a {kind.__name__}.")
    return content


def _tidy(caption: str) -> str:
    """One line: annotators left line breaks and trailing blanks."""
    return " ".join(caption.split())
