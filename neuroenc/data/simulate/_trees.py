"""Miniatures of two published data sets on disk, in their folders and file formats, with the values written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np


def _picture(path: Path, n: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), n % 256, dtype=np.uint8)).save(path)


def algonauts2023_tree(
    path: str | os.PathLike[str], *, subject: str = "subj01", n_train: int = 8, n_test: int = 3, seed: int = 0
) -> dict[str, Any]:
    """The Algonauts 2023 challenge of one subject: averaged responses of both hemispheres, regions, pictures.

    Parameters
    ----------
    path : path
        Root of the tree.
    subject : str
        "subj01" to "subj08".
    n_train, n_test : int
        Pictures with responses, and those whose responses the challenge kept.
    seed : int

    Returns
    -------
    dict
        ``lh, rh`` (picture, vertex) responses, ``train, test`` (73k numbers of the pictures), ``labels`` (hemisphere
        and region file -> (vertex,)).

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = algonauts2023_tree(folder)
    >>> tree["lh"].shape, tree["rh"].shape
    ((8, 9), (8, 7))
    """
    root, rng = Path(path) / subject, np.random.default_rng(seed)
    nsd = np.sort(rng.choice(73000, n_train + n_test, replace=False))
    sides = {"lh": 9, "rh": 7}
    made: dict[str, Any] = {"train": nsd[:n_train], "test": nsd[n_train:], "vertices": {}, "labels": {}}
    fmri = root / "training_split" / "training_fmri"
    masks = root / "roi_masks"
    fmri.mkdir(parents=True)
    masks.mkdir()
    for side, n in sides.items():
        values = rng.standard_normal((n_train, n))
        made[side] = ((values - values.mean(0)) / values.std(0)).astype(np.float32)
        np.save(fmri / f"{side}_training_fmri.npy", made[side])
        whole = np.zeros(163842, dtype=np.int64)
        made["vertices"][side] = np.sort(rng.choice(len(whole), n, replace=False))
        whole[made["vertices"][side]] = 1
        np.save(masks / f"{side}.all-vertices_fsaverage_space.npy", whole)
        for name, top in (("prf-visualrois", 7), ("floc-faces", 5), ("streams", 7)):
            labels = rng.integers(0, top + 1, n)
            made["labels"][side, name] = labels
            np.save(masks / f"{side}.{name}_challenge_space.npy", labels)
    # The published files are pickled dictionaries, which are not read; these stand in their place.
    (masks / "mapping_streams.npy").write_bytes(b"not opened")
    for n, i in enumerate(made["train"]):
        _picture(root / "training_split" / "training_images" / f"train-{n + 1:04d}_nsd-{i:05d}.png", n)
    for n, i in enumerate(made["test"]):
        _picture(root / "test_split" / "test_images" / f"test-{n + 1:04d}_nsd-{i:05d}.png", 100 + n)
    return made


def god_tree(
    path: str | os.PathLike[str], *, n_train: int = 8, n_test: int = 3, n_repeats: int = 4, seed: int = 0
) -> dict[str, Any]:
    """Generic Object Decoding of one subject in the authors' HDF5 format, with lists of pictures.

    Parameters
    ----------
    path : path
        Root of the tree.
    n_train, n_test : int
        Pictures shown once, and ``n_repeats`` times.
    n_repeats : int
    seed : int

    Returns
    -------
    dict
        ``values`` (trial, voxel), ``rows`` (kind of run, run, stimulus) of each trial, ``train, test`` ids, ``xyz``
        (voxel, 3) in mm.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = god_tree(folder)
    >>> tree["values"].shape
    (26, 12)
    """
    import h5py

    root, rng = Path(path), np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    # Image numbers below 100,000 are decimals with leading zeros.
    train = [f"n0151887{n % 3}_{[5958, 12, 90001][n % 3] + n}" for n in range(n_train)]
    test = [f"n0167735{n}_{7 * n + 1}" for n in range(n_test)]
    rows = [(1, n // 4 + 1, s) for n, s in enumerate(train)]
    rows += [(2, r + 1, s) for r in range(n_repeats) for s in rng.permutation(test)]
    rows += [(3, r + 1, s) for r in range(2) for s in test]
    values = rng.standard_normal((len(rows), 12)) * 2 + 1
    ids = np.array([int(s[1:9]) + int(s.split("_")[1]) / 1e6 for _, _, s in rows])
    columns = np.column_stack([values, [r[0] for r in rows], [r[1] for r in rows], ids])
    xyz = np.stack(np.meshgrid([-30, -27, -24], [-90, -87], [3, 6], indexing="ij"), -1).reshape(-1, 3)
    empty = np.full(columns.shape[1], np.nan)

    def row(flags: Any) -> np.ndarray:
        out = empty.copy()
        out[: len(flags)] = flags
        return out

    keys = {"VoxelData": row(np.ones(12)), "ROI_V1": row(np.arange(12) < 5), "ROI_VC": row(np.ones(12))}
    keys |= {"ROI_FFA": row(np.arange(12) > 9)} | {f"voxel_{a}": row(xyz[:, k]) for k, a in enumerate("xyz")}
    for n, name in enumerate(("DataType", "Run", "stimulus_id")):
        keys[name] = empty.copy()
        keys[name][12 + n] = 1
    with h5py.File(root / "Subject1.h5", "w") as handle:
        handle["dataset"] = columns
        handle["metadata/key"] = np.array([k.encode() for k in keys])
        handle["metadata/description"] = np.array([b"-"] * len(keys))
        handle["metadata/value"] = np.array(list(keys.values()))
    for part, names in (("training", train), ("test", test)):
        lines = [f"{int(s[1:9]) + int(s.split('_')[1]) / 1e6:.6f},{s}.JPEG" for s in names]
        (root / f"image_{part}_id.csv").write_text("\n".join(lines) + "\n")
        for n, s in enumerate(names):
            _picture(root / "images" / part / f"{s}.JPEG", n)
    return {"values": values, "rows": rows, "train": train, "test": test, "xyz": xyz}
