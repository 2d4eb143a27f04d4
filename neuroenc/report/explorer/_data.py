"""A study as the page needs it: columns over voxels, labels, and compressed assets that a browser reads."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image

from neuroenc._core.schema import VERDICTS, check_scores, check_voxel_table
from neuroenc.captions import STOP_WORDS, CaptionStudy
from neuroenc.report._regions import ceiling_r, frequent_words, has_caption, normalised_r

SHOWN = 8  # images of a voxel in its panel; all of them are in evidence.csv


@dataclass(frozen=True)
class VoxelTable:
    """One row per voxel of ``scores``, in its order, with the position of its captions and phrases."""

    frame: pd.DataFrame
    stability: tuple[str, ...]
    captions: dict[Any, np.ndarray]
    phrases: dict[Any, np.ndarray]
    evidence: dict[Any, np.ndarray]
    labels: tuple[str, ...]


def _rows(frame: pd.DataFrame | None) -> dict[Any, np.ndarray]:
    if frame is None or not len(frame):
        return {}
    return {voxel: np.asarray(at) for voxel, at in frame.groupby("voxel", sort=False).indices.items()}


def stability_kinds(study: CaptionStudy) -> tuple[str, ...]:
    """Kinds of stability that were measured: every numeric column but the nulls."""
    if study.stability is None:
        return ()
    columns = [str(c) for c in study.stability.columns]
    numeric = [c for c in columns if c != "voxel" and pd.api.types.is_float_dtype(study.stability[c])]
    known = [c for c in ("folds", "bootstrap", "halves") if c in numeric]
    return tuple(known + [c for c in numeric if c not in known and f"{c}_null" in columns])


def unsupported_share(study: CaptionStudy) -> pd.Series:
    """Share of phrases, over all captions of a voxel, that nothing supports; NaN without phrases."""
    if study.phrases is not None:
        return (study.phrases["verdict"] == "unsupported").groupby(study.phrases["voxel"], sort=False).mean()
    if {"n_phrases", "n_unsupported"} <= set(study.captions.columns):
        total = study.captions.groupby("voxel", sort=False)[["n_phrases", "n_unsupported"]].sum()
        return total["n_unsupported"] / total["n_phrases"].where(total["n_phrases"] > 0)
    return pd.Series(dtype=float)


def label_of_voxels(study: CaptionStudy) -> tuple[str, pd.Series]:
    """What a voxel is about, in one name: its category, else its concept, else its captions' most frequent noun.

    Returns
    -------
    kind : "category", "concept" or "noun"
    names : Series over voxels that have one
    """
    for table, column in (("categories", "category"), ("concepts", "concept"), ("categories", "concept")):
        frame = getattr(study, table)
        if frame is not None and {"voxel", column} <= set(frame.columns):
            rank = [c for c in ("rank",) if c in frame.columns]
            best = frame.sort_values(rank, kind="stable") if rank else frame
            best = best[best[column].astype(str).str.strip() != ""].drop_duplicates("voxel")
            return column, best.set_index("voxel")[column].astype(str)
    if study.words is not None and (study.words["part"] == "noun").any():
        nouns = set(study.words.loc[study.words["part"] == "noun", "word"].astype(str))
    else:
        nouns = {word for word, _ in frequent_words(study.captions, n=200)} if len(study.captions) else set()
    named: dict[Any, str] = {}
    totals: Counter[str] = Counter()
    per_voxel: dict[Any, Counter[str]] = {}
    for voxel, caption in zip(study.captions["voxel"], study.captions["caption"].astype(str)):
        words = {w.strip(".,;:!?\"'()") for w in caption.lower().split()}
        found = {w if w in nouns else w[:-1] for w in words if w in nouns or (w.endswith("s") and w[:-1] in nouns)}
        per_voxel.setdefault(voxel, Counter()).update(found)
        totals.update(found)
    for voxel, counter in per_voxel.items():
        if counter:
            named[voxel] = min(counter, key=lambda w: (-counter[w], -totals[w], w))
    return "noun", pd.Series(named, dtype=object)


def study_of(
    title: str, scores: xr.Dataset, captions: pd.DataFrame, evidence: pd.DataFrame | None = None
) -> CaptionStudy:
    """A `CaptionStudy` of plain tables: ``voxel, caption`` (``rank, score``), and ``voxel, stimulus`` (``predicted``).

    A voxel without a row, or with an empty caption, was held back.
    """
    scores = check_scores(scores)
    voxels = scores["voxel"].values
    captions = check_voxel_table(captions, "captions", voxels, ("voxel", "caption"))
    captions = captions[has_caption(captions)]
    if evidence is None and "evidence" in captions:
        listed = captions.drop_duplicates("voxel")[["voxel", "evidence"]].dropna()
        evidence = listed.assign(stimulus=listed["evidence"].str.split(";")).explode("stimulus")
        evidence = evidence[evidence["stimulus"].astype(bool)].drop(columns="evidence")
    if evidence is None:
        evidence = pd.DataFrame({"voxel": voxels[:0], "stimulus": ""})
    evidence = check_voxel_table(evidence, "evidence", voxels, ("voxel", "stimulus"))
    tables = []
    for frame, number in ((captions, "score"), (evidence, "predicted")):
        frame = frame.assign(rank=frame.groupby("voxel", sort=False).cumcount() + 1)
        tables.append(frame if number in frame else frame.assign(**{number: np.nan}))
    has = np.isin(voxels, captions["voxel"])
    gate = pd.DataFrame({"voxel": voxels, "captioned": has, "reason": np.where(has, "", "no caption")})
    return CaptionStudy(title, scores, captions=tables[0], evidence=tables[1], gate=gate)


def voxel_table(study: CaptionStudy) -> VoxelTable:
    """Make the table behind the page's voxel list.

    Columns ``voxel, subject, roi, r, ceiling, r_normalised, q_value, unsupported, stability..., rho, fails, label``.
    """
    scores = study.scores
    voxels = scores["voxel"].values
    frame = pd.DataFrame({"voxel": voxels, "r": np.asarray(scores["r"].values, float)})
    for name in ("subject", "roi"):
        frame[name] = scores[name].values.astype(str) if name in scores.coords else ""
    nothing = np.full(len(voxels), np.nan)
    ceiling, ratio = ceiling_r(scores), normalised_r(scores)
    frame["ceiling"] = nothing if ceiling is None else ceiling
    frame["r_normalised"] = nothing if ratio is None else ratio
    frame["q_value"] = np.asarray(scores["q_value"].values, float) if "q_value" in scores else nothing
    frame["unsupported"] = unsupported_share(study).reindex(voxels).to_numpy(float)
    kinds = stability_kinds(study)
    if study.stability is not None:
        stable = study.stability.drop_duplicates("voxel").set_index("voxel").reindex(voxels)
        for kind in kinds:
            frame[f"stability:{kind}"] = stable[kind].to_numpy(float)
            null = f"{kind}_null"
            frame[f"stability:{null}"] = stable[null].to_numpy(float) if null in stable else nothing
    if study.sentence is not None:
        told = study.sentence.drop_duplicates("voxel").set_index("voxel").reindex(voxels)
        for name in ("rho", "shuffled", "shuffled_within_roi"):
            frame[name] = told[name].to_numpy(float) if name in told else nothing
            if f"image_{name}" in told:
                frame[f"image_{name}"] = told[f"image_{name}"].to_numpy(float)
    frame["fails"] = study.failed_controls().reindex(voxels).fillna("").to_numpy(object)
    gate = study.gate.set_index("voxel").reindex(voxels)
    frame["captioned"] = gate["captioned"].to_numpy(bool)
    frame["reason"] = gate["reason"].astype(str).to_numpy()
    kind, names = label_of_voxels(study)
    frame["label"] = names.reindex(voxels).fillna("").to_numpy(object)
    frame.attrs["label_kind"] = kind
    counts = Counter(x for x in frame["label"] if x)
    labels = tuple(sorted(counts, key=lambda x: (-counts[x], x)))
    return VoxelTable(frame, kinds, _rows(study.captions), _rows(study.phrases), _rows(study.evidence), labels)


def _number(value: Any, digits: int = 4) -> float | None:
    """A finite number of few digits, or null."""
    v = float(value)
    return float(f"{v:.{digits}g}") if np.isfinite(v) else None


def utf16(text: str, at: int) -> int:
    """Position in a browser's string (UTF-16 units) of the ``at``-th character."""
    return at + sum(ord(c) > 0xFFFF for c in text[:at])


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def subject_data(
    study: CaptionStudy, table: VoxelTable, rows: np.ndarray, maps: list[dict[str, Any]]
) -> dict[str, Any]:
    """Columns of one subject's voxels, as JSON-able lists; captions are kept once each."""
    frame = table.frame.iloc[rows]
    scores = study.scores
    texts: dict[str, int] = {}
    captions: list[list[int]] = []
    scored: list[list[float | None]] = []
    ranks: list[list[int]] = []
    text_column = study.captions["caption"].astype(str).to_numpy(object)
    score_column, rank_column = study.captions["score"].to_numpy(), study.captions["rank"].to_numpy()
    for voxel in frame["voxel"]:
        mine = table.captions.get(voxel, np.zeros(0, int))
        captions.append([texts.setdefault(text_column[k], len(texts)) for k in mine])
        scored.append([_number(score_column[k]) for k in mine])
        ranks.append([int(rank_column[k]) for k in mine])
    numbers = [c for c in frame.columns if frame[c].dtype.kind == "f" and np.isfinite(frame[c]).any()]
    reasons, fails = list(dict.fromkeys(frame["reason"])), list(dict.fromkeys(frame["fails"]))
    regions = list(dict.fromkeys(frame["roi"]))
    place: dict[str, list[Any]] = {
        name: [_plain(x) for x in scores[name].values[rows]]
        for name in ("hemi", "vertex", "i", "j", "k")
        if name in scores.coords
    }
    at = {label: k for k, label in enumerate(table.labels)}
    data: dict[str, Any] = {"voxel": [_plain(v) for v in frame["voxel"]]}
    for name, column, known in (("roi", "roi", regions), ("reason", "reason", reasons), ("fail", "fails", fails)):
        data |= {name: _index(frame[column], known), f"{name}s": known}
    data |= {"place": place, "numbers": {c: [_number(x) for x in frame[c]] for c in numbers}}
    data |= {"label": [at.get(x, -1) for x in frame["label"]], "captioned": [int(x) for x in frame["captioned"]]}
    return data | {"texts": list(texts), "captions": captions, "scores": scored, "ranks": ranks, "maps": maps}


def vector_data(vectors: xr.Dataset, order: np.ndarray) -> dict[str, Any]:
    """Vectors of `search_vectors` for the page, which numbers its voxels in this order."""
    place = pd.Series(np.arange(len(order)), index=order)
    bytes_of = {name: vectors[name].values.astype(np.int8).tobytes() for name in ("a", "b")}
    data: dict[str, Any] = {name: base64.b64encode(raw).decode("ascii") for name, raw in bytes_of.items()}
    data |= {"texts": vectors["text"].values.tolist(), "rows": place[vectors["voxel"].values].tolist()}
    data |= {"s": vectors["s"].values.tolist(), "least": float(vectors.attrs["least"])}
    return data | {"components": vectors.sizes["component"], "stop": sorted(STOP_WORDS)}


def _index(values: Any, names: list[str]) -> list[int]:
    at = {name: k for k, name in enumerate(names)}
    return [at[x] for x in values]


class Details:
    """Evidence and phrases of some voxels at a time. ``describe`` gives ``src`` and ``caption`` of a stimulus."""

    def __init__(self, study: CaptionStudy, table: VoxelTable, describe: Callable[[str], dict[str, Any]]) -> None:
        self._table, self._describe = table, describe
        self._stimulus = study.evidence["stimulus"].astype(str).to_numpy(object)
        self._predicted = study.evidence["predicted"].to_numpy(float)
        self._places = study.evidence["places"].astype(str).to_numpy(object) if "places" in study.evidence else None
        self._folds: dict[Any, list[list[Any]]] = {}
        if study.folds is not None:
            for (voxel, caption), rows in study.folds.groupby(["voxel", "caption"], sort=False):
                self._folds.setdefault(voxel, []).append([caption, len(rows)])
        told = study.phrases
        self._phrases: list[list[Any]] = []
        if told is None:
            return
        keys = ["voxel", "rank"]
        text = told[keys].merge(study.captions[[*keys, "caption"]], on=keys, how="left")["caption"].astype(str)
        nothing = np.full(len(told), np.nan)
        extra = [told[c].to_numpy(float) if c in told else nothing for c in ("in_images", "predicted", "percentile")]
        columns = zip(told["rank"], text, told["start"], told["end"], told["verdict"], *extra)
        for rank, words, start, end, verdict, *values in columns:
            a, b = utf16(words, int(start)), utf16(words, int(end))
            self._phrases.append([int(rank), a, b, VERDICTS.index(verdict), *map(_number, values)])

    def _heat(self, k: int) -> list[str]:
        return [overlay(self._places[k])] if self._places is not None and self._places[k] else []

    def of(self, rows: np.ndarray) -> dict[str, Any]:
        """``evidence`` (stimulus, predicted, overlay; of the best `SHOWN`), ``phrases``, ``folds``, ``stimuli``."""
        stimuli: dict[str, int] = {}
        evidence, phrases, folds = [], [], []
        none = np.zeros(0, int)
        for voxel in self._table.frame["voxel"].to_numpy()[rows]:
            mine = self._table.evidence.get(voxel, none)[:SHOWN]
            places = [stimuli.setdefault(self._stimulus[k], len(stimuli)) for k in mine]
            evidence.append([[place, _number(self._predicted[k]), *self._heat(k)] for place, k in zip(places, mine)])
            phrases.append([self._phrases[k] for k in self._table.phrases.get(voxel, none)])
            folds.append(self._folds.get(voxel, []))
        data = {"evidence": evidence, "phrases": phrases, "folds": folds}
        return data | {"stimuli": [{"id": s, **self._describe(s)} for s in stimuli]}


def overlay(places: str) -> str:
    """PNG, as a data URI, of a patch map in digits ("03/90"): the more opaque, the more a place drives the voxel.

    >>> overlay("03/90")[:22]
    'data:image/png;base64,'
    """
    digits = np.array([[int(digit) for digit in row] for row in places.split("/")])
    picture = np.empty((*digits.shape, 4), np.uint8)
    picture[..., :3], picture[..., 3] = (255, 96, 0), 20 * digits
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def asset(value: Any) -> tuple[str, str]:
    """JavaScript text that hands ``value`` to the page, and a name made from its content.

    The text holds nothing but base64, so no caption can end it early or become code.
    """
    raw = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    packed = base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode("ascii")
    name = hashlib.sha256(packed.encode()).hexdigest()[:16]
    return f'neuroencData("{name}","{packed}");\n', f"{name}.js"
