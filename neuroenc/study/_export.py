"""``neuroenc export``: the maps of a finished run, for other programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import output_folder, read_json, sha256_file
from neuroenc.report import export_bids, export_pycortex

# Where `neuroenc caption`, `neuroenc run` and `neuroenc demo` leave scores; a study is what its report was made of.
_PLACES = ("study/scores.nc", "report/scores.nc", "scores.nc")


def find_scores(run: str | os.PathLike[str]) -> Path:
    """The file of scores of a run: in ``study/``, ``report/`` or the folder itself, or the file given.

    Examples
    --------
    >>> find_scores("no-such-run")
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: no-such-run does not exist...
    """
    run = Path(run)
    if run.is_file() and run.suffix == ".nc":
        return run
    if not run.is_dir():
        said = "is no scores.nc" if run.exists() else "does not exist"
        raise DataError(f"{run} {said}. Next step: the folder that neuroenc run, demo or caption wrote.")
    for place in _PLACES:
        if (run / place).is_file():
            return run / place
    if (run / "comparison.csv").is_file():
        raise DataError(
            f"{run} is a comparison: its voxels.nc holds scores of several cells. Next step: select one of them and "
            "use neuroenc.report.export_bids."
        )
    deeper = sorted(p.parent.relative_to(run).as_posix() for p in run.glob("*/*/scores.nc") if p.parts[-3] != ".steps")
    hint = f" Next step: one of the runs within, {', '.join(deeper[:5])}." if deeper else ""
    raise DataError(f"{run} holds no scores (looked for {', '.join(_PLACES)}).{hint or ' Has the run ended?'}")


def _provenance(scores: xr.Dataset, file: Path) -> dict[str, Any]:
    """What the scores and the files beside them tell of their making."""
    found: dict[str, Any] = {"scores": {"file": file.name, "sha256": sha256_file(file)}}
    if "provenance" in scores.attrs:
        found["run"] = scores.attrs["provenance"]
    for name, key in (("provenance.json", None), ("study.json", "provenance")):
        beside = file.parent / name
        if beside.is_file() and "run" not in found:
            record = read_json(beside)
            if not isinstance(record, dict):
                raise DataError(f"{beside} holds no record. Next step: run again, or move it away.")
            found["run"] = record if key is None else record.get(key, {})
    return found


def export(
    run: str | os.PathLike[str],
    *,
    bids: str | os.PathLike[str] | None = None,
    pycortex: str | os.PathLike[str] | None = None,
    transform: str | None = None,
    n_vertices: int | tuple[int, int] | None = None,
    maps: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
    **options: Any,
) -> list[Path]:
    """Write the maps of a finished run as a BIDS derivative, or as a data set of pycortex.

    Parameters
    ----------
    run : path
        Folder of ``neuroenc run``, ``demo`` or ``caption``, or a ``scores.nc``.
    bids, pycortex : path
        Folder of the derivative; HDF5 file of pycortex. One of them, or both.
    transform, n_vertices
        Of `neuroenc.report.export_pycortex`, whose ``subject`` is the one given here.
    maps : sequence of str, optional
        Scores to write; by default all.
    say : callable
        Called with each line that the command prints.
    **options
        Of `neuroenc.report.export_bids`: ``subject, session, task, space, volume_space, resolution, density, desc,
        source_datasets, licence, overwrite``.

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    DataError, ConfigError
        No scores are found, neither file nor folder is named, or as `export_bids` and `export_pycortex`.

    Examples
    --------
    >>> export("no-such-run", bids="out")
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: no-such-run does not exist...
    """
    if bids is None and pycortex is None:
        raise ConfigError("give bids (--bids FOLDER) or pycortex (--pycortex FILE.hdf): where maps are written.")
    if pycortex is None and (transform is not None or n_vertices is not None):
        raise ConfigError("transform and n_vertices (--vertices) are of pycortex, which is not asked for.")
    file = find_scores(run)
    scores = data.load(file)
    if not isinstance(scores, xr.Dataset):
        raise ConfigError(f"{file} holds a {type(scores).__name__}; scores are a Dataset over 'voxel'.")
    source = f"{Path(run).resolve().name}/{file.relative_to(run).as_posix()}" if file != Path(run) else file.name
    written: list[Path] = []
    if pycortex is not None:
        if not options.get("subject"):
            raise ConfigError("pycortex needs the subject (--subject) by its name in pycortex's own database.")
        own = {key: options[key] for key in ("subject", "overwrite") if key in options}
        more: dict[str, Any] = {"transform": transform, "n_vertices": n_vertices, "names": maps}
        written.append(export_pycortex(scores, pycortex, **own, **more))
        say(f"pycortex: cortex.load({str(pycortex)!r}), of {file}")
    if bids is None:
        return written
    written += export_bids(
        scores, output_folder(bids), names=maps, sources=[source], provenance=_provenance(scores, file), **options
    )
    images = [p for p in written if p.name.endswith((".nii.gz", ".gii"))]
    subjects = sorted({p.name.split("_")[0] for p in images})
    say(f"{len(images)} maps of {', '.join(subjects)} from {file}")
    has_both = {"vertex", "hemi", "i", "j", "k"} <= set(scores.coords) and "affine" in scores.attrs
    if has_both and not any(p.name.endswith(".nii.gz") for p in images):
        say("voxels also have i, j, k: name the space of that volume (--volume-space) to write NIfTI files too")
    say(f"BIDS derivative: {Path(bids)}")
    return written
