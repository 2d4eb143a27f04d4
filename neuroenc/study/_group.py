"""``neuroenc group``: the finished runs of several subjects as maps of the group."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import t as student

from neuroenc import data, stats
from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import output_folder
from neuroenc._core.tables import write_table
from neuroenc.report import Page, group_sections
from neuroenc.study._export import find_scores

_ANATOMY = ("thickness", "curvature", "sulcal depth", "area")
_MESH, _LEVEL = "fsaverage5", 0.05
Mesh = dict[str, tuple[np.ndarray, np.ndarray]]  # places and faces by hemisphere


def _subjects(runs: Sequence[str | os.PathLike[str]]) -> dict[str, xr.Dataset]:
    """Scores of every subject of every run, by the subject's name; that of the folder where it has none."""
    found: dict[str, xr.Dataset] = {}
    for run in runs:
        scores = data.load(find_scores(run))
        if not isinstance(scores, xr.Dataset) or "voxel" not in scores.dims:
            raise DataError(f"{run} holds no scores over 'voxel'. Next step: the folder of a neuroenc run.")
        if "subject" not in scores.coords:
            place = Path(run).resolve()
            place = place.parent if place.is_file() else place
            place = place.parent if place.name in ("study", "report") else place
            names = np.array([place.name] * scores.sizes["voxel"])
        else:
            names = np.broadcast_to(scores["subject"].values.astype(str), scores.sizes["voxel"])
        for name in dict.fromkeys(names.tolist()):
            if name in found:
                raise DataError(
                    f"{run} is a second run of subject {name}: runs of one person are not independent. Next step: one "
                    "run a subject; two encoders of the same subjects are compared by neuroenc compare."
                )
            found[name] = scores.isel(voxel=np.flatnonzero(names == name)).drop_vars("subject", errors="ignore")
    if len(found) < 2:
        raise DataError(f"{len(runs)} runs hold {len(found)} subject; a group has at least 2.")
    return found


def group_runs(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    score: str = "r",
    chance: float = 0.0,
    alternative: str = "greater",
    min_subjects: int | None = None,
    against: str | Sequence[str | os.PathLike[str]] = (),
    null: str = "spin",
    sphere: Sequence[str | os.PathLike[str]] = (),
    permutations: int = 1000,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> Path:
    """Maps of a group of subjects from their finished runs, brought to one mesh by hemisphere and vertex.

    Parameters
    ----------
    runs : sequence of path
        Folders of ``neuroenc run``, ``caption`` or ``demo``, or files ``scores.nc``; each subject once, on fsaverage
        (finer meshes are brought to fsaverage5) or all on another mesh.
    out : path
        Folder for ``index.html``, ``scores.nc`` and ``maps/*.func.gii`` (`neuroenc.stats.group_map`), ``regions.csv``
        and ``comparison.csv``. ``neuroenc export OUT --subject group`` writes the maps as BIDS.
    score : str
        Variable of the scores.
    chance : float
        Its value without an effect.
    alternative : {"greater", "two-sided"}
    min_subjects : int, optional
        Vertices that fewer subjects have are left out; by default all are needed.
    against : str or sequence, optional
        Maps that the mean is compared with: the mean of another score of the runs, ``thickness``, ``curvature``,
        ``sulcal depth`` or ``area`` of fsaverage5, or one file a hemisphere of one map on the same mesh.
    null : {"spin", "moran"}
        Null maps of the comparison; "moran" for maps of a part of the cortex.
    sphere : two paths, optional
        Registered spheres of another mesh than fsaverage5, left and right (GIFTI or FreeSurfer): for clusters and spins
        on fsLR, or on fsaverage6 as it is.
    permutations : int
        Sign flips, and null maps.
    seed : int
    say : callable
        Called with each line that the command prints.

    Returns
    -------
    Path
        ``index.html``.

    Raises
    ------
    DataError
        A run without scores or vertices, fewer than two subjects, a subject twice, spaces that differ.
    ConfigError
        A score that not all have, an unknown name.

    Examples
    --------
    >>> group_runs(["no-such-run", "other"], "out")
    Traceback (most recent call last):
    neuroenc._core.errors.DataError: no-such-run does not exist...
    """
    one_of("null", null, ("spin", "moran"))
    check_whole("permutations", permutations)
    stacked = data.stack_subjects(_subjects(runs), space="fsaverage7" if sphere else _MESH)
    if score not in stacked:
        raise ConfigError(unknown_name("score", score, map(str, stacked), "Scores that all subjects have."))
    names = [against] if isinstance(against, str) else list(against)
    n, space, mesh = stacked.sizes["subject"], str(stacked.attrs["space"]), _mesh(stacked, sphere)
    others = _others(stacked, names, mesh)
    say(f"{n} subjects on {space}: {stacked.sizes['voxel']} vertices that any has")
    remarks = [] if mesh else [f"Vertices are on {space}, whose mesh is not at hand: no clusters (--sphere)."]
    how: dict[str, Any] = {"chance": chance, "alternative": alternative, "n_permutations": permutations, "seed": seed}
    maps = stats.group_map(
        stacked[score],
        p=stacked.get("p_value"),
        edges=_edges(stacked, mesh) if mesh else None,
        min_subjects=min_subjects,
        **how,
    ).assign_attrs(score=score, space=space, subjects=list(map(str, stacked["subject"].values)))
    least = 1 / (1 + maps.attrs["n_permutations"])
    if least > _LEVEL:
        remarks.append(f"No test over {n} subjects can pass: the least p of their sign flips is {least:.3g}.")
    if "p_value" not in stacked:
        remarks.append("Runs have no p of single subjects: no prevalence and no overlap.")
    beside = _beside(maps["mean"], others, mesh, null, permutations, seed) if others and mesh else None
    regions = _regions(stacked, maps, chance, alternative, permutations, seed)
    folder = output_folder(out)
    for name, table in (("regions", regions), ("comparison", beside)):
        if table is not None and len(table):
            write_table(table, folder / f"{name}.csv")
    settings = {**how, "min_subjects": min_subjects or n, "score": score, "runs": [str(r) for r in runs]}
    page = Page(f"{n} subjects: {score}", kicker="Group of subjects", notes=remarks, settings=settings)
    page.add(*group_sections(maps, regions, beside, score=score))
    family = "p_tfce" if "p_tfce" in maps else "p_fwe"
    say(
        f"{int(np.isfinite(maps['t']).sum())} vertices tested, {int((maps[family] <= _LEVEL).sum())} above chance "
        f"(family-wise p <= .05, {'TFCE' if family == 'p_tfce' else 'largest t'})"
    )
    for row in [] if beside is None else beside.to_dict("records"):
        say(f"with {row['map']}: r = {row['r']:.2f}, p = {row['p']:.3g} ({row['null']})")
    return page.write(folder)


def _mesh(stacked: xr.Dataset, sphere: Sequence[str | os.PathLike[str]]) -> Mesh | None:
    """Sphere of the vertices: the files given, or fsaverage5's; None where there is none."""
    space = str(stacked.attrs["space"])
    if not sphere:
        return data.load_mesh(_MESH) if space == _MESH else None
    if len(sphere) != 2:
        raise ConfigError(f"sphere names {len(sphere)} files; legal are two, of the left and the right hemisphere.")
    mesh = data.load_mesh(dict(zip("LR", sphere, strict=True)))
    for hemi, (places, _) in mesh.items():
        highest = int(stacked["vertex"].values[stacked["hemi"].values == hemi].max(initial=-1))
        if highest >= len(places) or stacked.attrs.get("n_vertices", len(places)) != len(places):
            raise DataError(
                f"the sphere of hemisphere {hemi} has {len(places)} vertices, and maps are on {space} (up to vertex "
                f"{highest}). Next step: the sphere of {space}."
            )
    return mesh


def _edges(stacked: xr.Dataset, mesh: Mesh) -> np.ndarray:
    """Neighbours among the vertices of both hemispheres."""
    pairs = []
    for hemi, (_, faces) in mesh.items():
        at = np.flatnonzero(stacked["hemi"].values == hemi)
        pairs.append(at[stats.mesh_edges(faces, stacked["vertex"].values[at])])
    return np.concatenate(pairs)


def _others(stacked: xr.Dataset, names: Sequence[str | os.PathLike[str]], mesh: Mesh | None) -> dict[str, xr.DataArray]:
    """Maps to compare with, over voxels with vertex and hemi."""
    found, files = {}, []
    for name in map(str, names):
        if name in stacked:
            found[name] = stacked[name].mean("subject")
        elif name in _ANATOMY:
            found[name] = data.load_anatomy(name)
        elif Path(name).suffix in (".gii", ".mgz", ".mgh"):
            files.append(Path(name))
        else:
            raise ConfigError(unknown_name("map", name, [*_ANATOMY, *map(str, stacked)], "Or files, .gii or .mgz."))
    if files:
        read = data.read_surface(files)
        if read.ndim != 1:
            raise DataError(f"{files[0]} holds {len(read)} maps. Next step: a file of one map.")
        found[", ".join(f.name for f in files)] = read
    space = stacked.attrs["space"]
    if found and mesh is None:
        raise DataError(f"null maps need the sphere of {space}, which is not at hand. Next step: --sphere, twice.")
    if space != _MESH and set(found) & set(_ANATOMY):
        raise DataError(f"anatomical maps are on {_MESH}, and the group on {space}. Next step: files of {space}.")
    return found


def _beside(
    mean: xr.DataArray, others: dict[str, xr.DataArray], mesh: Mesh, null: str, permutations: int, seed: int
) -> pd.DataFrame:
    """Correlation of the group's mean with other maps, against smooth null maps of them and shuffled vertices."""
    sizes = {h: len(places) for h, (places, _) in mesh.items()}
    hemi = np.repeat(list(sizes), list(sizes.values()))
    places = np.concatenate([xyz for xyz, _ in mesh.values()])

    def placed(values: xr.DataArray) -> np.ndarray:
        out, after = np.full(len(hemi), np.nan), np.where(values["hemi"].values == "R", sizes["L"], 0)
        # Of a finer fsaverage mesh, the first vertices are meant.
        inside = values["vertex"].values < np.where(after > 0, sizes["R"], sizes["L"])
        out[(values["vertex"].values + after)[inside]] = values.values[inside]
        return out

    own, rows = placed(mean), []
    for name, other in others.items():
        theirs = placed(other)
        both = np.flatnonzero(np.isfinite(own) & np.isfinite(theirs))
        if both.size < 4:
            raise DataError(
                f"{name} and the group's mean are both known in {both.size} vertices; at least 4 are needed."
            )
        for kind in (null, "permutation"):
            # A whole map can be spun beneath the part that is measured; the other nulls stay within that part.
            at = np.arange(len(own)) if kind == "spin" else both
            how: dict[str, Any] = {"null": kind, "n": permutations, "seed": seed}
            found = stats.compare_maps(own[at], theirs[at], places[at], hemi[at], **how)
            rows.append({"map": name, "null": kind, "r": found.r, "p": found.p, "n_places": int(found.n_places)})
    return pd.DataFrame(rows)


def _regions(
    stacked: xr.Dataset, maps: xr.Dataset, chance: float, alternative: str, permutations: int, seed: int
) -> pd.DataFrame | None:
    """One row a region that two subjects have: each subject's mean over its own vertices, and their mean with tests.

    The prevalence is the mean over the vertices that at least half of the subjects count to the region.
    """
    if "own_roi" not in stacked.coords:
        return None
    own, values = stacked["own_roi"].values, stacked[maps.attrs["score"]].values
    entries, code = np.unique(own, return_inverse=True)
    names = sorted({name for entry in entries for name in str(entry).split(";") if name})
    means = np.full((len(own), len(names)), np.nan)
    for column, name in enumerate(names):
        holds = np.array([name in str(entry).split(";") for entry in entries])[code.reshape(own.shape)]
        for row, mask in enumerate(holds & np.isfinite(values)):
            if mask.any():
                means[row, column] = values[row, mask].mean()
    n = np.isfinite(means).sum(axis=0)
    means, names, n = means[:, n > 1], [x for x, count in zip(names, n) if count > 1], n[n > 1]
    if not names:
        return None
    how: dict[str, Any] = {"alternative": alternative, "n_permutations": permutations, "seed": seed, "min_subjects": 2}
    test = stats.sign_flip_test(means - chance, **how)
    centre, spread = np.nanmean(means, axis=0), np.nanstd(means, axis=0, ddof=1)
    reach = student.ppf(0.975, n - 1) * spread / np.sqrt(n)
    table = {"roi": names, "n_subjects": n, "mean": centre, "low": centre - reach, "high": centre + reach}
    table |= {"t": test.statistic, "p": test.p, "p_fwe": test.p_fwe, "q": stats.fdr(test.p)}
    if "prevalence" in maps:
        shared = [[name in str(entry).split(";") for entry in maps["roi"].values] for name in names]
        table["prevalence"] = [float(maps["prevalence"].where(np.array(mask)).mean()) for mask in shared]
    subjects = {str(s): row for s, row in zip(stacked["subject"].values, means)}
    return pd.DataFrame(table | subjects)
