"""What a path holds: known layouts, what is there and missing, and the call that loads it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from neuroenc._core.errors import DataError
from neuroenc._core.files import check_readable_file, read_npy
from neuroenc.data._io import load
from neuroenc.data.loaders._found import Found

__all__ = ["describe", "recognise"]


def describe(path: str | os.PathLike[str]) -> list[Found]:
    """What neuroenc recognises at a path, best first.

    Parameters
    ----------
    path
        A folder (of NSD, BOLD5000, THINGS-fMRI, Algonauts 2023, Generic Object Decoding, GLMsingle, BIDS with
        fMRIPrep), one around it, or a file (NIfTI, ``.npy``, HDF5, or netCDF and zarr written by neuroenc).

    Returns
    -------
    list of Found
        ``kind, title, root, has, missing, call``; ``print`` shows it. Empty where nothing is known.

    Raises
    ------
    DataError
        The path does not exist.

    Examples
    --------
    >>> import tempfile
    >>> from neuroenc.data.simulate import things_fmri_tree
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = things_fmri_tree(folder)
    ...     [found.kind for found in describe(folder)]
    ['things-fmri']
    """
    target = Path(path).expanduser()
    if target.is_file():
        found = _file(target)
        return [found] if found else []
    if os.path.lexists(target) and not target.is_dir():
        check_readable_file(target, "path")
    if not target.is_dir():
        near = sorted(x.name for x in target.parent.iterdir())[:6] if target.parent.is_dir() else []
        raise DataError(f"{target} does not exist; {target.parent} holds {near}.")
    if not os.access(target, os.R_OK | os.X_OK):
        raise DataError(f"{target} may not be read by you. Next step: change its permissions.")
    here = recognise(target)
    folders = sorted(x for x in target.iterdir() if x.is_dir() and os.access(x, os.R_OK | os.X_OK))
    below = [f for folder in folders[:100] for f in recognise(folder)]
    # A folder of several data sets is none of them, whatever its folders hold.
    return here if {f.kind for f in below} <= {f.kind for f in here} else below


def recognise(folder: Path) -> list[Found]:
    """Every known layout that this folder itself has."""
    from neuroenc.data.loaders import _algonauts2023, _bids_layout, _bold5000, _glmsingle, _god, _things_fmri

    checks: list[Callable[[Path], Found | None]] = [
        _nsd,
        _algonauts2023.recognise,
        _things_fmri.recognise,
        _bold5000.recognise,
        _god.recognise,
        _glmsingle.recognise,
        _bids_layout.recognise,
    ]
    return [found for check in checks if (found := check(folder)) is not None]


def _nsd(folder: Path) -> Found | None:
    if not (folder / "nsddata").is_dir() and not (folder / "nsddata_betas").is_dir():
        return None
    missing = tuple(x for x in ("nsddata", "nsddata_betas", "nsddata_stimuli") if not (folder / x).is_dir())
    betas = sorted((folder / "nsddata_betas" / "ppdata").glob("subj*/*/betas_*"))
    subjects = sorted({p.parents[1].name for p in betas})
    kinds = sorted({f"{p.parent.name}/{p.name}" for p in betas})
    has = {"subjects": ", ".join(subjects) or "none with betas", "betas": ", ".join(kinds) or "none"}
    subject = int(subjects[0][4:]) if subjects else 1
    call = f'load_dataset("nsd", root="{folder}", subject={subject})'
    return Found("nsd", "Natural Scenes Dataset", folder, has, missing, call)


def _file(path: Path) -> Found | None:
    name = path.name
    if name.endswith((".nii", ".nii.gz")):
        from neuroenc.data._images import open_image

        image = open_image(path, "image")
        shape = "x".join(str(x) for x in image.shape)
        kind = "betas or BOLD (4-D)" if len(image.shape) == 4 else "map or mask (3-D)"
        return Found(
            "nifti",
            f"NIfTI, {kind}",
            path,
            {"shape": shape},
            (),
            f'load_masked("{path}", mask="MASK.nii.gz")' if len(image.shape) == 4 else "",
        )
    if path.suffix == ".npy":
        array = read_npy(path)
        has = {"array": f"{array.dtype} {array.shape}"}
        return Found("npy", "NumPy array", path, has, (), f'make_responses(np.load("{path}"), stimulus=IDS)')
    if path.suffix == ".nc":
        load(path, chunks={})
        return Found("neuroenc", "netCDF", path, {}, (), f'load("{path}")')
    return None
