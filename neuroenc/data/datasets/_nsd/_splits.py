"""Test sets of the Natural Scenes Dataset by name, and noise ceilings of what they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from neuroenc._core.checks import one_of
from neuroenc._core.errors import DataError
from neuroenc.data._splits import _take
from neuroenc.data._stimuli import EncodingData
from neuroenc.data.datasets._nsd._design import SPLITS
from neuroenc.stats import ncsnr as estimate_ncsnr, noise_ceiling

_REST = ("train", "drop")


@dataclass(frozen=True, eq=False)
class NSDSplit:
    """Training and test rows with the numbers that papers leave out.

    ``n_listed`` pictures belong to the split, ``n_test`` of them this subject saw (the rest fell into sessions that are
    absent), ``n_train`` pictures are trained on; ``definition`` says in words which.
    """

    name: str
    definition: str
    train: xr.DataArray
    test: xr.DataArray
    n_listed: int
    n_test: int
    n_train: int

    def __repr__(self) -> str:
        return (
            f"NSDSplit({self.name}: {self.definition}; {self.n_test} of {self.n_listed} pictures seen, "
            f"{self.n_train} trained on)"
        )


def nsd_split(found: EncodingData, split: str = "shared1000", *, rest: str = "train") -> NSDSplit:
    """Split one subject's rows by the pictures that subjects share.

    Published test sets of "about 1,000" pictures are three different ones, because four subjects did not complete
    all sessions: ``shared1000`` takes every shared picture that this subject saw (1,000 for subjects 1, 2, 5 and 7, 930
    for 3 and 6, 907 for 4 and 8); ``all8`` those that all eight saw at least once (907); ``special515`` those that all
    eight saw three times (515).

    Parameters
    ----------
    found : EncodingData
        From `nsd`.
    split : {"shared1000", "all8", "special515"}
    rest : {"train", "drop"}
        What becomes of shared pictures outside the split.

    Returns
    -------
    NSDSplit
        ``train, test`` (views where rows are contiguous) and the numbers of pictures.

    Raises
    ------
    ConfigError
        The split is unknown.
    DataError
        The tree does not tell which pictures other subjects saw, or one side is empty.

    References
    ----------
    Allen et al. (2022), Nature Neuroscience 25:116.

    Examples
    --------
    >>> import tempfile
    >>> from neuroenc.data import nsd
    >>> from neuroenc.data.simulate import nsd_tree
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = nsd_tree(folder, n_subjects=1)
    ...     found = nsd(folder, 1, voxels="V1", repeats="average", cache=False, progress=False)
    >>> nsd_split(found)
    NSDSplit(shared1000: every shared picture that the subject saw at least once; 20 of 20 pictures seen, 40 trained on)
    """
    one_of("value of rest:", rest, _REST)
    one_of("split of NSD", split, SPLITS)
    if not hasattr(found, "extra"):
        raise DataError(f"found is a {type(found).__name__}; legal is what neuroenc.data.nsd returns, with its splits.")
    splits = found.extra.get("splits", {})
    if split not in splits or found.responses is None:
        raise DataError(
            f"these data do not know the split {split!r}; they know {sorted(splits)}. Next step: download "
            "nsddata/ppdata/subj*/behav/responses.tsv, or split='shared1000'."
        )
    responses = found.responses
    ids = responses["stimulus"].values
    in_test = np.isin(ids, splits[split])
    in_train = ~np.isin(ids, splits["shared1000"]) if rest == "drop" else ~in_test
    if not in_test.any() or not in_train.any():
        raise DataError(f"{split} puts {int(in_test.sum())} of {ids.size} rows into test; both sides need some.")
    train, test = _take(responses, np.flatnonzero(in_train)), _take(responses, np.flatnonzero(in_test))
    n_test, n_train = (len(np.unique(x["stimulus"].values)) for x in (test, train))
    return NSDSplit(split, SPLITS[split], train, test, len(splits[split]), n_test, n_train)


def nsd_noise_ceiling(responses: xr.DataArray, n_repeats: Any = None, *, unit: str) -> xr.DataArray:
    r"""Ceiling of a perfect model's score on means over repeats, from each voxel's ncsnr.

    .. math:: NC_{r2} = \frac{ncsnr^2}{ncsnr^2 + mean_s(1 / n_s)}, \qquad NC_r = \sqrt{NC_{r2}}

    over the pictures s of the rows, shown :math:`n_s` times: with A, B, C pictures shown 3, 2 and 1 times the
    mean is (A/3 + B/2 + C) / (A + B + C).

    Parameters
    ----------
    responses : DataArray (stimulus, voxel) or (presentation, voxel)
        From `nsd`, or its test part. The coordinate ``ncsnr`` is the data set's own; where it is absent it is estimated
        from the presentations, which must be z-scored by session.
    n_repeats : int, int array (stimulus,) or mapping repeats -> pictures, optional
        Default: the repeats averaged into each row, or those of each picture among the presentations.
    unit : {"r2", "r"}
        Share of variance, or correlation; a fraction, never percent.

    Returns
    -------
    DataArray (voxel,), float64

    Raises
    ------
    DataError
        There is neither ncsnr nor single presentations.

    References
    ----------
    Allen et al. (2022), Nature Neuroscience 25:116.

    Examples
    --------
    >>> from neuroenc.data import make_responses
    >>> r = make_responses([[0.0], [0.0]], dim="stimulus", stimulus=["a", "b"], n_repeats=[3, 1], ncsnr=[1.0])
    >>> nsd_noise_ceiling(r, unit="r2").values.round(2), nsd_noise_ceiling(r, 3, unit="r2").values
    (array([0.6]), array([0.75]))
    """
    if n_repeats is None:
        if "n_repeats" in responses.coords:
            n_repeats = responses["n_repeats"].values
        elif responses.dims[0] == "presentation":
            n_repeats = np.unique(responses["stimulus"].values, return_counts=True)[1]
        else:
            raise DataError("responses have no n_repeats. Next step: nsd_noise_ceiling(responses, 3, unit=...).")
    source = "nsd"
    if "ncsnr" in responses.coords:
        ratio = responses["ncsnr"].values
    elif responses.dims[0] == "presentation":
        ratio, source = estimate_ncsnr(responses.values, responses["stimulus"].values), "estimated from these rows"
    else:
        raise DataError("responses have no coordinate ncsnr and are averaged. Next step: nsd(..., repeats='keep').")
    values = noise_ceiling(ratio, n_repeats, unit=unit)
    coords = {k: v for k, v in responses.coords.items() if v.dims == ("voxel",)}
    return xr.DataArray(
        values, dims="voxel", coords=coords, name=f"noise_ceiling_{unit}", attrs={"unit": unit, "ncsnr": source}
    )
