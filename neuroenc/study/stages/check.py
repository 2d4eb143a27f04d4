"""Checks of captions: phrases, stability, scores on held-out stimuli, round trip, diversity, shuffled weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc._core.progress import progress as progress_bar
from neuroenc.captions import (
    BankPass,
    Captioner,
    GroundingChecker,
    caption_diversity,
    category_accuracy,
    hallucination_rate,
    person_shares,
    retrieve_images,
    round_trip,
    score_stability,
    sentence_scores,
    shuffled_control,
    test_caption,
    trim_captions,
)
from neuroenc.embedding import ImageEmbedder, embed_windows
from neuroenc.encoders.readout import patch_map
from neuroenc.study.stages.analyse import by_subject
from neuroenc.study.stages.bank import Texts, text_direction, unique_ids
from neuroenc.study.stages.caption import READS, captioned_weights, first_roi
from neuroenc.study.study import Study, stage
from neuroenc.study.truth import checker_summary, judge_phrases, judge_planted, planted_summary


@stage("ground", reads=READS, writes=("captions", "shuffled"))
def ground(study: Study) -> dict[str, Any]:
    """Take out of captions what the weights do not bear out, and judge each phrase; the same of shuffled weights.

    With ``grounding.intervene``, captions are first decoded again under grounding constraints.
    """
    config, found, seed = study.table("captions"), study.captions, study.config.seed
    if not len(found.captions):
        return {"captions": found, "shuffled": found.captions}
    base = [study.contents, study.readings.key, found.captions, seed]
    shuffled = study.store.keep("shuffled", base, lambda: {"captions": shuffled_captions(study)})["captions"]
    if not config.grounding.enabled:
        return {"captions": found, "shuffled": shuffled}
    coef, intercept = captioned_weights(found, study.fitted)
    tokens = place_tokens(study) if config.grounding.places != "none" else None
    if tokens is not None:
        found = dataclasses.replace(found, evidence=with_places(found.evidence, coef, tokens))
    inputs = [*base, found.evidence, config.grounding]

    def work() -> dict[str, pd.DataFrame]:
        checker = make_checker(study, coef, intercept, tokens if config.grounding.places == "witness" else None)
        if checker is None:
            return {}
        captions, mixed = found.captions, shuffled
        if config.grounding.intervene:
            captions = _intervened(study, checker, coef, intercept)
        if config.grounding.trim and checker.chooser is not None:
            effect = config.grounding.effect
            captions = trim_captions(captions, checker, effect=effect)
            voxels = coef["voxel"].values
            control = checker.reweighted(shuffled_control(study.fitted.coef, seed).sel(voxel=voxels))
            mixed = trim_captions(mixed, control, effect=effect)
        if config.grounding.judge == "crossed":
            checker = checker.crossed()
        checked = checker.check(captions)
        rates = pd.DataFrame()
        if len(checked.phrases):
            chance = checker.shuffled(seed).check(captions).phrases
            rates = hallucination_rate(checked.phrases, "roi", chance=chance, seed=seed)
        return {"captions": checked.captions, "phrases": checked.phrases, "rates": rates, "shuffled": mixed}

    tables = study.store.keep("grounding", inputs, work)
    if not tables:
        study.say("    grounding: no human captions to compare with; phrases are not checked")
        return {"captions": found, "shuffled": shuffled}
    new = dataclasses.replace(
        found,
        captions=tables["captions"],
        phrases=tables["phrases"],
        quality={**found.quality, "hallucination rate": tables["rates"]},
        settings={**found.settings, "grounding": vars(config.grounding)},
    )
    return {"captions": new, "shuffled": tables["shuffled"]}


def _intervened(study: Study, checker: GroundingChecker, coef: xr.DataArray, intercept: np.ndarray) -> pd.DataFrame:
    """Captions decoded under grounding constraints, with the evidence that they had."""
    from neuroenc.captions import grounded_decode

    decoder, top = study.captioner.decoder, study.captioner.top
    projection = study.readings.fitted.sel(voxel=coef["voxel"])
    found = grounded_decode(decoder, projection, checker, top, coef=coef, intercept=intercept).captions
    evidence = study.captions.captions.drop_duplicates("voxel").set_index("voxel")["evidence"]
    return found.assign(evidence=found["voxel"].map(evidence))


def evidence_captions(captioner: Captioner, texts: Texts | None) -> dict[str, list[str]]:
    """Captions by id: of the bank's own images, else of the caption bank; none where neither has any."""
    stimuli = captioner.stimuli
    if stimuli is not None and stimuli.captions is not None:
        return {str(i): [str(c) for c in several] for i, several in zip(stimuli.ids, stimuli.captions)}
    if texts is not None:
        # A bank of captions is its own evidence; one of images without captions learns from these what is common.
        return {name: [text] for name, text in zip(unique_ids(texts.ids), texts.captions)}
    return {}


#: Best images of a voxel in which places are looked for: those that the report shows.
PLACED = 8


def place_tokens(study: Study) -> xr.DataArray | None:
    """Embeddings (stimulus, channel, y, x), at unit norm, of windows of the images that the report shows."""
    config, shown = study.table("captions"), study.captioner.stimuli
    evidence = study.captions.evidence
    known = set() if shown is None or shown.images is None else set(map(str, shown.ids))
    names = sorted(known & set(evidence.loc[evidence["rank"] <= PLACED, "stimulus"].astype(str)))
    if not names:
        study.say("    places: the bank has no pictures of the best images; no places are shown")
        return None
    grid, space = config.grounding.grid, config.space

    def work() -> dict[str, xr.Dataset]:
        study.say(f"    places: {grid * grid} windows of {len(names)} images")
        embedder = ImageEmbedder(space.model, space.pretrained or None, cache=False, progress=False)
        found = embed_windows(embedder, shown.sel(names), grid=grid)
        norm = np.linalg.norm(found.values, axis=1, keepdims=True).clip(min=1e-12)
        return {"tokens": xr.Dataset({"tokens": found / norm})}

    return study.store.keep("places", [study.contents.bank, names, space, grid], work)["tokens"]["tokens"]


def with_places(evidence: pd.DataFrame, coef: xr.DataArray, tokens: xr.DataArray) -> pd.DataFrame:
    """Evidence with the column ``places``: digits of each row of the voxel's patch map, from the top, joined by "/".

    9 is the most that a place of the shown images adds to the voxel's predicted response, 0 the mean of the image or
    less; empty for images that are not shown.
    """
    told = np.full(len(evidence), "", dtype=object)
    at = pd.Index(tokens["stimulus"].values.astype(str)).get_indexer(evidence["stimulus"].astype(str))
    at[(evidence["rank"] > PLACED).to_numpy()] = -1
    for voxel, rows in evidence.groupby("voxel", sort=False).indices.items():
        rows = rows[at[rows] >= 0]
        if len(rows):
            maps = patch_map(coef.sel(voxel=[voxel]), tokens.isel(stimulus=at[rows])).values[:, 0]
            above = np.maximum(maps - maps.mean(axis=(1, 2), keepdims=True), 0)
            digits = np.rint(9 * above / max(float(above.max()), 1e-12)).astype(int)
            told[rows] = ["/".join("".join(map(str, row)) for row in one) for one in digits.tolist()]
    return evidence.assign(places=told)


def make_checker(
    study: Study, coef: xr.DataArray, intercept: Any, tokens: xr.DataArray | None = None
) -> GroundingChecker | None:
    """Two witnesses for the phrases of captions, three with ``tokens``; None where no human captions are known."""
    captioner, seed = study.captioner, study.config.seed
    told = evidence_captions(captioner, study.texts)
    if not told or captioner.embed_text is None:
        return None
    # Texts and images of a joint space lie around two means, not in one cloud.
    joint = study.table("captions").space.stimuli == "image"
    config, images = study.table("captions").grounding, study.readings.images
    judge = "responses" if config.trim else config.judge
    if judge == "responses" and len(images.random) < 30:
        study.say(
            f"    grounding: {len(images.random)} images are too few to predict responses to; captions stay whole"
        )
        judge = "crossed"
    return GroundingChecker(
        coef,
        study.captions.evidence,
        told,
        captioner.embed_text,
        bank=images,
        judge=judge,
        effect=config.effect,
        apart=config.trim and config.judge == "responses",
        intercept=intercept,
        text_direction=text_direction(study.texts, captioner.decoder) if joint else None,
        centre=joint,
        seed=seed,
        features_normalised=captioner.features_normalised,
        max_memory=captioner.max_memory,
        engine=config.phrases,
        tokens=tokens,
    )


@stage("check", reads=(*READS, "shuffled", "stimuli", "subjects", "taught"), writes=("captions",))
def check(study: Study) -> dict[str, Any]:
    """Stability, scores on held-out stimuli, round trip, diversity, and all of it for shuffled weights."""
    config, fitted, found, readings = study.table("captions"), study.fitted, study.captions, study.readings
    captioner, seed, texts = study.captioner, study.config.seed, study.texts
    if not found.gate["captioned"].to_numpy(dtype=bool).any():
        study.say("    no voxel passed the gate: nothing to check")
        return {"captions": found}
    assert captioner.embed_text is not None
    embed_text, direction = captioner.embed_text, text_direction(texts, captioner.decoder)
    base = [study.contents, readings.key, found.captions, seed]
    quality = dict(found.quality)
    n, of = int(readings.sampled.sum()), readings.n_passed
    if readings.stability and n < of:
        study.say(f"    stability: captions again on parts of the bank and of the data, {n:,} of {of:,} voxels")
    stable = study.store.keep("stability", [*base, config.stability], lambda: stability_tables(study))
    if stable:
        quality["stability"] = stable["summary"]
    shuffled = study.shuffled
    vectors, kind = _stimulus_vectors(study)
    sentence = None
    if vectors is not None:
        regions = dict(zip(fitted.scores["voxel"].values.tolist(), first_roi(fitted.scores)))
        inputs = [*base, "sentence", kind, vectors, regions]
        best = found.captions[found.captions["rank"] == 1]

        def work() -> dict[str, pd.DataFrame]:
            said = embed_text(best["caption"].tolist())
            return held_out_scores(study, regions, vectors, labelled(best["voxel"], said), "sentence")

        told = study.store.keep("sentence", inputs, work)
        sentence, quality["sentence-level scores"] = told["voxels"], told["summary"]
    if config.analysis.images != "none":
        inputs = [*base, shuffled, found.evidence, config.analysis, fitted.scores, vectors is None]
        tables = study.store.keep("images", inputs, lambda: image_tables(study, shuffled, sentence is not None))
        quality["five-way accuracy"] = tables["accuracy"]
        if sentence is not None:
            sentence = sentence.merge(tables["voxels"], how="left", on="voxel")
            both = [quality["sentence-level scores"], tables["summary"]]
            quality["sentence-level scores"] = pd.concat(both, ignore_index=True)
    captions = found.captions
    if config.analysis.persons:
        shares = partial(person_shares, shuffled=shuffled, phrases=found.phrases)
        quality["persons"] = by_subject(captions, fitted.scores, shares)
    if texts is not None:
        image_mean = readings.fitted["bank_direction"].values
        text_mean = direction if config.bank.source != "captions" else None
        quality["round trip"], own = round_trip_table(
            captions, fitted.coef, texts.vectors, embed_text, text_mean, image_mean, seed
        )
        captions = captions.merge(own, how="left", on=["voxel", "rank"])
    quality["diversity"] = diversity_table(
        {"fitted weights": found.captions, "shuffled weights": shuffled}, embed_text, seed
    )
    caveats = list(found.caveats)
    if vectors is None:
        caveats.append("Too few held-out stimuli (under 20) for a sentence-level score.")
    if kind == "images":
        caveats.append(
            "The stimuli have no captions: sentence-level scores compare a voxel's caption with the images themselves, "
            "in the joint space."
        )
    if vectors is not None:
        inputs = [*base, "hypotheses", study.caption_space, direction]
        tested = study.store.keep("hypotheses", inputs, lambda: {"table": hypotheses_table(study, direction)})["table"]
        quality |= {"hypotheses": tested} if len(tested) else {}
    if len(study.taught):
        quality["preference training"] = study.taught
    if fitted.truth is not None:
        rows = []
        for name, table in (("fitted weights", found.captions), ("shuffled weights", shuffled)):
            rows.append({"weights": name, **planted_summary(judge_planted(table, fitted.truth), "")})
        quality["planted selectivity"] = pd.DataFrame(rows)
        judged = _planted_phrases(study)
        if judged is not None:
            quality["planted truth of phrases"] = judged
    settings = dict(found.settings)
    if stable:
        settings["stability"] = {**vars(config.stability), "n_voxels": n, "of_voxels": of}
    if sentence is not None:
        settings["sentence"] = {"stimuli as": kind}
    if config.analysis.images != "none":
        settings["images"] = {"n": config.analysis.n_images}
    new = dataclasses.replace(
        found,
        captions=captions,
        stability=stable.get("voxels"),
        sentence=sentence,
        quality=quality,
        caveats=tuple(caveats),
        settings=settings,
    )
    return {"captions": new.judged()}


def _planted_phrases(study: Study) -> pd.DataFrame | None:
    """Shares of phrases that are true and false of simulated voxels, and how well the verdicts tell them apart."""
    phrases, stimuli = study.captions.phrases, study.stimuli
    if phrases is None or not len(phrases) or stimuli is None or stimuli.table is None:
        return None
    parts = []
    for one, voxels in zip(study.subjects, study.fitted.voxels):
        mine = phrases[phrases["voxel"].isin(voxels)]
        if one.truth is None or "signal" not in one.truth or "objects" not in stimuli.table:
            return None
        parts.append(judge_phrases(mine, one.truth["signal"].assign_coords(voxel=voxels), stimuli.table))
    judged = pd.concat(parts, ignore_index=True)
    return pd.DataFrame([{"n_phrases": len(judged), **checker_summary(judged)}])


def shuffled_captions(study: Study) -> pd.DataFrame:
    """Captions of weights whose features were shuffled, of the voxels that have captions."""
    fitted, gate = study.fitted, study.captions.gate
    projection = study.readings.shuffled.sel(voxel=gate.loc[gate["captioned"], "voxel"].to_numpy())
    nothing = pd.DataFrame({"voxel": [], "rank": [], "stimulus": [], "predicted": []})
    mixed = shuffled_control(fitted.coef, study.config.seed)
    found: pd.DataFrame = study.captioner.caption(
        mixed, fitted.scores, gate=gate, projected=(projection, nothing)
    ).captions
    return found


def _stimulus_vectors(study: Study) -> tuple[xr.DataArray | None, str]:
    """One vector a held-out stimulus: of its captions, else of its image in a joint space; None with few stimuli."""
    from neuroenc.embedding import TextEmbedder

    rows, space = study.fitted.rows, study.table("captions").space
    ids = pd.unique(np.concatenate([s.Y_test.coords["stimulus"].values for s in rows]))
    if study.stimuli is None or len(ids) < 20:
        return None, ""
    own = study.stimuli.sel(ids)
    if own.captions is not None:
        embedder = TextEmbedder(space.model, space.pretrained or None, progress=study.progress)
        return embedder.embed_captions(own), "captions"
    test = xr.concat([s.X_test for s in rows], dim=rows[0].X_test.dims[0])
    unique, first = np.unique(test.coords["stimulus"].values, return_index=True)
    return xr.DataArray(test.values[first], dims=("stimulus", "feature"), coords={"stimulus": unique}), "images"


def stability_tables(study: Study) -> dict[str, pd.DataFrame]:
    """Captions again on folds of the bank, bootstraps and halves: ``voxels`` and ``summary``, or nothing."""
    captioner, readings, told = study.captioner, study.readings, []
    voxels, folds = study.fitted.coef["voxel"].values[readings.sampled], study.captions.folds
    known = [] if folds is None else [part.set_index("voxel")["caption"] for _, part in folds.groupby("fold")]
    for kind, null, projection in progress_bar(readings.stability, desc="stability", show=study.progress):
        if known and kind == "folds" and not null:
            told.append((kind, null, known.pop(0).reindex(voxels).fillna("").tolist()))
        else:
            told.append((kind, null, captioner.best_of(projection)))
    if not told:
        return {}
    direction = text_direction(study.texts, captioner.decoder)
    options: dict[str, Any] = {"seed": study.config.seed, "of_voxels": readings.n_passed}
    found = score_stability(voxels, told, captioner.embed_text, text_direction=direction, **options)
    return dict(zip(("voxels", "summary"), found))


def labelled(voxels: Any, vectors: Any) -> xr.DataArray:
    """Vectors (voxel, feature) under the names of their voxels."""
    return xr.DataArray(np.asarray(vectors), dims=("voxel", "feature"), coords={"voxel": np.asarray(voxels)})


def image_tables(study: Study, shuffled: pd.DataFrame, scored: bool) -> dict[str, pd.DataFrame]:
    """What images of the bank say of captions: five-way accuracy of regions, image-level scores of voxels.

    Parameters
    ----------
    shuffled : DataFrame
        Captions of shuffled weights.
    scored : bool
        Whether there are held-out stimuli to score on.

    Returns
    -------
    dict
        ``accuracy``: `category_accuracy` of each subject and ``kind`` of images (evidence, caption, shuffled weights);
        ``voxels`` (``voxel, image_rho, ...``) and ``summary`` of the image-level score.
    """
    config, captioner, found = study.table("captions").analysis, study.captioner, study.captions
    bank, n = captioner.bank, min(config.n_images, int(captioner.bank.n or config.n_images))
    captions = {"caption": found.captions, "shuffled weights": shuffled}
    captions = {kind: table.loc[table["rank"] == 1, ["voxel", "caption"]] for kind, table in captions.items()}
    near = retrieve_images(
        pd.concat(list(captions.values())),
        bank,
        captioner.embed_text,
        k=n,
        text_direction=text_direction(study.texts, captioner.decoder),
        image_direction=study.readings.fitted["bank_direction"].values,
        max_memory=captioner.max_memory,
    )
    images = {"evidence": found.evidence.loc[found.evidence["rank"] <= n, ["voxel", "stimulus"]]}
    images |= {kind: table.merge(near[["caption", "stimulus"]], on="caption") for kind, table in captions.items()}
    reading = BankPass(bank, max_memory=captioner.max_memory)
    rows = reading.images(0, wanted=pd.unique(pd.concat([t["stimulus"] for t in images.values()])).tolist())
    reading.read()
    vectors = xr.concat([labelled([k], [v]) for k, v in rows().vectors.items()], "voxel").rename(voxel="stimulus")
    tables = {"accuracy": _accuracies(study, images, vectors), "voxels": pd.DataFrame({"voxel": []})}
    if scored:
        shown = images["caption"].groupby("voxel", sort=False)["stimulus"]
        means = [unit_rows(vectors.sel(stimulus=names.tolist()).values).mean(axis=0) for _, names in shown]
        regions = dict(zip(study.fitted.scores["voxel"].values.tolist(), first_roi(study.fitted.scores)))
        told = held_out_scores(study, regions, study.caption_space, labelled(list(shown.groups), means), "image")
        names = {name: f"image_{name}" for name in told["voxels"] if name != "voxel"}
        tables |= {"voxels": told["voxels"].rename(columns=names), "summary": told["summary"]}
    return tables


def _accuracies(study: Study, images: dict[str, pd.DataFrame], vectors: xr.DataArray) -> pd.DataFrame:
    """Five-way accuracy of the regions of each subject, for each kind of images."""
    config, scores, seed = study.table("captions").analysis, study.fitted.scores, study.config.seed
    n = scores.sizes["voxel"]
    labels = {c: scores[c].values if c in scores.coords else np.full(n, "") for c in ("voxel", "subject", "roi")}
    regions = {name for several in labels["roi"] for name in str(several).split(";")}
    for name in config.preferred:
        if name not in regions:
            raise ConfigError(f"[captions.analysis] preferred: {unknown_name('region', name, sorted(regions))}")
    tables = []
    for kind, table in images.items():
        for subject, part in table.merge(pd.DataFrame(labels), on="voxel").groupby("subject", sort=False):
            found = category_accuracy(part, vectors, study.captioner.embed_text, preferred=config.preferred, seed=seed)
            tables.append(found.assign(kind=kind, subject=subject))
    accuracy = pd.concat(tables, ignore_index=True)
    if not len(accuracy):
        study.say("    five-way accuracy: no region has a known category ([captions.analysis] preferred)")
    return accuracy[["kind", "subject", *(c for c in accuracy if c not in ("kind", "subject"))]]


def held_out_scores(
    study: Study, regions: dict[Any, str], vectors: xr.DataArray, told: xr.DataArray, kind: str
) -> dict[str, pd.DataFrame]:
    """Scores of each subject's best captions on its held-out stimuli.

    Parameters
    ----------
    regions : dict
        Region of each voxel of the study.
    vectors : DataArray (stimulus, feature)
        Vectors of the stimuli's captions, or of their images.
    told : DataArray (voxel, feature)
        Vectors of the voxels' captions, or mean vectors of images that stand for them.
    kind : str
        What these are, "sentence" or "image".

    Returns
    -------
    dict
        ``voxels``: ``voxel, rho, shuffled, shuffled_within_roi``; ``summary``: one row a subject.
    """
    # A caption that the space knows no word of has no direction, and no score.
    told = told[told.values.any(axis=1)]
    tables, rows = [], []
    for subject, voxels in zip(study.fitted.rows, study.fitted.voxels):
        at = np.flatnonzero(np.isin(voxels, told["voxel"].values))
        if len(at) < 2:
            continue
        # Repeats of a stimulus count once: they have one caption.
        measured = subject.Y_test.isel(voxel=at)
        by = measured.groupby("stimulus").mean() if "presentation" in measured.dims else measured
        ids = by.coords["stimulus"].values
        s = vectors.sel(stimulus=ids).values
        region = [regions.get(v, "") for v in voxels[at]]
        found = sentence_scores(told.sel(voxel=voxels[at]).values, s, by.values, roi=region, seed=study.config.seed)
        frame = {name: found[name].values for name in ("rho", "shuffled", "shuffled_within_roi")}
        tables.append(pd.DataFrame({"voxel": voxels[at], **frame}))
        keys = ("mean", "low", "high", "mean_shuffled", "p", "mean_shuffled_within_roi", "p_shuffled_within_roi")
        scores = {k: found.attrs[k] for k in keys}
        rows.append({"subject": subject.name, "kind": kind, "n_voxels": len(at), "n_stimuli": len(ids), **scores})
    empty = pd.DataFrame(columns=["voxel", "rho", "shuffled", "shuffled_within_roi"])
    return {"voxels": pd.concat(tables, ignore_index=True) if tables else empty, "summary": pd.DataFrame(rows)}


def hypotheses_table(study: Study, direction: np.ndarray | None, n_captions: int = 3) -> pd.DataFrame:
    """The most frequent captions of each region, tested on stimuli that neither weights nor captions have seen.

    Captions that equally many voxels have are taken by their score. The response of a region is the mean over its
    captioned voxels.
    """
    captions, fitted, bank = study.captions.captions, study.fitted, study.captioner.bank
    best = captions[captions["rank"] == 1].set_index("voxel")
    regions = pd.Series([name or "all" for name in first_roi(fitted.scores)], fitted.scores["voxel"].values)
    shown = [shard.ids for shard in bank.shards() if isinstance(shard.ids, np.ndarray)]
    taught = [subject.Y["stimulus"].values for subject in fitted.rows]
    seen = {str(s) for s in np.concatenate([*taught, *shown])}
    joint = study.table("captions").space.stimuli == "image"
    tables = []
    for subject, voxels in zip(fitted.rows, fitted.voxels):
        mine = best[best.index.isin(voxels)]
        measured = subject.Y_test.assign_coords(voxel=voxels)
        fresh = ~np.isin(measured["stimulus"].values.astype(str), list(seen))
        if not len(mine) or len(np.unique(measured["stimulus"].values[fresh])) < 20:
            continue
        of = xr.DataArray(regions[mine.index].to_numpy(), dims="voxel", coords={"voxel": mine.index}, name="roi")
        coef, intercept, y = (
            x.sel(voxel=mine.index).groupby(of).mean().rename(roi="voxel")
            for x in (fitted.coef, fitted.intercept, measured.isel({measured.dims[0]: fresh}))
        )
        said = mine.groupby([of.values, "caption"])["score"].agg(["size", "mean"])
        said = said.sort_values(["size", "mean"], ascending=False, kind="stable").groupby(level=0).head(n_captions)
        said = said.sort_index(level=0, sort_remaining=False, kind="stable").rename_axis(["voxel", "caption"])
        found = test_caption(
            (coef, intercept),
            said.reset_index(),
            study.caption_space,
            y,
            embed_text=study.captioner.embed_text,
            text_direction=direction if joint else None,
            seen=sorted(seen),
            seed=study.config.seed,
        )
        found = found.rename(columns={"voxel": "roi"}).assign(subject=subject.name, n_voxels=said["size"].to_numpy())
        tables.append(found)
    if not tables:
        return pd.DataFrame()
    names = ["roi", "caption", "n_voxels", "rho_predicted", "rho_measured", "top_minus_rest", "p", "q"]
    table = pd.concat(tables, ignore_index=True)
    return table.assign(q=stats.fdr(table["p"].to_numpy()))[["subject"] * (len(fitted.rows) > 1) + names]


def round_trip_table(
    captions: pd.DataFrame,
    coef: xr.DataArray,
    corpus: np.ndarray,
    embed_text: Callable[[list[str]], Any],
    text_mean: np.ndarray | None,
    image_mean: np.ndarray | None,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predicted response of a caption's own text vector among those of the caption bank, as a percentile.

    Returns
    -------
    row : DataFrame
        The mean over voxels, beside other voxels' captions.
    voxels : DataFrame
        ``voxel, rank`` (1)``, round_trip, round_trip_shuffled``.
    """
    best = captions[captions["rank"] == 1].set_index("voxel")["caption"]
    voxels = [v for v in coef["voxel"].values.tolist() if v in best.index]

    def across(vectors: np.ndarray) -> np.ndarray:
        unit = unit_rows(vectors)
        return unit if text_mean is None or image_mean is None else unit - text_mean + image_mean

    percentile, info = round_trip(
        coef.sel(voxel=voxels).values,
        across(np.asarray(embed_text(best.loc[voxels].tolist()))),
        across(corpus),
        seed=seed,
    )
    n = len(percentile)
    draws = percentile[np.random.default_rng(seed).integers(0, n, (1000, n))].mean(axis=1)
    low, high, _ = stats.sample_interval(draws, percentile.mean(), n_units=n, bounds=(0.0, 1.0))
    row = {
        "n_voxels": len(voxels),
        "mean percentile": info["mean"],
        "low": float(low),
        "high": float(high),
        "other voxels' captions": info["mean_shuffled"],
        "p": info["p"],
    }
    own = {"voxel": voxels, "rank": 1, "round_trip": percentile, "round_trip_shuffled": info["mean_shuffled"]}
    return pd.DataFrame([row]), pd.DataFrame(own)


def diversity_table(
    named: dict[str, pd.DataFrame], embed_text: Callable[[list[str]], Any], seed: int, n_draws: int = 1000
) -> pd.DataFrame:
    """How much best captions differ among voxels, for several sets of captions.

    The semantic variance has a 95 % interval over voxels. Numbers of words and of components have none: they grow with
    the number of captions, and resamples, which repeat captions, say too little of them (intervals of them held the
    expected number in 44 to 88 % of simulated cases).
    """
    rows = []
    for name, captions in named.items():
        texts = captions.loc[captions["rank"] == 1, "caption"].astype(str).tolist()
        if len(texts) < 3:
            continue
        vectors = np.asarray(embed_text(texts), dtype=np.float64)
        known = vectors.any(axis=1)
        texts, vectors = [texts[k] for k in np.flatnonzero(known)], vectors[known]
        if len(texts) < 3:
            continue
        row: dict[str, Any] = {"captions": name, **{str(k): v for k, v in caption_diversity(texts, vectors).items()}}
        n, unit = len(texts), unit_rows(vectors)
        drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_draws) / n
        # Of unit vectors the mean squared distance from their mean is 1 less its square.
        samples = 1.0 - ((drawn @ unit) ** 2).sum(axis=1)
        low, high, _ = stats.sample_interval(samples, row["semantic_variance"], n_units=n)
        row["semantic_variance_low"], row["semantic_variance_high"] = max(0.0, float(low)), min(1.0, float(high))
        rows.append({k: int(v) if k.startswith("n_") else v for k, v in row.items()})
    return pd.DataFrame(rows)
