"""COCO photographs and captions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.errors import DataError
from neuroenc._core.files import read_json
from neuroenc.data._stimuli import EncodingData, Stimuli
from neuroenc.data.datasets._registry import Dataset, Source


class Permissive(Dataset):
    """111 photographs under CC BY 2.0 or CC BY-SA 2.0, each with five captions.

    No responses. ``stimuli``: ids are COCO ids as text, images are paths (different sizes), five captions each,
    ``table`` with ``file, licence, licence_url, coco_url, flickr_url`` for attribution.

    References
    ----------
    Lin et al. (2014). Microsoft COCO: Common objects in context. ECCV.
    """

    name, title = "coco-permissive", "COCO photographs"

    def read(self, source: Source) -> EncodingData:
        root = source.folder()
        path = root / "manifest.json"
        rows = _records(path, read_json(path), ("id", "file", "license", "coco_url", "flickr_url", "captions"))
        stray = {str(r["file"]) for r in rows} - {f.path for f in source.manifest.files}
        if stray:
            raise DataError(f"{path} names files that the manifest does not list: {sorted(stray)[:3]}.")
        names, urls = zip(*(r["license"] for r in rows), strict=True)
        table = {"file": [r["file"] for r in rows], "licence": names, "licence_url": urls}
        table |= {key: [r[key] for r in rows] for key in ("coco_url", "flickr_url")}
        return _stimuli(source, rows, [root / r["file"] for r in rows], [r["captions"] for r in rows], table)


class Captions(Dataset):
    """25,014 human captions of the 5,000 validation photographs of COCO 2017, without pixels.

    No responses. ``stimuli``: ids are COCO ids as text in the file's order, images None, five to seven captions
    each, ``table`` with ``file, licence, licence_url, coco_url, flickr_url, height, width`` (pixels).

    References
    ----------
    Chen et al. (2015). Microsoft COCO Captions: Data collection and evaluation server. arXiv:1504.00325.
    """

    name, title = "coco-captions-val2017", "COCO captions"

    def read(self, source: Source) -> EncodingData:
        path = source.folder() / "captions_val2017.json"
        (content,) = _records(path, [read_json(path)], ("images", "annotations", "licenses"))
        licences = {x["id"]: x for x in _records(path, content["licenses"], ("id", "name", "url"))}
        told = ("coco_url", "flickr_url", "height", "width")
        images = _records(path, content["images"], ("id", "file_name", "license", *told))
        texts: dict[int, list[str]] = {x["id"]: [] for x in images}
        for row in _records(path, content["annotations"], ("image_id", "caption")):
            if row["image_id"] not in texts:
                raise DataError(f"{path}: a caption belongs to image {row['image_id']!r}, which it does not list.")
            texts[row["image_id"]].append(row["caption"])
        unknown = {x["license"] for x in images} - licences.keys()
        if unknown:
            raise DataError(f"{path}: images have licences {sorted(unknown)[:3]}, which it does not list.")
        table = {
            "file": [x["file_name"] for x in images],
            "licence": [licences[x["license"]]["name"] for x in images],
            "licence_url": [licences[x["license"]]["url"] for x in images],
            **{key: [x[key] for x in images] for key in told},
        }
        return _stimuli(source, images, None, [texts[x["id"]] for x in images], table)


def _records(path: Path, rows: Any, needed: tuple[str, ...]) -> list[Mapping[str, Any]]:
    """A list of records that all have the fields; the first that lacks one is named."""
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__}, expected a list of records with {', '.join(needed)}.")
    for n, row in enumerate(rows):
        lost = [k for k in needed if not isinstance(row, Mapping) or k not in row]
        if lost:
            raise DataError(f"{path}: record {n + 1} of {len(rows)} has no {lost[0]!r}. Next step: download it again.")
    return rows


def _stimuli(
    source: Source, rows: list[Mapping[str, Any]], images: list[Path] | None, texts: Any, table: dict[str, Any]
) -> EncodingData:
    ids = [str(x["id"]) for x in rows]
    # Annotators left line breaks and trailing blanks.
    captions = tuple(tuple(" ".join(c.split()) for c in own) for own in texts)
    frame = pd.DataFrame(table, index=ids)
    about = source.manifest.name, source.manifest.licence
    return EncodingData(None, Stimuli(np.array(ids), images, captions, frame, *about))
