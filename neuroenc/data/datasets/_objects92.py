"""92 object images with dissimilarities of human and monkey IT (Kriegeskorte et al. 2008)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc.data._io import read_mat
from neuroenc.data._stimuli import EncodingData, Stimuli
from neuroenc.data.datasets._registry import Dataset, Source

_STIMULI = "Kriegeskorte_Neuron2008_supplementalData.mat"
_BRAIN = "92_brainRDMs.mat"
_LABELS = ("human", "face", "animal", "natural")


class Objects92(Dataset):
    """Stimuli, labels and representational dissimilarity matrices (1 - Pearson r between response patterns).

    No responses. ``stimuli``: images uint8 (92, 175, 175, 3) on grey, ids ``"object-01"`` to ``"object-92"``,
    ``table`` with ``category`` (text) and ``human, face, animal, natural`` (bool). ``extra``:

    ``human`` : DataArray float32 (subject 4, session 2, stimulus 92, stimulus_2 92), human IT, zero diagonal.
    ``human_mean``, ``monkey`` : DataArray float32 (stimulus, stimulus_2), as published in figure 1.

    References
    ----------
    Kriegeskorte et al. (2008). Matching categorical object representations in inferior temporal cortex of man and
    monkey. Neuron, 60, 1126-1141.
    """

    name, title = "objects92", "92 objects"

    def read(self, source: Source) -> EncodingData:
        root = source.folder()
        content = read_mat(root / _STIMULI, ("stimuli_92objs", "RDMs_mIT_hIT_fig1"))
        items = content["stimuli_92objs"].ravel()
        images = np.stack([np.asarray(x["image"], dtype=np.uint8) for x in items])
        ids = np.array([f"object-{n:02d}" for n in range(1, len(items) + 1)])
        table = pd.DataFrame({"category": [str(x["category"].item()) for x in items]}, index=ids)
        for label in _LABELS:
            table[label] = [bool(x[label].item()) for x in items]
        stimuli = Stimuli(ids, images, None, table, source.manifest.name, source.manifest.licence)
        published = {str(r["name"].item()): r["RDM"] for r in content["RDMs_mIT_hIT_fig1"].ravel()}
        extra: dict[str, Any] = {"human": _human(read_mat(root / _BRAIN, ("RDMs",)), ids)}
        for key, name in (("monkey", "mIT"), ("human_mean", "hIT")):
            found = [v for k, v in published.items() if k.startswith(name)]
            if len(found) != 1:
                raise DataError(f"{_STIMULI}: expected one matrix {name}*, found {sorted(published)}.")
            extra[key] = _matrix(found[0], ids, key)
        return EncodingData(None, stimuli, extra=extra)


def _human(content: dict[str, Any], ids: np.ndarray) -> xr.DataArray:
    rdms = content["RDMs"].reshape(content["RDMs"].shape[-2:])
    # Names read "hIT | BE | Session: 1".
    names = [[str(r["name"].item()).split("|") for r in row] for row in rdms]
    values = np.stack([np.stack([_matrix(r["RDM"], ids, "human").values for r in row]) for row in rdms])
    subjects, sessions = [row[0][1].strip() for row in names], [int(x[2].split(":")[1]) for x in names[0]]
    coords = {"subject": subjects, "session": sessions, "stimulus": ids, "stimulus_2": ids}
    return xr.DataArray(values, coords, tuple(coords), name="human")


def _matrix(values: np.ndarray, ids: np.ndarray, name: str) -> xr.DataArray:
    from scipy.spatial.distance import squareform

    square = squareform(np.ravel(values)) if values.shape != (len(ids), len(ids)) else np.array(values)
    if not np.allclose(square, square.T, atol=1e-6):
        raise DataError(f"the dissimilarities {name!r} are not symmetric.")
    np.fill_diagonal(square, 0)
    coords = {"stimulus": ids, "stimulus_2": ids}
    return xr.DataArray(square.astype(np.float32), coords, tuple(coords), name=name)
