"""The files of one map of a BIDS derivative: image, sidecar, names of regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neuroenc._core.files import write_json
from neuroenc._core.tables import write_table
from neuroenc.report._bids_sidecars import map_sidecar, roi_sidecar
from neuroenc.report._exports import _n_vertices, _save

__all__ = ["write_map"]


def write_map(folder: Path, plan: Mapping[str, Any], sources: Sequence[str], provenance: Any) -> list[Path]:
    """Write one map as planned (``stem, score, kind, hemi, scores, reference, labels``); image, table, sidecar."""
    import nibabel as nib

    from neuroenc.data import to_gifti, unmask

    scores, name, hemi = plan["scores"], plan["score"], plan["hemi"]
    base = folder / plan["stem"]
    about = {"sources": sources, "reference": plan["reference"], "labels": plan["labels"], "provenance": provenance}
    files: list[Path] = []
    numbers: Any = scores["roi"] if name == "roi" else scores[name]
    if name == "roi":
        text = scores["roi"].values.astype(str)
        regions = sorted(set(text.tolist()) - {""})
        codes = {"": 0, **{region: k + 1 for k, region in enumerate(regions)}}
        numbers = numbers.copy(data=np.array([codes[x] for x in text.tolist()], dtype=np.int32))
        listed = pd.DataFrame([(k, region) for region, k in codes.items() if region], columns=["index", "name"])
        write_table(listed, base.with_name(base.name + ".tsv"), sep="\t")
        files.append(base.with_name(base.name + ".tsv"))
    sidecar = roi_sidecar(scores, **about) if name == "roi" else map_sidecar(name, scores, **about)
    if plan["kind"] == "volume":
        kind: Any = np.int32 if name == "roi" else np.float32
        image: Any = unmask(numbers.astype(kind).assign_attrs(scores.attrs), dtype=kind)
        image.header["descrip"] = f"neuroenc {name}"[:79].encode("ascii", "replace")
        ending = ".nii.gz"
    else:
        kept = np.flatnonzero(scores["hemi"].values.astype(str) == hemi)
        own = numbers.isel(voxel=kept)
        sides = to_gifti(
            own,
            scores["vertex"].values[kept],
            scores["hemi"].values[kept].astype(str),
            _n_vertices(scores),
            fill=0 if name == "roi" else np.nan,
            name=name,
        )
        image = _labelled(sides[hemi], codes) if name == "roi" else sides[hemi]
        ending = ".label.gii" if name == "roi" else ".func.gii"
    files.insert(0, _save(image, base.with_name(base.name + ending), nib))
    files.append(write_json(base.with_name(base.name + ".json"), sidecar))
    return files


def _labelled(image: Any, codes: Mapping[str, int]) -> Any:
    """A GIFTI label file: whole numbers, and the table that names and colours them."""
    from nibabel.gifti.gifti import GiftiDataArray, GiftiImage, GiftiLabel, GiftiLabelTable

    from neuroenc.report._style import category_colours

    table = GiftiLabelTable()
    colours = [(0.0, 0.0, 0.0, 0.0), *category_colours(len(codes) - 1)]
    for (name, key), (red, green, blue, alpha) in zip(codes.items(), colours):
        entry: Any = GiftiLabel(key, red, green, blue, alpha)
        entry.label = name or "???"
        table.labels.append(entry)
    data = image.darrays[0].data.astype(np.int32)
    array = GiftiDataArray(data, intent="NIFTI_INTENT_LABEL", datatype="NIFTI_TYPE_INT32")
    return GiftiImage(meta=image.meta, labeltable=table, darrays=[array])
