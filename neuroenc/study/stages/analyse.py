"""What captions say of regions: words, concepts, categories, clusters, contrasts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import ConfigError
from neuroenc.captions import (
    CaptionStudy,
    categorise,
    cluster_readings,
    cluster_voxels,
    concept_maps,
    concept_shares,
    contrast,
    contrast_shares,
    direction_map,
    find_phrases,
    named_concepts,
    person_voxels,
    retrieve_stimuli,
    search_vectors,
    search_vocabulary,
    words,
)
from neuroenc.data import in_roi
from neuroenc.retrieval import CaptionCorpus
from neuroenc.study.config import AnalysisConfig
from neuroenc.study.stages.bank import captioner_content, load_decoder, text_direction
from neuroenc.study.stages.caption import READS, captioned_weights, first_roi
from neuroenc.study.study import Study, stage


@stage("analyse", reads=READS, writes=("captions",))
def analyse(study: Study) -> dict[str, Any]:
    """The captions with what they say of regions."""
    config, found, seed = study.table("captions"), study.captions, study.config.seed
    if not len(found.captions):
        return {"captions": found}
    inputs = [study.contents, study.readings.key, found.captions, found.folds, config.analysis, seed]
    tables: dict[str, Any] = dict(study.store.keep("analyses", inputs, lambda: _analyses(study)))
    if config.retrieval.enabled:
        tables |= _retrieved(study)
    if "colours" in tables:
        tables["settings"] = {
            **found.settings,
            **tables.get("settings", {}),
            "colours": {"method": config.analysis.colours},
        }
    if "person clusters" in tables:
        tables["quality"] = {**found.quality, "person clusters": tables.pop("person clusters")}
    return {"captions": dataclasses.replace(found, **tables)}


def _retrieved(study: Study) -> dict[str, Any]:
    """Stimuli, captions and categories of the best predicted voxels' n-grams, and the settings that found them."""
    config, found, texts = study.table("captions"), study.captions, study.texts
    settings, decoder, projection = config.retrieval, None, None
    name = settings.retriever or (config.decoder.captioner if config.decoder.writes else "")
    if texts is None:
        raise ConfigError(
            f"[captions.retrieval] needs captions, and those of bank {study.bank_name!r} are not known. Next step: "
            '[captions.decoder] caption_bank = "coco-captions-val2017".'
        )
    if name:
        tokenizer = "" if settings.retriever else config.decoder.tokenizer
        decoder = load_decoder(name, config.space.model, texts.vectors.shape[1], tokenizer)
        projection = study.readings.fitted
    kept = found.captions[found.captions["voxel"].isin(_best_of_regions(found, settings.voxels_per_region))]
    inputs = [study.contents, study.readings.key, kept, settings.model_copy(update={"retriever": ""})]
    inputs.append(captioner_content(name))

    def search() -> dict[str, pd.DataFrame]:
        corpus = CaptionCorpus(
            texts.captions,
            texts.ids,
            named_concepts(texts.captions, texts.ids) if "category" in settings.levels else None,
            lambda text: find_phrases([text], "rules")["phrase"].tolist(),
        )
        options: dict[str, Any] = {"levels": settings.levels, "top": settings.top, "beams": settings.beams}
        return {"retrieved": retrieve_stimuli(kept, corpus, projection, decoder, **options)}

    tables: dict[str, Any] = study.store.keep("retrieved", inputs, search)
    source = "its captions" if decoder is None else "its projected weights, written by a language model"
    told = {"source": source, "texts": texts.name, "top": settings.top, "voxels per region": settings.voxels_per_region}
    return {**tables, "settings": {**found.settings, "retrieval": told}}


def _best_of_regions(found: CaptionStudy, n: int) -> list[Any]:
    """The ``n`` best predicted captioned voxels of each subject and region; all for 0."""
    scores = found.scores
    frame = pd.DataFrame({"voxel": scores["voxel"].values, "r": scores["r"].values, "roi": first_roi(scores)})
    frame["subject"] = scores["subject"].values if "subject" in scores.coords else ""
    frame = frame[frame["voxel"].isin(found.captions["voxel"])].sort_values("r", ascending=False, kind="stable")
    best = frame.groupby(["subject", "roi"], sort=False).head(n) if n else frame
    return best["voxel"].tolist()


def _analyses(study: Study) -> dict[str, pd.DataFrame | xr.Dataset]:
    """Words, concepts, categories, clusters and contrasts of the regions; vectors of voxels and words for searches."""
    config, seed = study.table("captions"), study.config.seed
    scores, captions, captioner = study.captions.scores, study.captions.captions, study.captioner
    voxels = captioned_weights(study.captions, study.fitted)[0]["voxel"]
    labels = {k: c.sel(voxel=voxels) for k, c in study.fitted.scores.coords.items() if c.dims == ("voxel",)}
    projection = study.readings.fitted.sel(voxel=voxels).assign_coords(labels)
    out: dict[str, pd.DataFrame | xr.Dataset] = {}
    if config.analysis.words != "none":
        out["words"] = words(_of_folds(study.captions), parser=config.analysis.words)
    out["concepts"] = by_subject(captions, scores, lambda own: concept_shares(concept_maps(own), seed=seed))
    if captioner.embed_text is not None:
        joint = config.space.stimuli == "image"
        direction = text_direction(study.texts, captioner.decoder) if joint else None
        found = categorise(projection, captioner.embed_text, centre=joint, text_direction=direction)
        table = pd.DataFrame({name: found[name].values for name in ("voxel", "category", "margin")})
        out["categories"] = table[table["category"] != ""]
        vocabulary = search_vocabulary(captions["caption"], study.texts.captions if study.texts else ())
        out["vectors"] = search_vectors(projection, captioner.embed_text, vocabulary)
    if config.analysis.colours != "none" and projection.sizes["voxel"] > 4:
        colours = direction_map(projection, method=config.analysis.colours, seed=seed)
        table = pd.DataFrame(colours.values, columns=list("xyz")).assign(voxel=projection["voxel"].values)
        out["colours"] = table[["voxel", "x", "y", "z"]].dropna()
    more = {
        "clusters": _clusters(captions, projection, config.analysis, seed, study.say),
        "contrasts": _contrasts(captions, scores, config.analysis, seed),
    }
    if config.analysis.persons:
        more["person clusters"] = _person_clusters(captions, projection, config.analysis, seed)
    return out | {name: table for name, table in more.items() if len(table)}


def _of_folds(found: CaptionStudy) -> pd.DataFrame:
    """Captions of all folds with the region of their voxel; the captions themselves where none were made by fold."""
    if found.folds is None:
        return found.captions
    labels = [c for c in ("voxel", "subject", "roi") if c in found.captions]
    return found.folds.merge(found.captions.drop_duplicates("voxel")[labels], on="voxel", how="left")


def by_subject(
    captions: pd.DataFrame, scores: xr.Dataset, table_of: Callable[[pd.DataFrame], pd.DataFrame]
) -> pd.DataFrame:
    """A table of each subject's captions, one below the other."""
    names = scores["subject"].values if "subject" in scores.coords else np.full(scores.sizes["voxel"], "")
    of = dict(zip(scores["voxel"].values.tolist(), names.tolist()))
    owner = captions["voxel"].map(of)
    tables = []
    for subject in dict.fromkeys(owner):
        table = table_of(captions[owner == subject])
        tables.append(table.assign(subject=subject) if subject else table)
    return pd.concat(tables, ignore_index=True)


def _members(projection: xr.Dataset) -> dict[str, np.ndarray]:
    """Positions of each region's voxels; a voxel of overlapping regions counts in each."""
    regions = projection["roi"].values if "roi" in projection.coords else ()
    names = dict.fromkeys(name for several in regions for name in str(several).split(";") if name)
    return {name: np.flatnonzero(in_roi(projection, name)) for name in names}


def _person_clusters(captions: pd.DataFrame, projection: xr.Dataset, config: AnalysisConfig, seed: int) -> pd.DataFrame:
    """Clusters of the person voxels of each region and of all, read by lists of faces, bodies and groups."""
    part = projection.isel(voxel=np.isin(projection["voxel"].values, person_voxels(captions)))
    members = {"all": np.arange(part.sizes["voxel"]), **_members(part)}
    kept = sorted((k for k, v in members.items() if len(v) >= config.min_voxels), key=lambda k: -len(members[k]))
    rows = []
    for roi in kept[: config.max_rois]:
        found = cluster_voxels(part.isel(voxel=members[roi]), (2, 3), n_bootstraps=20, n_null=20, seed=seed)
        choice = found.choices[found.choices["k"] == found.k].iloc[0]
        for number, read in cluster_readings(captions, found.mapping(), seed=seed).groupby("cluster"):
            best = read.iloc[int(read["z"].argmax())]
            row = {"roi": roi, "cluster": number, "n_voxels": int(best["n_voxels"])}
            row |= {f"{name} percent": share for name, share in zip(read["list"], read["percent"])}
            row |= {"reading": best["list"] if best["z"] > 0 else "", "z": best["z"], "p_reading": best["p"]}
            rows.append(row | {"stability": choice["stability"], "p_one_cloud": choice["p"]})
    return pd.DataFrame(rows)


def _clusters(
    captions: pd.DataFrame, projection: xr.Dataset, config: AnalysisConfig, seed: int, say: Callable[[str], None]
) -> pd.DataFrame:
    members = _members(projection)
    wanted = config.clusters or [k for k, v in members.items() if len(v) >= config.min_voxels]
    if not config.clusters and len(wanted) > config.max_rois:
        wanted = sorted(wanted, key=lambda k: -len(members[k]))[: config.max_rois]
        say(f"    clusters: the {config.max_rois} largest regions ([captions.analysis] max_rois)")
    rows = []
    for roi in wanted:
        part = projection.isel(voxel=members[roi]) if roi in members else projection
        found = cluster_voxels(part, (2, 3, 4), n_bootstraps=20, n_null=20, seed=seed)
        choice = found.choices[found.choices["k"] == found.k].iloc[0]
        phrases = found.phrases(captions, n_permutations=200, seed=seed)
        for number in range(1, found.k + 1):
            top = phrases[phrases["group"] == number].head(6) if len(phrases) else phrases
            rows.append(
                {
                    "roi": roi,
                    "cluster": number,
                    "n_voxels": int((found.labels == number).sum()),
                    "phrases": ", ".join(top["phrase"]),
                    "z": float(top["z"].iloc[0]) if len(top) else np.nan,
                    "stability": float(choice["stability"]),
                    "p_one_cloud": float(choice["p"]),
                }
            )
    return pd.DataFrame(rows)


def _contrasts(captions: pd.DataFrame, scores: xr.Dataset, config: AnalysisConfig, seed: int) -> pd.DataFrame:
    """Phrases that separate two regions, or two subjects, that ``contrast`` names."""
    if not config.contrast:
        return pd.DataFrame()
    a, b = config.contrast
    subjects = dict(zip(scores["voxel"].values.tolist(), scores["subject"].values.tolist()))
    owner = captions["voxel"].map(subjects)
    regions = captions["roi"].str.split(";") if "roi" in captions else pd.Series([[]] * len(captions))

    def of(name: str) -> pd.DataFrame:
        inside = (owner == name) | regions.map(lambda names: name in names)
        return captions[inside.to_numpy()]

    sides = of(a), of(b)
    found = contrast(*sides, names=(a, b), n_permutations=500, seed=seed)
    top = found.groupby("group", sort=False).head(15).reset_index(drop=True)
    # Two regions lie in the same people.
    paired = not {a, b} & set(owner.astype(str))
    named = [side.assign(subject=owner[side.index]) for side in sides]
    shares = contrast_shares(*named, names=(a, b), paired=paired, at_least=0, min_voxels=1).set_index("term")
    shares = shares.loc[top["phrase"], ["difference", "low", "high", "unit"]].reset_index(drop=True)
    # Each group minus the other one.
    second = (top["group"] == b).to_numpy()
    flipped = -shares[["difference", "high", "low"]].to_numpy()
    shares.loc[second, ["difference", "low", "high"]] = flipped[second]
    return top.assign(**shares, roi=top["group"])
