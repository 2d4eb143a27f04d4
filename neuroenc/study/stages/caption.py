"""Captions of voxels: the space that weights and texts share, who is captioned, the bank, the captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data
from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import DataError
from neuroenc._core.files import hash_array
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.store import Codec, register
from neuroenc._core.tables import write_table
from neuroenc.captions import (
    BankImages,
    BankPass,
    CaptionStudy,
    bank_folds,
    gate_voxels,
    sample_voxels,
    shuffled_control,
    stability_jobs,
)
from neuroenc.embedding import ImageEmbedder, embed_augmented
from neuroenc.encoders import descent_weights, resampled_rows, ridge_weights
from neuroenc.study.config import CaptionsConfig, StabilityConfig
from neuroenc.study.stages.fit import Fold, fit_folds, held_out
from neuroenc.study.stages.leakage import near_across, say_near
from neuroenc.study.stages.load import Subject, refuse_series
from neuroenc.study.stages.score import merge_subjects, score_subject
from neuroenc.study.study import Study, stage
from neuroenc.study.text import NOTES

register(Codec("captions", CaptionStudy, "", lambda p, x: x.save(p), CaptionStudy.load))


@dataclass(frozen=True)
class Rows:
    """Rows of one subject that the caption encoder is fitted on, and those held out; features at unit norm."""

    name: str
    X: xr.DataArray
    Y: xr.DataArray
    X_test: xr.DataArray
    Y_test: xr.DataArray


@dataclass(frozen=True)
class Fitted:
    """Weights and scores of all subjects' voxels in one row, numbered anew."""

    rows: tuple[Rows, ...]
    coef: xr.DataArray
    intercept: xr.DataArray
    scores: xr.Dataset
    alphas: list[np.ndarray]
    voxels: list[np.ndarray]
    truth: xr.Dataset | None


@stage(
    "weights",
    reads=(
        "subjects",
        "splits",
        "caption_space",
        "stimuli",
        "config.encoder",
        "config.evaluation",
        "config.captions.gate",
        "config.captions.encoder",
        "config.captions.space",
        "config.seed",
    ),
    writes=("fitted", "gate", "near"),
)
def weights(study: Study) -> dict[str, Any]:
    """Encoder of the training rows of the first fold, scored on its held-out rows, and who is captioned."""
    refuse_series(study, "captions")
    gate = study.table("captions").gate
    vectors = study.caption_space
    jobs = [(one, vectors, folds[:1], False) for one, folds in zip(study.subjects, study.splits)]
    sizes = [one.responses.shape[1] for one in study.subjects]
    voxels = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    rows, coefs, intercepts, alphas, scores, truths = [], [], [], [], [], []
    ridge = study.table("captions").encoder.kind == "ridge"
    fits = fit_folds(study, jobs, weights=True) if ridge else [[_descended(study, one, f)] for one, _, (f,), _ in jobs]
    for (one, _, folds, _), results, numbers in zip(jobs, fits, voxels):
        ((train, test),), (result,) = folds, results
        Y, Y_test = one.responses[train], one.responses[test]
        rows.append(Rows(one.name, data.match(vectors, Y), Y, data.match(vectors, Y_test), Y_test))
        alphas.append(result["alpha"])
        predicted = held_out(one, folds, results)
        scores.append(score_subject(study, one, folds, vectors, predicted, alphas[-1][None], False))
        coefs.append(result["coef"].assign_coords(voxel=numbers))
        intercepts.append(result["intercept"].assign_coords(voxel=numbers))
        if one.truth is not None:
            names = ("family", "second_family", "members", "mixed", "ncsnr")
            planted = {name: ("voxel", one.truth[name].values) for name in names}
            truths.append(xr.Dataset(planted, coords={"voxel": numbers}))
    options: dict[str, Any] = {"dim": "voxel", "combine_attrs": "override", "coords": "different", "compat": "equals"}
    coef, intercept = xr.concat(coefs, **options), xr.concat(intercepts, **options)
    truth = xr.concat(truths, **options) if truths else None
    merged = merge_subjects(study, scores, number=True)
    found = Fitted(tuple(rows), coef, intercept, merged, alphas, voxels, truth)
    table = gate_voxels(found.scores, gate.kind, q=gate.q, rois=gate.rois, min_ceiling_r=gate.min_ceiling_r)
    study.say(f"    {int(table['captioned'].sum())} of {len(table)} voxels pass the gate")
    tables = [near_across(study, one, folds[:1]) for one, folds in zip(study.subjects, study.splits)]
    known = [t.assign(subject=one.name) for one, t in zip(study.subjects, tables) if t is not None]
    near = pd.concat(known, ignore_index=True) if known else None
    say_near(study, near)
    if near is not None and study.out is not None:
        write_table(near, study.out / "caption_leakage.csv", float_format="%.6g")
    return {"fitted": found, "gate": table, "near": None if near is None else (study.subjects[0], near)}


def _descended(study: Study, one: Subject, fold: Fold) -> dict[str, Any]:
    """Weights of one subject by gradient descent, as of `fit_folds`; they have no penalty."""
    config, (train, test) = study.table("captions").encoder, fold
    Y = one.responses[train]
    X_test = data.match(study.caption_space, one.responses[test]).values
    inputs = [study.caption_space, study.content_of(one.responses), train, config, study.config.seed]

    def work() -> dict[str, Any]:
        coef, intercept = _descent(study, _copies(study, Y), Y.values)
        labels = {str(k): c for k, c in Y.coords.items() if c.dims in ((), ("voxel",))}
        weights = xr.DataArray(coef, dims=("feature", "voxel"), coords=labels)
        bias = xr.DataArray(intercept, dims="voxel", coords=labels)
        return {"predicted": X_test @ coef + intercept, "coef": weights, "intercept": bias}

    found = study.store.keep("descent", inputs, work)
    return {**found, "alpha": np.full(Y.sizes["voxel"], np.nan)}


def _copies(study: Study, Y: xr.DataArray) -> np.ndarray:
    """Unit-norm features (copy, row, feature) of the rows that descent is fitted on: of augmented copies, or plain."""
    config, space = study.table("captions").encoder, study.table("captions").space
    if not config.augment:
        return data.match(study.caption_space, Y).values[None]
    ids = pd.unique(Y.coords["stimulus"].values)

    def work() -> dict[str, xr.Dataset]:
        study.say(f"    {config.augment} augmented copies of {len(ids)} pictures")
        embedder = ImageEmbedder(space.model, space.pretrained or None, cache=False, progress=False)
        found = embed_augmented(embedder, study.stimuli.sel(ids), config.augment, seed=study.config.seed)
        return {"copies": xr.Dataset({"copies": found})}

    inputs = [study.stimuli, ids, space, config.augment, study.config.seed]
    copies = study.store.keep("augmented", inputs, work)["copies"]["copies"]
    return unit_rows(copies.sel(stimulus=Y.coords["stimulus"].values).transpose("copy", "stimulus", "feature").values)


def _descent(study: Study, X: np.ndarray, Y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    options = study.table("captions").encoder.model_dump(exclude={"kind", "augment"})
    return descent_weights(X, Y, seed=study.config.seed, **options)


def first_roi(scores: xr.Dataset) -> list[str]:
    """Region of each voxel, the first of several; "" where none is known."""
    if "roi" not in scores.coords:
        return [""] * scores.sizes["voxel"]
    return [str(names).split(";")[0] for names in scores["roi"].values]


def sampled_voxels(config: StabilityConfig, scores: xr.Dataset, passed: np.ndarray, seed: int) -> np.ndarray:
    """Voxels (bool) on which stability is measured, a stratified sample of those that passed the gate."""
    at, rois = np.flatnonzero(passed), first_roi(scores)
    names = scores["subject"].values if "subject" in scores.coords else np.full(len(passed), "")
    strata = [f"{names[k]} {rois[k]}" for k in at]
    out = np.zeros(len(passed), dtype=bool)
    out[at[sample_voxels(strata, config.max_voxels or None, seed)]] = True
    return out


def _resampled(study: Study, chosen: np.ndarray, kind: str, n: int, seed: int) -> Iterator[xr.DataArray]:
    """Weights of chosen voxels on resampled stimuli, one variant after another."""
    fitted, streams = study.fitted, []
    for s, (subject, alpha, voxels) in enumerate(zip(fitted.rows, fitted.alphas, fitted.voxels)):
        groups = subject.Y.coords["stimulus"].values
        if len(np.unique(groups)) < 20 and "run" in subject.Y.coords:
            # Few stimuli, each shown in every run: runs are what was sampled.
            groups = subject.Y.coords["run"].values
        mine = np.flatnonzero(chosen[voxels])
        rows = resampled_rows(groups, kind, n, seed=seed + 1000 * s)
        ridge = study.table("captions").encoder.kind == "ridge"
        x = subject.X.values if ridge else _copies(study, subject.Y)
        streams.append((x, subject.Y.values[:, mine], np.asarray(alpha)[mine], rows))
    coef = fitted.coef.isel(voxel=np.flatnonzero(chosen))
    for _ in range(2 * n if kind == "halves" else n):
        parts = []
        for x, y, alpha, rows in streams:
            at = next(rows)
            if y.shape[1]:
                fit = _descent(study, x[:, at], y[at]) if x.ndim == 3 else ridge_weights(x[at], y[at], alpha)
                parts.append(fit[0])
        yield coef.copy(data=np.concatenate(parts, axis=1).astype(coef.dtype))


@dataclass(frozen=True)
class Readings:
    """What the stages need of the bank, found in one reading of it and kept.

    Attributes
    ----------
    key : str
        A name for all that was read.
    fitted, shuffled : Dataset
        Projections of the voxels that passed, and of their weights with features shuffled.
    evidence : DataFrame
        Their best images.
    stability : list of (str, bool, Dataset)
        Kind, whether it is the null, and projection of each captioning that stability rests on: of the sampled voxels,
        and of all that passed for folds where each of them gets a caption of each.
    images : BankImages or None
        What phrases are compared with; None where they are not checked.
    sampled : bool array (voxel,)
        Voxels on which stability is measured.
    """

    key: str
    fitted: xr.Dataset
    shuffled: xr.Dataset
    evidence: pd.DataFrame
    stability: list[tuple[str, bool, xr.Dataset]]
    images: BankImages | None
    sampled: np.ndarray
    n_passed: int


@stage(
    "read", reads=("fitted", "gate", "captioner", "contents", "config.captions", "config.seed"), writes=("readings",)
)
def read(study: Study) -> dict[str, Any]:
    """Read the bank once for all stages: projections, best images, variants for stability, images at random."""
    config, fitted, captioner, contents = study.table("captions"), study.fitted, study.captioner, study.contents
    passed, seed = study.gate["captioned"].to_numpy(dtype=bool), study.config.seed
    if not passed.any():
        nothing = xr.Dataset(coords={"voxel": np.zeros(0, int)})
        return {"readings": Readings("", nothing, nothing, pd.DataFrame(), [], None, passed, 0)}
    sampled = sampled_voxels(config.stability, fitted.scores, passed, seed)
    inputs = [
        [contents.weights, contents.rows, contents.scores, contents.bank],
        passed,
        config.projection,
        seed,
        captioner.n_evidence,
        config.stability,
        config.grounding.enabled,
        config.decoder.per_fold,
    ]
    parts = study.store.keep("bank", inputs, lambda: _read(study, passed, sampled))
    images = None
    if "images" in parts:
        seen = parts["images"]
        vectors = dict(zip(seen["stimulus"].values.astype(str).tolist(), seen["vectors"].values))
        images = BankImages(seen["mean"].values, float(seen["norm"]), vectors, parts["random"])
    stability = [(kind, null, parts[f"stability-{n:03d}"]) for n, (kind, null) in enumerate(parts["kinds"])]
    key = study.store.path("bank", inputs).name
    projected, shuffled, evidence = (parts[name] for name in ("fitted", "shuffled", "evidence"))
    n = int(passed.sum())
    return {"readings": Readings(key, projected, shuffled, evidence, stability, images, sampled, n)}


def _jobs(study: Study, sampled: np.ndarray) -> list[Any]:
    s, seed = study.table("captions").stability, study.config.seed
    kept = study.fitted.coef.isel(voxel=np.flatnonzero(sampled))
    variants: dict[str, list[Any]] = {}
    if s.folds:
        size = study.captioner.bank.n
        if size is None or size < s.folds:
            raise DataError(
                f"a bank of {size} images cannot be dealt into {s.folds} folds. Next step: [captions.stability] "
                "folds = 0."
            )
        variants["folds"] = [(kept, part) for part in bank_folds(size, s.folds, seed=seed)]
    for name, kind, n in (("bootstrap", "bootstrap", s.bootstraps), ("halves", "halves", s.halves)):
        if n:
            variants[name] = [(w, None) for w in _resampled(study, sampled, kind, n, seed)]
    return stability_jobs(variants, null_voxels=s.null_voxels, seed=seed)


def _read(study: Study, passed: np.ndarray, sampled: np.ndarray) -> dict[str, Any]:
    config, fitted, captioner, seed = study.table("captions"), study.fitted, study.captioner, study.config.seed
    at = np.flatnonzero(passed)
    coef, bias = fitted.coef.isel(voxel=at), fitted.intercept.values[at]
    mixed = shuffled_control(fitted.coef, seed).isel(voxel=at)
    jobs = _jobs(study, sampled)
    reading = BankPass(captioner.bank, max_memory=captioner.max_memory, progress=captioner.progress)
    ask = captioner.asking(reading)
    projected, shuffled = ask(coef, intercept=bias), ask(mixed)
    # Where every voxel has a caption of each fold, stability takes those of its sample.
    every = config.decoder.per_fold
    variants = [ask(coef if every and j.kind == "folds" and not j.null else j.weights, j.bank) for j in jobs]
    shown = captioner.stimuli
    told = shown is not None and shown.captions is not None and all(shown.captions)
    best = reading.evidence(
        coef,
        intercept=bias,
        k=max(1, min(captioner.n_evidence, int(captioner.bank.n or 0))),
        features_normalised=captioner.features_normalised,
        keep_rows=config.grounding.enabled and not told,
    )
    # Half of them choose phrases, the others judge them. Where nobody knows what they show, each is compared with
    # every phrase, which takes its time.
    images = reading.images(3000 if told else 1000, seed) if config.grounding.enabled else None
    reading.read()
    parts: dict[str, Any] = {"fitted": projected(), "shuffled": shuffled()}
    parts |= {f"stability-{n:03d}": variant() for n, variant in enumerate(variants)}
    found = best()
    parts["evidence"] = found.table if captioner.n_evidence else found.table.iloc[:0]
    parts["kinds"] = [[job.kind, job.null] for job in jobs]
    if images is not None:
        seen = images()
        vectors = {**found.rows, **seen.vectors}
        rows = np.stack([np.asarray(v, np.float64) for v in vectors.values()])
        named = {"mean": ("feature", seen.mean), "norm": seen.norm, "vectors": (("stimulus", "feature"), rows)}
        parts["images"] = xr.Dataset(named, coords={"stimulus": list(vectors)})
        parts["random"] = seen.random
    times = {1: "once", 2: "twice"}.get(reading.n_passes, f"{reading.n_passes} times")
    study.say(f"  bank: read {times if captioner.method == 'softmax' else f'{times} beside the projections'}")
    return parts


#: What the stages behind the captions read.
READS = ("captions", "fitted", "captioner", "texts", "contents", "readings", "config.captions", "config.seed")


def captioned_weights(study: CaptionStudy, fitted: Fitted) -> tuple[xr.DataArray, np.ndarray]:
    """Weights and intercepts of the captioned voxels."""
    at = np.flatnonzero(study.gate["captioned"].to_numpy(dtype=bool))
    return fitted.coef.isel(voxel=at), fitted.intercept.values[at]


@stage(
    "caption",
    reads=("fitted", "gate", "captioner", "caption_space", "contents", "readings", "bank_name", "config"),
    writes=("captions",),
)
def caption(study: Study) -> dict[str, Any]:
    """Captions of the voxels that passed the gate, with their evidence."""
    whole, config = study.config, study.table("captions")
    told = [whole.title, whole.notes, config.space, whole.encoder, whole.evaluation, config.gate, config.projection]
    told.append(config.encoder)
    inputs = [study.contents, study.readings.key, study.gate, study.bank_name, config.decoder.captioner, told]
    return study.store.keep("captions", inputs, lambda: {"captions": _caption(study)})


def _caption(study: Study) -> CaptionStudy:
    whole, config, readings = study.config, study.table("captions"), study.readings
    fitted, gate = study.fitted, study.gate
    e, h, space = whole.encoder, whole.evaluation, config.space
    weights = str(study.caption_space.attrs.get("weights", ""))
    told = {"weights": weights} if space.pretrained or _is_random(weights) else {}
    # What the gate did not ask says nothing of who passed it.
    gated = {k: v for k, v in vars(config.gate).items() if v and (k != "q" or config.gate.kind == "q")}
    found = study.captioner.caption(
        (fitted.coef, fitted.intercept),
        fitted.scores,
        gate=gate,
        title=whole.title,
        settings={
            "features": {"model": space.model, **told, "stimuli": space.stimuli, "normalised": "unit norm"},
            "encoder": {"kind": e.kind, "cv": e.cv, "scoring": e.scoring}
            if config.encoder.kind == "ridge"
            else config.encoder.model_dump(exclude={"device"}),
            "held_out": {"scheme": h.scheme, "permutations": h.permutations},
            "gate": gated,
            "seed": whole.seed,
        },
        caveats=[*whole.notes, *_caveats(config, weights)],
        projected=(readings.fitted, readings.evidence) if gate["captioned"].any() else None,
    )
    settings = dict(found.settings)
    settings["bank"] = {**settings["bank"], "name": study.bank_name}
    # Of a folder its name: where it lies says nothing to another reader; what it is stands in the provenance.
    settings["decoder"] = {**settings["decoder"], "captioner": Path(config.decoder.captioner).name}
    more = {"weights": hash_array(fitted.coef.values), "writing": study.contents.writing}
    folds = _fold_captions(study, found) if config.decoder.per_fold else None
    return dataclasses.replace(found, folds=folds, settings=settings, provenance={**found.provenance, **more})


def _fold_captions(study: Study, found: CaptionStudy) -> pd.DataFrame:
    """Best caption of each captioned voxel from each fold of the bank."""
    parts = [projection for kind, null, projection in study.readings.stability if kind == "folds" and not null]
    columns: dict[str, list[Any]] = {"voxel": [], "fold": [], "caption": []}
    for number, projection in enumerate(progress_bar(parts, desc="folds", show=study.progress), 1):
        columns["voxel"] += projection["voxel"].values.tolist()
        columns["fold"] += [number] * projection.sizes["voxel"]
        columns["caption"] += study.captioner.best_of(projection)
    table = pd.DataFrame(columns)
    return table[(table["caption"] != "") & table["voxel"].isin(found.captions["voxel"])]


def _is_random(weights: str) -> bool:
    return weights.startswith("random")


def _caveats(config: CaptionsConfig, weights: str) -> list[str]:
    told = {
        NOTES["captions"]["conse"]: config.space.model == "conse",
        NOTES["captions"]["retrieval"]: not config.decoder.writes,
        "Voxels are captioned whether or not they are predicted above chance.": config.gate.kind != "q",
        "The embedding space has random weights: captions say nothing of what voxels prefer.": _is_random(weights),
    }
    return [note for note, holds in told.items() if holds]
