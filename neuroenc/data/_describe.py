"""What a path holds: known layouts, what is there and missing, and the call that loads it."""

from __future__ import annotations

import os
from pathlib import Path

from neuroenc._core.errors import DataError
from neuroenc._core.files import check_readable_file, read_npy
from neuroenc.data._io import load
from neuroenc.data.datasets._registry import Found, recognise

__all__ = ["describe"]


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
    >>> from neuroenc.data.simulate import god_tree
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tree = god_tree(folder)
    ...     [found.kind for found in describe(folder)]
    ['god']
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
