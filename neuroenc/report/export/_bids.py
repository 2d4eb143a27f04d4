"""Maps of scores as a BIDS derivative, with what its sidecars and its description say."""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import hash_array, hash_json, read_json, read_text, write_json, write_text
from neuroenc._core.provenance import versions
from neuroenc._core.tables import write_table
from neuroenc._version import __version__
from neuroenc.report._style import CEILINGS, SCORES, parsed, shipped
from neuroenc.report.export._files import MESHES, label_image, numeric_scores, places, save_image, vertices_of

BIDS_VERSION = "1.10.0"


def ceiling_convention(name: str, scores: xr.Dataset) -> str:
    """In words, what the ceiling of a score is; said of every score, so that none is taken for another."""
    own = str(scores[name].attrs.get("ceiling", ""))
    if name.endswith("normalised"):
        divisor = "noise_ceiling_r2" if "r2" in name or "variance" in own else "noise_ceiling_r"
        if divisor not in scores:
            return f"divided by a noise ceiling; {own or 'convention not recorded'}"
        base = str(scores[divisor].attrs.get("ceiling", "")) or own
        return f"divided by {divisor}; {CEILINGS.get(base, base or 'convention not recorded')}"
    if name == "ncsnr":
        return CEILINGS["ncsnr"]
    if own or name.startswith("noise_ceiling"):
        return CEILINGS.get(own, own or "convention not recorded")
    return "none: not divided by a noise ceiling"


def sidecar(
    name: str, scores: xr.Dataset, sources: Sequence[str], reference: str | None, labels: Mapping[str, str], origin: Any
) -> dict[str, Any]:
    """Sidecar of the map of a score, or of the regions (``roi``)."""
    software = [{"Name": package, "Version": v} for package, v in versions().items() if package != "platform"]
    common = {"SpatialReference": reference, **labels, "Sources": list(sources), "Software": software}
    own = _of_regions(scores) if name == "roi" else _of_score(name, scores)
    return own | {key: value for key, value in (common | {"Provenance": origin}).items() if value}


def _of_score(name: str, scores: xr.Dataset) -> dict[str, Any]:
    # What JSON does not hold is written as text.
    text = json.dumps(scores[name].attrs, default=lambda x: x.tolist() if hasattr(x, "tolist") else str(x))
    attrs: dict[str, Any] = json.loads(text)
    # Attributes of a score ("long_name", "units", "description") stand above what is known of it.
    known, plain = SCORES.get(name, {}), name.replace("_", " ")
    values = np.asarray(scores[name].values, float)
    out = {
        "LongName": attrs.get("long_name", known.get("name", plain)),
        "Description": attrs.get("description", known.get("meaning", f"{plain} of each voxel")),
        "Units": attrs.get("units") or ("1" if known else attrs.get("unit") or "arbitrary"),
        "Statistic": attrs.get("metric", name),
        "CeilingConvention": ceiling_convention(name, scores),
        "NumberOfVoxels": int(values.size),
        "NumberOfFiniteVoxels": int(np.isfinite(values).sum()),
        "FillValue": "NaN",
        "FillMeaning": "not part of the analysis, or without a value",
    }
    for key, attribute in (("NumberOfStimuli", "n_stimuli"), ("Split", "split"), ("Permutations", "n_permutations")):
        if attribute in attrs:
            out[key] = attrs[attribute]
    if attrs:
        out["Attributes"] = attrs
    return out


def _of_regions(scores: xr.Dataset) -> dict[str, Any]:
    return {
        "Description": "Regions of interest of each voxel; a voxel of several regions has a number of its own, whose "
        "name lists them with ';'. The numbers are explained in the .tsv file.",
        "NumberOfVoxels": int(scores.sizes["voxel"]),
        "Manual": False,
    }


def description(name: str, source_datasets: Sequence[str], licence: str | None) -> dict[str, Any]:
    """``dataset_description.json``."""
    maker = {
        "Name": "neuroenc",
        "Version": __version__,
        "Description": "Voxelwise encoding models of human visual cortex",
        "CodeURL": "https://github.com/neuroenc/neuroenc",
    }
    out: dict[str, Any] = {"Name": name, "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative"}
    out["GeneratedBy"] = [maker]
    more = {"License": licence, "SourceDatasets": [{"URL": url} for url in source_datasets]}
    return out | {key: value for key, value in more.items() if value}


# The order in which entities stand in a name. ``stat`` and the suffix ``statmap`` are those of BIDS Stats Models,
# FitLins and nilearn.
ENTITIES = ("sub", "ses", "task", "space", "hemi", "res", "den", "stat", "desc")
_LABEL = re.compile(r"[0-9A-Za-z+]+")
# Coordinate systems that BIDS describes itself: any other one is explained in the sidecar.
STANDARD_SPACES = re.compile(r"fsaverage[3456]?|fsaverageSym|fsLR|MNI[0-9A-Za-z]+|T1w|ICBM[0-9A-Za-z]+|Talairach")


# The suffix statmap, the entity stat and maps of single regions of a run are not in the validator's schema yet.
_NOTE = ".unfinished-export"
_IGNORE = "*_statmap.*\n*_dseg.*\n"
# Vertices of a hemisphere of fsaverage -> label of den.
_DENSITY = {642: "642", 2562: "3k", 10242: "10k", 40962: "41k", 163842: "164k"}


def export_bids(
    scores: xr.Dataset | xr.DataArray,
    folder: str | os.PathLike[str],
    *,
    subject: str | None = None,
    session: str | None = None,
    task: str | None = None,
    space: str | None = None,
    volume_space: str | None = None,
    resolution: str | None = None,
    density: str | None = None,
    desc: str | None = None,
    names: Sequence[str] | None = None,
    sources: Sequence[str] = (),
    source_datasets: Sequence[str] = (),
    provenance: str | Mapping[str, Any] | None = None,
    name: str = "neuroenc: voxelwise encoding models",
    licence: str | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Write every voxel map as a BIDS derivative, with sidecars and ``dataset_description.json``.

    A score ``s`` of subject 01 becomes ``sub-01/func/sub-01_space-SPACE_hemi-L_stat-S_statmap.func.gii`` (and
    ``hemi-R``) where voxels are vertices, ``sub-01/func/sub-01_space-SPACE_stat-S_statmap.nii.gz`` where they are
    voxels of a volume; regions become ``_desc-roi_dseg``, with a ``.tsv`` of names. Entities stand in the order sub,
    ses, task, space, hemi, res, den, stat, desc. Values are written as they are, float32, NaN elsewhere.

    Parameters
    ----------
    scores : Dataset or DataArray over ``voxel``
        One value for each voxel; coordinates ``vertex`` and ``hemi``, or ``i, j, k`` with the attributes ``affine``
        and ``volume_shape``. With a coordinate ``subject`` that holds several, each is written.
    folder : path
        Of the derivative, for example ``study/derivatives/neuroenc``; another subject or session can be added later.
    subject : str, optional
        Label ("01" or "sub-01"); by default the coordinate ``subject``.
    session, task, desc, resolution, density : str, optional
        Labels of ses, task, desc, res and den.
    space : str, optional
        Space of the vertices, or of the voxels where there are no vertices; by default ``scores.attrs["space"]``.
    volume_space : str, optional
        Space of the volume where voxels have both a vertex and i, j, k (default ``scores.attrs["volume_space"]``);
        without it such scores are written as surfaces only, because nobody knows what to call the volume.
    names : sequence of str, optional
        Scores to write; by default every numeric one, and ``roi`` where there are regions.
    sources : sequence of str
        BIDS URIs or file names that the maps were computed from, for the sidecars.
    source_datasets : sequence of str
        URLs or DOIs, for ``dataset_description.json``.
    provenance : JSON string or mapping, optional
        For the sidecars; by default ``scores.attrs["provenance"]``.
    name, licence : str
        Of the derivative.
    overwrite : bool
        Replace maps that exist; without it they stop the export before anything is written.

    Returns
    -------
    list of Path
        Every file written.

    Raises
    ------
    DataError
        Voxels have no place, files exist, the folder belongs to another program, two scores would share a name.
    ConfigError
        A label that BIDS does not allow, an unknown score, no subject or no space.

    References
    ----------
    Gorgolewski et al. 2016, Scientific Data 3:160044 (BIDS); BIDS specification, "Derivatives"; BIDS Stats Models,
    FitLins and nilearn's ``save_glm_to_bids`` for ``stat`` and ``statmap``.

    Examples
    --------
    >>> import tempfile
    >>> scores = xr.Dataset(
    ...     {"noise_ceiling_r": ("voxel", [0.5, 0.6])},
    ...     coords={"vertex": ("voxel", [3, 9]), "hemi": ("voxel", ["L", "R"])}, attrs={"space": "fsaverage5"},
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for file in export_bids(scores, folder, subject="01"):
    ...         print(file.name)
    dataset_description.json
    README
    .bidsignore
    sub-01_space-fsaverage5_hemi-L_stat-noiseCeilingR_statmap.func.gii
    sub-01_space-fsaverage5_hemi-L_stat-noiseCeilingR_statmap.json
    sub-01_space-fsaverage5_hemi-R_stat-noiseCeilingR_statmap.func.gii
    sub-01_space-fsaverage5_hemi-R_stat-noiseCeilingR_statmap.json
    """
    table = scores.to_dataset(name=str(scores.name or "score")) if isinstance(scores, xr.DataArray) else scores
    if "voxel" not in table.dims:
        raise DataError(f"scores has dims {tuple(map(str, table.dims))}; legal: one value for each 'voxel'.")
    if isinstance(scores, xr.DataArray):
        table = table.assign_attrs(scores.attrs)
    legal = numeric_scores(table) + (["roi"] if "roi" in table.coords and (table["roi"].values != "").any() else [])
    chosen = [one_of("score", name, legal) for name in names] if names is not None else legal
    if not chosen:
        raise DataError("scores holds no numeric value for each voxel, so there is no map to write.")
    given = {"ses": session, "task": task, "res": resolution, "den": density, "desc": desc}
    fixed = {key: None if value is None else check_label(key, value) for key, value in given.items()}
    _check_values(table, chosen)
    folder = Path(folder)
    plans: list[dict[str, Any]] = []
    for label, part in _subjects(table, subject):
        plans += _plan(part, chosen, {"sub": label, **fixed}, space, volume_space)
    _check_folder(folder)
    existing = [p["stem"] for p in plans if any((folder / p["stem"]).parent.glob(Path(p["stem"]).name + ".*"))]
    # While maps are written, a note says of what: an export that was killed goes on over its own maps.
    held = [p["scores"][p["score"]].values for p in plans]
    hashes = [hash_array(x.astype(str) if p["score"] == "roi" else x) for p, x in zip(plans, held)]
    key, note = hash_json([[p["stem"], x] for p, x in zip(plans, hashes)]), folder / _NOTE
    goes_on = note.is_file() and read_text(note).strip() == key
    if existing and not overwrite and not goes_on:
        first = Path(existing[0]).name
        raise DataError(f"{len(existing)} maps exist in {folder}, first {first}. Next step: overwrite=True.")
    written = [folder / "dataset_description.json"]
    write_json(written[0], description(name, source_datasets, licence))
    for file, text in (("README", shipped("bids_readme.txt")), (".bidsignore", _IGNORE)):
        if not (folder / file).exists():
            written.append(write_text(folder / file, text))
    write_text(note, key + "\n")
    origin = parsed(provenance if provenance is not None else table.attrs.get("provenance"))
    for plan in plans:
        written += write_map(folder, plan, sources, origin)
    note.unlink(missing_ok=True)
    return written


def _check_values(scores: xr.Dataset, names: Sequence[str]) -> None:
    """Values that maps of float32 hold, and names that files of regions hold."""
    for name in names:
        if name == "roi":
            broken = [x for x in np.unique(scores["roi"].values.astype(str)).tolist() if not x.isprintable()]
            if broken:
                raise DataError(f"region {broken[0]!r} has characters that no label file holds. Next step: rename it.")
            continue
        values = np.asarray(scores[name].values)
        if values.dtype.kind in "iu" and (values.astype(np.float32).astype(np.float64) != values).any():
            raise DataError(f"score {name!r} has whole numbers above 2**24, which maps of float32 would round.")
        if not np.isfinite(values.astype(np.float64)).any():
            warnings.warn(f"score {name!r} has no finite value: its map is empty.", stacklevel=3)


def _check_places(scores: xr.Dataset, volume: bool, surface: bool) -> None:
    """Places that a map can have, told before anything is written."""
    if surface:
        sides = sorted(set(scores["hemi"].values.astype(str).tolist()) - {"L", "R"})
        if sides:
            raise DataError(f"hemi holds {sides[:3]}; legal are 'L' and 'R'.")
        vertex = np.asarray(scores["vertex"].values)
        if vertex.dtype.kind not in "iu" or (vertex.size and vertex.min() < 0):
            raise DataError(f"vertex holds {vertex[:3].tolist()} ({vertex.dtype}); expected whole numbers from 0 on.")
        named = MESHES.get(str(scores.attrs.get("space", "")))
        if named and vertex.size and vertex.max() >= named:
            raise DataError(
                f"vertex reaches {vertex.max()}, and {scores.attrs['space']} has {named} vertices a hemisphere. "
                "Next step: name the right space."
            )
    if volume:
        ijk = [np.asarray(scores[axis].values) for axis in "ijk"]
        if any(x.dtype.kind not in "iu" for x in ijk):
            raise DataError(f"i, j, k are {[str(x.dtype) for x in ijk]}; expected whole numbers.")
        # Here, because nibabel comes with it.
        from neuroenc.data import check_place

        check_place(scores.attrs["affine"], scores.attrs["volume_shape"])


def _subjects(scores: xr.Dataset, subject: str | None) -> list[tuple[str, xr.Dataset]]:
    """Label and scores of each subject."""
    labels = np.unique(np.asarray(scores["subject"].values).astype(str)) if "subject" in scores.coords else np.array([])
    if subject is not None:
        if len(labels) > 1:
            kept = [x for x in labels.tolist() if x in (subject, f"sub-{subject}", subject.removeprefix("sub-"))]
            if not kept:
                raise ConfigError(unknown_name("subject", subject, labels.tolist()))
            scores = scores.isel(voxel=np.flatnonzero(scores["subject"].values.astype(str) == kept[0]))
        return [(check_label("sub", subject), scores)]
    if not len(labels):
        raise ConfigError("scores name no subject. Next step: subject='01'.")
    found = [(label_of(re.sub(r"^sub(-|(?=\d))", "", text)), text) for text in labels.tolist()]
    if len({label.lower() for label, _ in found}) < len(found) or not all(label for label, _ in found):
        raise DataError(f"subjects {labels.tolist()[:5]} have no distinct BIDS labels. Next step: rename them.")
    if len(found) == 1:
        return [(found[0][0], scores)]
    names = scores["subject"].values.astype(str)
    return [(label, scores.isel(voxel=np.flatnonzero(names == text))) for label, text in found]


def _plan(
    scores: xr.Dataset, names: Sequence[str], entities: dict[str, str | None], space: str | None, other: str | None
) -> list[dict[str, Any]]:
    """What will be written, and under which names; nothing is written yet."""
    volume, surface, remark = places(scores)
    if not volume and not surface:
        raise DataError(
            remark
            or "voxels have no place: neither vertex and hemi, nor i, j, k with attrs['affine'] and"
            " attrs['volume_shape']. Next step: take scores from responses that carry them."
        )
    _check_places(scores, volume, surface)
    named = str(space or scores.attrs.get("space", "") or "")
    volume_named = str(other or scores.attrs.get("volume_space", "") or "") if surface else named
    kinds = ([("surface", named)] if surface else []) + ([("volume", volume_named)] if volume else [])
    if surface and volume and not volume_named:
        kinds = kinds[:1]
    labels = stat_labels([x for x in names if x != "roi"])
    subject, session = entities["sub"], entities["ses"]
    plans = []
    for kind, text in kinds:
        if text in ("", "unknown") or not space_label(text):
            raise ConfigError(f"the space of the {kind} is not known. Next step: space='fsaverage5', 'T1w', ....")
        label = space_label(text)
        known = STANDARD_SPACES.fullmatch(label)
        where = {**entities, "space": label, "den" if kind == "volume" else "res": None}
        # fsaverage names a family of meshes: with fewer vertices than the densest, the density is part of the name.
        if kind == "surface" and label == "fsaverage" and not where["den"]:
            where["den"] = _DENSITY.get(vertices_of(scores))
        explained = {}
        if where.get("den"):
            explained["Density"] = f"{vertices_of(scores)} vertices per hemisphere"
        if where.get("res"):
            step = np.linalg.norm(np.asarray(scores.attrs["affine"], float).reshape(4, 4)[:3, :3], axis=0)
            explained["Resolution"] = " x ".join(f"{x:.3g}" for x in step) + " mm"
        reference = None if known else ("orig" if label == "orig" else f"{text}, as the source data set defines it")
        base = f"sub-{subject}/" + (f"ses-{session}/" if session else "") + "func/"
        sides = [h for h in "LR" if (scores["hemi"].values.astype(str) == h).any()] if kind == "surface" else [None]
        for score in names:
            for hemi in sides:
                own = {**where, "hemi": hemi, "stat": labels.get(score)}
                if score == "roi":
                    own["desc"] = "roi"
                stem = file_name(own, "dseg" if score == "roi" else "statmap", "")
                plan: dict[str, Any] = {"stem": base + stem, "score": score, "kind": kind, "hemi": hemi}
                plans.append(plan | {"scores": scores, "reference": reference, "labels": explained})
    return plans


def _check_folder(folder: Path) -> None:
    """A raw data set, or the derivative of another program, is not ours to write into."""
    file = folder / "dataset_description.json"
    if not file.is_file():
        return
    found = read_json(file)
    by = found.get("GeneratedBy", []) if isinstance(found, Mapping) else None
    if not isinstance(by, list):
        raise DataError(f"{file} is no description of a data set. Next step: another folder, or mend that file.")
    makers = [str(x.get("Name")) for x in by if isinstance(x, Mapping)]
    if found.get("DatasetType") != "derivative" or "neuroenc" not in makers:
        kind = found.get("DatasetType", "raw")
        raise DataError(
            f"{folder} is a {kind} data set{' of ' + ', '.join(makers) if makers else ''}. Next step: a folder of its "
            f"own, such as {folder / 'derivatives' / 'neuroenc'}."
        )


def check_label(entity: str, value: object) -> str:
    """``value`` as the label of an entity that the user wrote; a leading ``sub-`` and the like is dropped.

    >>> check_label("sub", "sub-01")
    '01'
    """
    text = str(value).removeprefix(f"{entity}-")
    if not _LABEL.fullmatch(text):
        near = label_of(text)
        step = f"Next step: {entity}={near!r}." if near else ""
        raise ConfigError(f"{entity} is {str(value)!r}; BIDS labels hold letters, digits and '+' alone. {step}".strip())
    return text


def label_of(text: object) -> str:
    """The nearest legal label: words joined as in ``noiseCeilingR``.

    >>> label_of("noise_ceiling_r"), label_of("subject 01"), label_of("hV4")
    ('noiseCeilingR', 'subject01', 'hV4')
    """
    words = re.findall(r"[0-9A-Za-z+]+", str(text))
    return "".join([*words[:1], *(w[:1].upper() + w[1:] for w in words[1:])])


def stat_labels(names: Sequence[str]) -> dict[str, str]:
    """The label of each score; two scores never share one."""
    labels = {name: label_of(name) for name in names}
    taken: dict[str, str] = {}
    for name, text in labels.items():
        if not text:
            raise DataError(f"score {name!r} holds no letter or digit to name a file by. Next step: rename it.")
        # File systems of laptops ignore case.
        if text.lower() in taken:
            raise DataError(
                f"scores {taken[text.lower()]!r} and {name!r} would both be stat-{text}. Next step: rename one."
            )
        taken[text.lower()] = name
    return labels


def space_label(space: str) -> str:
    """Label of a space as responses name it: the scanner's own grid ("native ...") is ``orig`` in BIDS.

    >>> space_label("fsaverage5"), space_label("native bold"), space_label("func1pt8mm")
    ('fsaverage5', 'orig', 'func1pt8mm')
    """
    return "orig" if space.split() and space.split()[0] == "native" else label_of(space)


def file_name(entities: Mapping[str, str | None], suffix: str, ending: str) -> str:
    """``sub-01_space-fsaverage5_hemi-L_stat-r_statmap.func.gii`` from its entities.

    >>> file_name({"stat": "r", "sub": "01", "ses": None}, "statmap", ".json")
    'sub-01_stat-r_statmap.json'
    """
    unknown = set(entities) - set(ENTITIES)
    if unknown:
        raise ConfigError(f"unknown BIDS entities {sorted(unknown)}; legal: {', '.join(ENTITIES)}.")
    parts = [f"{name}-{entities[name]}" for name in ENTITIES if entities.get(name)]
    return "_".join([*parts, suffix]) + ending


def write_map(folder: Path, plan: Mapping[str, Any], sources: Sequence[str], provenance: Any) -> list[Path]:
    """Write one map as planned (``stem, score, kind, hemi, scores, reference, labels``); image, table, sidecar."""
    from neuroenc.data import to_gifti, unmask

    scores, name, hemi = plan["scores"], plan["score"], plan["hemi"]
    base = folder / plan["stem"]
    files: list[Path] = []
    numbers: Any = scores["roi"] if name == "roi" else scores[name]
    if name == "roi":
        text = scores["roi"].values.astype(str)
        regions = sorted(set(text.tolist()) - {""})
        codes = {"": 0, **{region: k + 1 for k, region in enumerate(regions)}}
        numbers = numbers.copy(data=np.array([codes[x] for x in text.tolist()], dtype=np.int32))
        listed = pd.DataFrame([(k, region) for region, k in codes.items() if region], columns=["index", "name"])
        files.append(base.with_name(base.name + ".tsv"))
        write_table(listed, files[0], sep="\t")
    if plan["kind"] == "volume":
        kind: Any = np.int32 if name == "roi" else np.float32
        image: Any = unmask(numbers.astype(kind).assign_attrs(scores.attrs), dtype=kind)
        image.header["descrip"] = f"neuroenc {name}"[:79].encode("ascii", "replace")
        ending = ".nii.gz"
    else:
        own = numbers.isel(voxel=np.flatnonzero(scores["hemi"].values.astype(str) == hemi))
        place = own["vertex"].values, own["hemi"].values.astype(str), vertices_of(scores)
        image, ending = to_gifti(own, *place, fill=0 if name == "roi" else np.nan, name=name)[hemi], ".func.gii"
        if name == "roi":
            names = [x or "???" for x in codes]
            image, ending = label_image(image.darrays[0].data, names, dict(image.meta)), ".label.gii"
    files.insert(0, save_image(image, base.with_name(base.name + ending)))
    about = sidecar(name, scores, sources, plan["reference"], plan["labels"], provenance)
    files.append(write_json(base.with_name(base.name + ".json"), about))
    return files
