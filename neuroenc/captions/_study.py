"""Caption studies: tables of captions, scores and checks, saved and loaded, and their methods paragraph."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.files import atomic_path, plain_json, read_sealed_json, sha256_file, write_sealed_json
from neuroenc._core.optional import require
from neuroenc._core.provenance import versions
from neuroenc._core.schema import COLUMNS, VERDICTS, check_scores, check_vectors, check_voxel_table
from neuroenc._core.weights import reading, whole_folder

#: numpy's type of each kind of column.
_DTYPES: dict[str, Any] = {"bool": bool, "int": np.int64, "float": np.float64, "text": object}


def _kind(column: pd.Series) -> str:
    """What a column holds: a CSV file does not say."""
    found, whole = pd.api.types.infer_dtype(column, skipna=True), not column.isna().any()
    if found in ("boolean", "integer") and whole:
        return {"boolean": "bool", "integer": "int"}[found]
    return "float" if found in ("integer", "floating", "mixed-integer-float") else "text"


def _typed(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table with plain dtypes (text as object, a missing one as ""), and the kind of each column."""
    kinds = {str(name): _kind(frame[name]) for name in frame.columns}
    out: dict[str, Any] = {str(name): frame[name].tolist() for name in frame.columns}
    for name in (name for name, kind in kinds.items() if kind == "text"):
        out[name] = ["" if not isinstance(x, str) and pd.isna(x) else str(x) for x in out[name]]
    return pd.DataFrame(out, columns=list(kinds)).astype({name: _DTYPES[kind] for name, kind in kinds.items()}), kinds


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The table as files give it back."""
    return _typed(frame)[0].reset_index(drop=True)


def write_table(frame: pd.DataFrame, path: Path) -> dict[str, Any]:
    """Write ``path.parquet`` or ``path.csv``, atomically; what `read_table` needs to read it back."""
    plain, kinds = _typed(frame)
    file = path.with_name(path.name + (".parquet" if find_spec("pyarrow") else ".csv"))
    with atomic_path(file) as temporary:
        if file.suffix == ".parquet":
            plain.to_parquet(temporary, index=False)
        else:
            plain.to_csv(temporary, index=False, lineterminator="\n", encoding="utf-8")
    return {"file": file.name, "columns": kinds, "sha256": sha256_file(file)}


def read_table(folder: Path, kept: dict[str, Any]) -> pd.DataFrame:
    """Read a table that `write_table` wrote."""
    file = folder / Path(kept["file"]).name
    if not file.is_file() or sha256_file(file) != kept["sha256"]:
        state = "is missing" if not file.is_file() else "is not the one written with study.json"
        raise DataError(f"{file} {state}. Next step: save the study again, or copy the whole folder.")
    dtypes = {name: _DTYPES[kind] for name, kind in kept["columns"].items()}
    if file.suffix == ".parquet":
        require("pyarrow", "report")
        return pd.read_parquet(file).astype(dtypes)
    if not dtypes:
        return pd.DataFrame()
    # pandas' own conversion of numbers is off in the last place now and then.
    convert: Any = {name: lambda cell: float(cell or "nan") for name, dtype in dtypes.items() if dtype is np.float64}
    others = {name: dtype for name, dtype in dtypes.items() if name not in convert}
    frame = pd.read_csv(file, dtype=others, converters=convert, keep_default_na=False, encoding="utf-8")
    return frame.astype(dtypes)


_MARK = "neuroenc caption study"
# Data sets, each in a netCDF file.
_ARRAYS = ("scores", "vectors")
# What study.json holds as it is.
_PLAIN = ("title", "settings", "provenance", "caveats")


@dataclass(frozen=True, eq=False, repr=False)
class CaptionStudy:
    """Study of voxel captions: captions, scores, evidence, checks, analyses and settings.

    Tables are sorted by voxel (in the order of ``scores``) and rank, voxels are those of ``scores``, and every
    voxel has a row in ``gate``: a voxel that did not pass has a reason and no caption.

    Parameters
    ----------
    title : str
    scores : Dataset over ``voxel``
        ALL voxels, captioned or not: ``r`` (Pearson, held-out), optionally ``noise_ceiling_r``,
        ``noise_ceiling_r2``, ``r_normalised``, ``p_value``, ``q_value``; coordinates ``voxel`` (unique over
        subjects), ``roi`` (names joined by ";"), ``subject``, ``i, j, k`` or ``vertex, hemi``; attributes
        ``affine``, ``volume_shape``, ``space``.
    captions : DataFrame
        ``voxel, rank`` (from 1)``, caption, score``, and ``caption_id, predicted, evidence, n_phrases,
        n_supported, n_unsupported`` where known.
    evidence : DataFrame
        ``voxel, rank, stimulus, predicted`` (units of the responses), and where patch maps were made ``places``: digits
        of each row of the map, from the top, joined by "/"; 9 drives the voxel most.
    gate : DataFrame
        ``voxel, captioned`` (bool)``, reason`` ("" where captioned), one row for each voxel of ``scores``.
    phrases : DataFrame, optional
        ``voxel, rank, phrase, start, end`` (characters of the caption)``, in_images`` (share)``, predicted,
        percentile, verdict`` ("supported", "uncertain", "unsupported"), and ``place_r, place_percentile`` where known.
    stability : DataFrame, optional
        ``voxel`` and, for each kind (folds, bootstrap, halves), mean agreement and ``KIND_null``.
    sentence : DataFrame, optional
        ``voxel, rho, shuffled, shuffled_within_roi`` of `sentence_scores`.
    quality : mapping of str to DataFrame
        Small tables by name, such as "round trip", "diversity", "controls".
    words : DataFrame, optional
        ``roi, part`` ("noun", "verb", "attribute", "relation")``, word, count, share`` and ``lift``; over ``folds``
        where there are any, with ``share_sd`` over them.
    concepts, categories, clusters, contrasts : DataFrame, optional
        Per region (column ``roi``), or per voxel (column ``voxel``).
    colours : DataFrame, optional
        ``voxel, x, y, z`` from 0 to 1: projected weights in three dimensions (`direction_map`).
    vectors : Dataset, optional
        Of voxels and a vocabulary (:func:`neuroenc.captions.search_vectors`), for searches by what words mean.
    retrieved : DataFrame, optional
        Stimuli, captions and categories that carry a voxel's n-grams, with BM25's answer beside each: what
        `retrieve_stimuli` found.
    folds : DataFrame, optional
        ``voxel, fold`` (from 1)``, caption``: each voxel's best caption from each of several parts of the bank.
    settings : mapping
        By part: ``encoder, features, bank, projection, decoder, captions, gate, folds, grounding, stability,
        sentence, images, retrieval, seed``; `methods` writes from these.
    provenance : mapping
        ``versions`` and hashes.
    caveats : tuple of str

    Raises
    ------
    DataError
        A column is missing, a table speaks of voxels that ``scores`` does not hold, a voxel that the gate held
        back has a caption, or a phrase does not stand where it says in its caption.

    Examples
    --------
    >>> scores = xr.Dataset({"r": ("voxel", [0.5, 0.1])}, coords={"voxel": [7, 9]})
    >>> study = CaptionStudy(
    ...     "two voxels", scores,
    ...     captions=pd.DataFrame({"voxel": [7], "rank": [1], "caption": ["a dog"], "score": [0.3]}),
    ...     evidence=pd.DataFrame({"voxel": [7], "rank": [1], "stimulus": ["s1"], "predicted": [1.2]}),
    ...     gate=pd.DataFrame({"voxel": [7, 9], "captioned": [True, False], "reason": ["", "q = 0.31"]}))
    >>> study
    CaptionStudy('two voxels': 2 voxels, 1 captioned; tables captions, evidence, gate)
    >>> import tempfile
    >>> CaptionStudy.load(study.save(tempfile.mkdtemp())).captions["caption"].tolist()
    ['a dog']
    """

    title: str
    scores: xr.Dataset
    captions: pd.DataFrame
    evidence: pd.DataFrame
    gate: pd.DataFrame
    phrases: pd.DataFrame | None = None
    stability: pd.DataFrame | None = None
    sentence: pd.DataFrame | None = None
    quality: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    words: pd.DataFrame | None = None
    concepts: pd.DataFrame | None = None
    categories: pd.DataFrame | None = None
    clusters: pd.DataFrame | None = None
    contrasts: pd.DataFrame | None = None
    colours: pd.DataFrame | None = None
    vectors: xr.Dataset | None = None
    retrieved: pd.DataFrame | None = None
    folds: pd.DataFrame | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        voxels = check_scores(self.scores, ids=True)["voxel"].values
        for name in COLUMNS:
            frame = getattr(self, name)
            if frame is None and name not in ("captions", "evidence", "gate"):
                continue
            object.__setattr__(self, name, typed(check_voxel_table(frame, name, voxels)))
        _check_gate(self.gate, self.captions, voxels)
        if self.phrases is not None:
            _check_phrases(self.phrases, self.captions)
        if self.vectors is not None:
            check_vectors(self.vectors, voxels)
        for name, frame in self.quality.items():
            if not isinstance(frame, pd.DataFrame):
                raise DataError(f"quality[{name!r}] is a {type(frame).__name__}; legal: pandas.DataFrame.")
        # What is kept in memory is what files give back: plain columns, plain settings.
        object.__setattr__(self, "quality", {str(name): typed(frame) for name, frame in self.quality.items()})
        object.__setattr__(self, "caveats", tuple(str(x) for x in self.caveats))
        for name in ("settings", "provenance"):
            try:
                object.__setattr__(self, name, plain_json(dict(getattr(self, name))))
            except (TypeError, ValueError) as error:
                raise DataError(f"{name} hold what no file can keep: {error}.") from error

    def __repr__(self) -> str:
        tables = ", ".join(name for name in COLUMNS if getattr(self, name) is not None)
        return (
            f"CaptionStudy({self.title!r}: {self.scores.sizes['voxel']} voxels, "
            f"{self.captions['voxel'].nunique()} captioned; tables {tables})"
        )

    def methods(self) -> str:
        """Methods paragraph: encoder, bank, projection, decoder, gate, tests, versions, references.

        It says what ``settings`` says and nothing else: a part without settings has no sentence.

        Examples
        --------
        >>> study = CaptionStudy(
        ...     "x", xr.Dataset({"r": ("voxel", [0.5])}, coords={"voxel": [7]}),
        ...     captions=pd.DataFrame({"voxel": [7], "rank": [1], "caption": ["a dog"], "score": [0.3]}),
        ...     evidence=pd.DataFrame(columns=["voxel", "rank", "stimulus", "predicted"]),
        ...     gate=pd.DataFrame({"voxel": [7], "captioned": [True], "reason": [""]}),
        ...     settings={"projection": {"temperature": 1 / 150}})
        >>> "softmax temperature 1/150" in study.methods()
        True
        """
        return methods_text(self)

    def failed_controls(self) -> pd.Series:
        """Controls that the best caption of each voxel does not exceed, joined by "; "; "" where it exceeds all.

        Compared are, where they were measured, the sentence-level score with that of other voxels' captions for the
        same voxel (of its region, where known), the percentile of the round trip with that of other voxels' captions,
        and the agreement of captions with that of shuffled weights; and what the column ``control`` of the captions
        says. A single voxel has no p: captions that say nothing fail about every second comparison.

        Returns
        -------
        Series of str
            By voxel, of those that have a caption; None where nothing was measured.

        Examples
        --------
        >>> said = pd.DataFrame({"voxel": [7, 9], "rank": 1, "caption": ["a dog", "a cat"], "score": 0.3})
        >>> study = CaptionStudy(
        ...     "two voxels", xr.Dataset({"r": ("voxel", [0.5, 0.4])}, coords={"voxel": [7, 9]}), captions=said,
        ...     evidence=pd.DataFrame(columns=["voxel", "rank", "stimulus", "predicted"]),
        ...     gate=pd.DataFrame({"voxel": [7, 9], "captioned": True, "reason": ""}),
        ...     sentence=pd.DataFrame({"voxel": [7, 9], "rho": [0.3, 0.0], "shuffled": [0.1, 0.1]}))
        >>> study.failed_controls().to_dict()
        {7: '', 9: 'sentence-level score'}
        """
        best = self.captions[self.captions["rank"] == 1].drop_duplicates("voxel").set_index("voxel")
        checks: list[tuple[str, pd.Series, Any]] = []
        if self.sentence is not None:
            told = self.sentence.drop_duplicates("voxel").set_index("voxel")
            null = next((c for c in ("shuffled_within_roi", "shuffled") if c in told and told[c].notna().any()), None)
            if null is not None:
                checks.append(("sentence-level score", told["rho"], told[null]))
        if {"round_trip", "round_trip_shuffled"} <= set(best):
            checks.append(("round trip", best["round_trip"], best["round_trip_shuffled"]))
        if self.stability is not None:
            stable = self.stability.drop_duplicates("voxel").set_index("voxel")
            for kind in (str(c) for c in stable if f"{c}_null" in stable):
                checks.append((f"stability, {kind}", stable[kind], stable[f"{kind}_null"]))
        measured, failed = pd.Series(False, index=best.index), pd.Series("", index=best.index, dtype=object)
        for name, value, null in checks:
            v, n = (np.asarray(x.reindex(best.index), dtype=float) for x in (value, null))
            known = np.isfinite(v) & np.isfinite(n)
            measured |= known
            bad = known & (v <= n)
            failed = failed.where(~bad, failed.map(lambda x, name=name: f"{x}; {name}" if x else name))
        if "control" in best:
            # What a control of all captions together said.
            said = best["control"].fillna("").astype(str)
            measured[:] = True
            failed = failed.where(said == "", said.where(failed == "", failed + "; " + said))
        return failed.where(measured, None)

    def judged(self) -> CaptionStudy:
        """The study with its `verdicts` in ``quality``, and `failed_controls` in the column ``fails`` of captions."""
        failed, captions = self.failed_controls(), self.captions
        if not failed.isna().all():
            # A voxel's best caption is judged; those of lower rank are not.
            fails = np.where(captions["rank"] == 1, captions["voxel"].map(failed.fillna("")).fillna(""), "")
            captions = captions.assign(fails=fails)
        return replace(self, captions=captions, quality=self.verdicts())

    def verdicts(self) -> dict[str, pd.DataFrame]:
        """Tables of ``quality``, with what their controls say in the column ``verdict`` where they have any."""
        return {str(name): with_verdicts(str(name), frame) for name, frame in self.quality.items()}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``scores.nc`` (``vectors.nc``), a table each (parquet, or CSV), and ``study.json`` with their hashes.

        The folder is written beside its place and put there whole: a reader, or a save that was killed, sees the study
        of before or this one. `load` gives back an equal study.

        Parameters
        ----------
        folder : path
            Made if absent; a study that stood there is replaced.

        Returns
        -------
        Path
            The folder.

        Raises
        ------
        DataError
            Something in ``scores`` that netCDF does not keep, or a folder that holds other things.
        """
        from neuroenc.data import save

        folder = Path(folder)
        arrays = {name: getattr(self, name) for name in _ARRAYS if getattr(self, name) is not None}
        with whole_folder(folder, ("*.parquet", "*.csv", *(f"{x}.nc" for x in _ARRAYS), "study.json")) as temporary:
            for name, found in arrays.items():
                save(found, temporary / f"{name}.nc")
            tables = {
                name: write_table(getattr(self, name), temporary / name)
                for name in COLUMNS
                if getattr(self, name) is not None
            }
            quality = [
                {"name": name, **write_table(frame, temporary / f"quality-{number:02d}")}
                for number, (name, frame) in enumerate(self.quality.items())
            ]
            about = {"format": _MARK, "version": 1, "tables": tables, "quality": quality}
            about |= {name: getattr(self, name) for name in _PLAIN}
            about |= {name: sha256_file(temporary / f"{name}.nc") for name in arrays}
            write_sealed_json(temporary / "study.json", about)
        return folder

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> CaptionStudy:
        """Read what `save` wrote.

        Raises
        ------
        DataError
            No study stands there, or a file is missing or is not the one that was written with the others.
        """
        from neuroenc.data import load

        folder = Path(folder)
        if not (folder / "study.json").is_file():
            found = sorted(x.name for x in folder.iterdir())[:8] if folder.is_dir() else []
            raise DataError(
                f"{folder} holds no caption study: no study.json (found: {', '.join(found) or 'nothing'}). "
                "Next step: CaptionStudy.save(folder), or finish the run that writes it."
            )
        about = read_sealed_json(folder / "study.json")
        if about.get("format") != _MARK or about.get("version") != 1:
            raise DataError(
                f"{folder / 'study.json'} is not a caption study of version 1. "
                "Next step: the folder that CaptionStudy.save wrote."
            )
        with reading(folder, "caption study"):
            arrays: dict[str, Any] = {}
            for name in (x for x in _ARRAYS if x == "scores" or x in about):
                file = folder / f"{name}.nc"
                if not file.is_file() or sha256_file(file) != about[name]:
                    raise DataError(f"{file} is not the one written with study.json. Next step: save again.")
                arrays[name] = load(file)
                if not isinstance(arrays[name], xr.Dataset):
                    raise DataError(f"{file} holds no table of {name}. Next step: save again.")
            quality = {kept["name"]: read_table(folder, kept) for kept in about["quality"]}
            held = about["tables"].items()
            tables: dict[str, Any] = {name: read_table(folder, kept) for name, kept in held if name in COLUMNS}
            return cls(**arrays, quality=quality, **tables, **{name: about[name] for name in _PLAIN})


def verdict(than: str, p: float | None = None, interval: tuple[float, float] | None = None) -> str:
    """Whether a measure is above its control.

    Parameters
    ----------
    than : str
        What the control is.
    p : float, optional
        Of the difference; above its control where it is at most 0.05.
    interval : tuple of float, optional
        The measure's interval, minus its control: above it where all of it is.

    Returns
    -------
    str
        "above THAN", "not above THAN", or "not measured", with p where it is known.

    Examples
    --------
    >>> verdict("other voxels' captions", p=0.0099), verdict("chance", interval=(-0.1, 0.2))
    ("above other voxels' captions (p = 0.0099)", 'not above chance')
    """
    known = [x for x in ((p,) if p is not None else interval or ()) if x is not None and np.isfinite(x)]
    if not known:
        return "not measured"
    above = p <= 0.05 if p is not None else min(known) > 0
    shown = "" if p is None else f" (p = {p:.2g})"
    return f"{'above' if above else 'not above'} {than}{shown}"


def with_verdicts(name: str, table: pd.DataFrame) -> pd.DataFrame:
    """A table of ``CaptionStudy.quality`` with what its controls say in the column ``verdict``.

    Tables of another name, or without the columns that are needed, come back as they are.
    """
    if not len(table):
        return table
    rows = table.to_dict("records")
    said: list[str] | None = None
    if name in ("sentence-level scores", "round trip") and "p" in table:
        said = [verdict("other voxels' captions", p=row["p"]) for row in rows]
    elif name == "five-way accuracy" and {"kind", "p"} <= set(table):
        control = "shuffled weights"
        said = ["the control" if r["kind"] == control else verdict("other voxels' images", p=r["p"]) for r in rows]
    elif name == "stability" and {"low", "high", "shuffled_weights"} <= set(table):
        control = "shuffled_weights"
        said = [verdict("shuffled weights", interval=(r["low"] - r[control], r["high"] - r[control])) for r in rows]
    elif name == "hallucination rate" and {"low", "high", "chance"} <= set(table):
        # Few unsupported phrases are good ones: turned round.
        turned = [verdict("x", interval=(row["chance"] - row["high"], row["chance"] - row["low"])) for row in rows]
        said = [text.replace("above x", "below chance") for text in turned]
    elif len(table) == 2 and table.iloc[:, 0].tolist() == ["fitted weights", "shuffled weights"]:
        said = _of_pair(name, rows)
    return table if said is None else table.drop(columns="verdict", errors="ignore").assign(verdict=said)


def _of_pair(name: str, rows: list[dict[Any, Any]]) -> list[str] | None:
    """Captions of fitted weights beside those of shuffled ones, in two rows."""
    fitted, shuffled = rows
    if name == "diversity":
        if "semantic_variance_low" not in fitted:
            return None
        gap = fitted["semantic_variance_low"] - shuffled["semantic_variance_high"]
        return [verdict("shuffled weights", interval=(gap, gap)), "the control"]
    column = next((c for c in ("family_named", "both_named") if fitted.get(c) is not None), None)
    if column is None or shuffled.get(column) is None:
        return None
    n = max(int(fitted.get("n") or 1), 1)
    share, chance = float(fitted[column]), float(shuffled[column])
    # Two standard errors of the difference of two shares.
    half = 1.96 * np.sqrt((share * (1 - share) + chance * (1 - chance)) / n)
    return [verdict("shuffled weights", interval=(share - chance - half, share - chance + half)), "the control"]


def _check_gate(gate: pd.DataFrame, captions: pd.DataFrame, voxels: np.ndarray) -> None:
    if len(gate) != len(voxels) or gate["voxel"].duplicated().any():
        raise DataError(
            f"gate has {len(gate)} rows ({gate['voxel'].nunique()} voxels) for {len(voxels)} voxels of scores; "
            "legal: one row each."
        )
    if gate["captioned"].dtype != bool:
        raise DataError(f"gate['captioned'] has dtype {gate['captioned'].dtype}; legal: bool.")
    held = captions["voxel"].isin(gate.loc[~gate["captioned"], "voxel"])
    if held.any():
        raise DataError(
            f"{captions.loc[held, 'voxel'].nunique()} voxels that the gate held back have captions (first: "
            f"{captions.loc[held, 'voxel'].iloc[0]}). Next step: caption with mask=gate['captioned']."
        )
    mute = ~gate["captioned"] & (gate["reason"].astype(str).str.strip() == "")
    if mute.any():
        raise DataError(
            f"{int(mute.sum())} voxels were held back without a reason (first: {gate.loc[mute, 'voxel'].iloc[0]}). "
            "Next step: say why in gate['reason'], such as 'not predicted above chance (q = 0.31)'."
        )
    texts = captions["caption"]
    if len(texts) and (texts.isna() | (texts.astype(str).str.strip() == "")).any():
        raise DataError("captions hold empty captions. Next step: leave those rows out.")
    twice = captions.duplicated(["voxel", "rank"])
    if twice.any():
        raise DataError(f"captions hold {int(twice.sum())} second rows of the same voxel and rank.")


def _check_phrases(phrases: pd.DataFrame, captions: pd.DataFrame) -> None:
    strange = sorted(set(phrases["verdict"].astype(str)) - set(VERDICTS))
    if strange:
        raise DataError(f"phrases have verdict {strange[0]!r}; legal: {', '.join(VERDICTS)}.")
    text = captions.set_index(["voxel", "rank"])["caption"]
    keys = pd.MultiIndex.from_frame(phrases[["voxel", "rank"]])
    lost = ~keys.isin(text.index)
    if lost.any():
        raise DataError(f"{int(lost.sum())} phrases belong to captions that are not there (first: {keys[lost][0]}).")
    for caption, phrase, a, b in zip(text.reindex(keys), phrases["phrase"], phrases["start"], phrases["end"]):
        if not 0 <= int(a) < int(b) <= len(str(caption)):
            raise DataError(
                f"the phrase {phrase!r} spans characters {a}..{b} of a caption of {len(str(caption))} characters: "
                f"{caption!r}. Next step: start and end count characters of that caption, end exclusive."
            )


def _said(value: Any) -> str:
    if isinstance(value, float):
        near = Fraction(value).limit_denominator(1000) if 0.001 <= value < 0.1 else Fraction(0)
        if near.numerator == 1 and abs(value * near.denominator - 1) < 1e-6 and 100 % near.denominator:
            return f"1/{near.denominator}"  # a softmax temperature is written as 1/150
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{str(k).replace('_', ' ')} {_said(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        items = list(value)
        if len(items) > 6:
            return f"{len(items)} values, {_said(items[0])} to {_said(items[-1])}"
        return ", ".join(map(_said, items))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


class _Part:
    """One part of the settings; what a sentence has not used is appended to it in brackets."""

    def __init__(self, settings: Mapping[str, Any], name: str) -> None:
        value = settings.get(name)
        self.there = value is not None and value != {}
        self._left = dict(value) if isinstance(value, Mapping) else ({"": value} if self.there else {})

    def take(self, *names: str) -> str | None:
        """The first of these settings that is there, as text."""
        for name in names:
            if name in self._left and self._left[name] is not None:
                return _said(self._left.pop(name))
        return None

    def rest(self) -> str:
        items = [f"{str(k).replace('_', ' ')} {_said(v)}".strip() for k, v in self._left.items() if v not in (None, "")]
        return f" ({'; '.join(items)})" if items else ""


def _join(items: list[Any]) -> str:
    names = [str(x) for x in items]
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else ""


def methods_text(study: Any) -> str:
    """See `CaptionStudy.methods`."""
    from jinja2 import Template

    settings, scores, stability, cited = study.settings, study.scores, study.stability, dict[str, str]()

    def cite(name: str, reference: str) -> str:
        cited[name] = reference
        return ""

    names = ("features", "encoder", "folds", "gate", "bank", "projection", "decoder", "captions", "images")
    parts = {name: _Part(settings, name) for name in (*names, "grounding", "stability", "sentence", "retrieval")}
    kinds = [] if stability is None else [c for c in stability if f"{c}_null" in stability]
    facts = {
        "n": scores.sizes["voxel"],
        "n_captioned": int(study.gate["captioned"].sum()),
        "n_stimuli": str(scores["r"].attrs.get("n_stimuli", "")).strip(),
        "ceiling": "noise_ceiling_r" in scores or "noise_ceiling_r2" in scores,
        "checked": study.phrases is not None,
        "n_stable": None if stability is None else stability["voxel"].nunique(),
        "kinds": _join([c for c in kinds if c != "voxel" and not str(c).endswith("_null")]),
        "scored": study.sentence is not None,
        "retrieved": study.retrieved is not None,
        "n_folds": 0 if study.folds is None else study.folds["fold"].nunique(),
        "seed": "" if settings.get("seed") is None else _said(settings["seed"]),
    }
    source = Path(__file__).with_name("methods.jinja").read_text(encoding="utf-8")
    told = Template(source, trim_blocks=True, lstrip_blocks=True).render(**parts, **facts, cite=cite)
    kept = study.provenance.get("versions")
    found = kept if isinstance(kept, Mapping) else versions()
    software = "Software: " + ", ".join(f"{k} {v}" for k, v in found.items()) + "."
    text = " ".join([*(line for line in told.splitlines() if line.strip()), software])
    if cited:
        text += "\n\nReferences: " + "; ".join(cited[k] for k in sorted(cited)) + "."
    return text + "\n"
