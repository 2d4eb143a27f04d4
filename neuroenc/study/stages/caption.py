"""Captions of voxels: the space that weights and texts share, who is captioned, the bank, the captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import hash_array, hash_json, hash_path
from neuroenc._core.store import Codec, content_key, register
from neuroenc.captions import (
    BankImages,
    BankPass,
    Captioner,
    CaptionStudy,
    Decoder,
    RetrievalDecoder,
    bank_folds,
    bank_hash,
    gate_voxels,
    load_categories,
    load_lexicon,
    sample_voxels,
    shuffled_control,
    spacy_version,
    stability_jobs,
    word_pattern,
)
from neuroenc.data import Stimuli
from neuroenc.embedding import ImageEmbedder, TextEmbedder
from neuroenc.encoders import resampled_rows, ridge_weights
from neuroenc.retrieval import plain_text
from neuroenc.study.config import CaptionsConfig, SpaceConfig, StabilityConfig
from neuroenc.study.stages.fit import fit_folds
from neuroenc.study.stages.load import first_captions
from neuroenc.study.stages.score import merge_subjects, score_subject
from neuroenc.study.study import Study, stage

register(Codec("captions", CaptionStudy, "", lambda p, x: x.save(p), CaptionStudy.load))

NOTES = {
    "conse": "Captions go through ConSE (class names of an ImageNet classifier), not CLIP: it has hardly any class for "
    "people, so captions say nothing reliable about faces or bodies.",
    "retrieval": "Captions are retrieved from a caption bank, not written: a preference that no caption of the bank "
    "describes cannot be named.",
}


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


@dataclass(frozen=True)
class Bank:
    """Raw embeddings that weights are projected onto, what they show, and what that is called."""

    embeddings: Any
    stimuli: Stimuli | None
    name: str


@dataclass(frozen=True)
class Texts:
    """A caption bank: texts, their vectors, and the id of each one's image."""

    captions: list[str]
    vectors: np.ndarray
    ids: list[str]
    name: str

    def content_hash(self) -> str:
        """Hash of texts, vectors and ids."""
        return content_key(self.captions, self.vectors, self.ids)


@stage("space", reads=("stimuli", "config.captions.space"), writes=("caption_space",), kept=False)
def space(study: Study) -> dict[str, Any]:
    """Stimuli in the space that weights and texts share, one row a stimulus, at unit norm."""
    config, stimuli = study.table("captions").space, study.stimuli
    if stimuli is None:
        raise ConfigError("captions need stimuli. Next step: [data] images, or captions.")
    options: dict[str, Any] = {"progress": study.progress}
    if config.stimuli == "captions":
        raw = TextEmbedder(config.model, config.pretrained or None, **options).embed_captions(stimuli)
    else:
        raw = ImageEmbedder(config.model, config.pretrained or None, **options).embed(stimuli)
    unit = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    unit.attrs.update(raw.attrs, normalised=1)
    return {"caption_space": unit}


@stage(
    "weights",
    reads=("subjects", "splits", "caption_space", "config.encoder", "config.evaluation", "config.captions.gate"),
    writes=("fitted", "gate"),
    kept=False,  # fits and scores are
)
def weights(study: Study) -> dict[str, Any]:
    """Ridge on the training rows of the first fold, scored on its held-out rows, and who is captioned."""
    gate = study.table("captions").gate
    vectors = study.caption_space
    firsts = [folds[:1] for folds in study.splits]
    jobs = [(one, vectors, folds, False) for one, folds in zip(study.subjects, firsts)]
    rows, coefs, intercepts, alphas, voxels, scores, truths, offset = [], [], [], [], [], [], [], 0
    for one, folds, (result,) in zip(study.subjects, firsts, fit_folds(study, jobs, weights=True)):
        ((train, test),) = folds
        Y, Y_test = one.responses[train], one.responses[test]
        rows.append(Rows(one.name, data.match(vectors, Y), Y, data.match(vectors, Y_test), Y_test))
        total = np.full(one.responses.shape, np.nan, dtype=np.float32)
        total[test] = result["predicted"]
        predicted = one.responses.copy(data=total)
        scores.append(score_subject(study, one, folds, vectors, predicted, result["alpha"][None], False))
        numbers = np.arange(offset, offset + one.responses.shape[1])
        coefs.append(result["coef"].assign_coords(voxel=numbers))
        intercepts.append(result["intercept"].assign_coords(voxel=numbers))
        alphas.append(result["alpha"])
        voxels.append(numbers)
        if one.truth is not None:
            names = ("family", "second_family", "members", "mixed", "ncsnr")
            planted = {name: ("voxel", one.truth[name].values) for name in names}
            truths.append(xr.Dataset(planted, coords={"voxel": numbers}))
        offset += len(numbers)
    options: dict[str, Any] = {"dim": "voxel", "combine_attrs": "override", "coords": "different", "compat": "equals"}
    found = Fitted(
        tuple(rows),
        xr.concat(coefs, **options),
        xr.concat(intercepts, **options),
        merge_subjects(study, scores, number=True),
        alphas,
        voxels,
        xr.concat(truths, **options) if truths else None,
    )
    table = gate_voxels(found.scores, gate.kind, q=gate.q, rois=gate.rois, min_ceiling_r=gate.min_ceiling_r)
    study.say(f"    {int(table['captioned'].sum())} of {len(table)} voxels pass the gate")
    return {"fitted": found, "gate": table}


def _training_ids(study: Study) -> np.ndarray:
    return pd.unique(np.concatenate([s.Y.coords["stimulus"].values for s in study.fitted.rows]))


def _bank(study: Study, texts: Texts | None) -> Bank:
    """The bank that ``[captions.bank]`` names."""
    config = study.table("captions")
    source, where = config.bank.source, config.space
    if source == "captions":
        assert texts is not None
        labelled = data.make_features(texts.vectors, stimulus=_unique(texts.ids))
        return Bank(labelled, None, texts.name)
    if Path(source).is_dir():
        from neuroenc.retrieval import as_bank

        return Bank(as_bank(source), None, Path(source).name)
    if source == "unseen":
        stimuli = study.unseen
    elif source == "stimuli":
        assert study.stimuli is not None
        stimuli = study.stimuli.sel(_training_ids(study))
    else:
        stimuli = data.load_dataset(source, mirror=study.mirror).stimuli
    if stimuli is None or stimuli.images is None:
        raise ConfigError(f'[captions.bank] source = "{source}" has no images.')
    raw = ImageEmbedder(where.model, where.pretrained or None, progress=study.progress).embed(stimuli)
    return Bank(raw, stimuli, stimuli.source or source)


def training_texts(study: Study) -> Texts | None:
    """The caption bank that ``[captions.decoder]`` names; None where the bank's images have no captions."""
    config = study.table("captions")
    name = config.decoder.caption_bank
    if name == "bank" and config.bank.source == "captions":
        raise ConfigError(
            '[captions.decoder] caption_bank = "bank" and [captions.bank] source = "captions" name each other.'
        )
    if name == "bank":
        source = config.bank.source
        if Path(source).is_dir():
            return None
        name = "stimuli" if source == "stimuli" else source
    if name == "unseen":
        stimuli = study.unseen
    elif name == "stimuli":
        assert study.stimuli is not None
        stimuli = study.stimuli.sel(_training_ids(study))
    else:
        stimuli = data.load_dataset(name, mirror=study.mirror).stimuli
    if stimuli is None or stimuli.captions is None:
        return None
    captions, ids = first_captions(stimuli, config.decoder.captions_per_stimulus)
    embedder = TextEmbedder(config.space.model, config.space.pretrained or None, progress=study.progress)
    return Texts(captions, embedder.embed(captions).values, ids, stimuli.source or name)


def _unique(ids: list[str]) -> list[str]:
    """Ids with a number where an image has several captions."""
    seen: dict[str, int] = {}
    out = []
    for name in ids:
        seen[name] = seen.get(name, -1) + 1
        out.append(f"{name}#{seen[name]}")
    return out


@stage(
    "bank",
    reads=("fitted", "stimuli", "unseen", "config.captions", "config.seed"),
    writes=("texts", "captioner", "bank_name", "contents"),
    kept=False,
)
def bank(study: Study) -> dict[str, Any]:
    """Images that weights are projected onto, texts, and the decoder that writes or retrieves captions."""
    config = study.table("captions")
    texts = training_texts(study)
    chosen = _bank(study, texts)
    embed_text = make_text_embedder(config.space)
    decoder = make_decoder(config, texts, embed_text, study.config.seed)
    p = config.projection
    captioner = Captioner(
        chosen.embeddings,
        decoder,
        stimuli=chosen.stimuli,
        embed_text=embed_text,
        method=p.method,
        top=config.decoder.top,
        n_evidence=config.grounding.images,
        temperature=p.temperature,
        renormalise=p.renormalise,
        decouple=p.decouple,
        progress=study.progress,
    )
    contents = contents_of(study, captioner, texts, embed_text)
    return {"texts": texts, "captioner": captioner, "bank_name": chosen.name, "contents": contents}


class _Vectors:
    """Vectors of texts. Variants of captions repeat each other: each text is embedded once."""

    def __init__(self, embedder: TextEmbedder) -> None:
        self._embedder, self._known = embedder, dict[str, np.ndarray]()

    @property
    def weights_hash(self) -> str:
        """Of the model that the vectors come from."""
        return self._embedder.backbone.weights_hash()

    def __call__(self, texts: list[str]) -> np.ndarray:
        new = [t for t in dict.fromkeys(texts) if t not in self._known]
        if new:
            self._known.update(zip(new, np.asarray(self._embedder.embed(new).values), strict=True))
        return np.stack([self._known[t] for t in texts])


def make_text_embedder(config: SpaceConfig) -> Callable[[list[str]], np.ndarray]:
    """``embed_text(texts) -> (n, feature)`` in the space of the weights."""
    return _Vectors(TextEmbedder(config.model, config.pretrained or None, cache=False, progress=False))


def text_direction(texts: Texts | None, decoder: Any = None) -> np.ndarray | None:
    """Mean direction of texts: of the caption bank, or what the captioner knows from its training."""
    if texts is not None:
        unit = texts.vectors / np.linalg.norm(texts.vectors, axis=1, keepdims=True)
        return np.asarray(unit.mean(axis=0, dtype=np.float64))
    return getattr(decoder, "text_direction", None)


def _only_lower(tokenizer: Any) -> bool:
    """Whether no token of several letters holds a capital."""
    special = set(tokenizer.all_special_tokens)
    tokens = (t.lstrip("Ġ▁") for t in tokenizer.get_vocab() if t not in special)
    return not any(len(t) > 1 and t.isascii() and t != t.lower() for t in tokens)


def make_decoder(
    config: CaptionsConfig, texts: Texts | None, embed_text: Callable[[list[str]], np.ndarray], seed: int
) -> Decoder:
    """Retrieval, a prefix language model, or one that keeps to the phrases of a corpus.

    Raises
    ------
    ConfigError
        A caption bank is needed and the bank's images have no captions, or the captioner is of another space.
    """
    d = config.decoder
    lexicon = load_lexicon()
    without = [word for concept in d.without for word in lexicon[concept]]
    if d.kind in ("retrieval", "corpus") and texts is None:
        raise ConfigError(
            f'[decoder] kind = "{d.kind}" needs captions, and caption_bank = "{d.caption_bank}" has none. Next step: '
            'caption_bank = "coco-captions-val2017", or kind = "prefix".'
        )
    direction = text_direction(texts)
    if texts is not None and without and d.kind != "prefix":
        named = word_pattern(without)
        kept = [k for k, text in enumerate(texts.captions) if not named.search(text)]
        if not kept:
            raise ConfigError(f"every caption of the bank names {' or '.join(d.without)} (decoder.without).")
        texts = Texts([texts.captions[k] for k in kept], texts.vectors[kept], [texts.ids[k] for k in kept], texts.name)
    if d.kind == "retrieval":
        assert texts is not None
        return RetrievalDecoder(texts.captions, texts.vectors, texts.ids, centre=d.centre)
    from neuroenc.captions import CorpusConstraint, PrefixDecoder, load_captioner

    found = PrefixDecoder.load(d.captioner) if Path(d.captioner).is_dir() else load_captioner(d.captioner)
    width = texts.vectors.shape[1] if texts is not None else embed_text(["a"]).shape[1]
    if found.embedding_dim != width:
        raise ConfigError(
            f'captioner "{d.captioner}" reads embeddings of {found.embedding_dim}; space "{config.space.model}" has '
            f'{width}. Next step: captioner = "world" with model = "world", "photo" with "conse".'
        )
    search = dataclasses.replace(
        found.search,
        method=d.method,
        beams=d.beams,
        groups=d.groups,
        diversity=d.diversity,
        diversity_penalty=d.diversity_penalty,
        temperature=d.temperature,
        top_p=d.top_p,
        max_length=d.max_length,
        seed=seed,
    )
    options: dict[str, Any] = {"search": search, "embed_text": embed_text}
    if direction is not None:
        options["text_direction"] = direction
    if d.kind == "corpus":
        assert texts is not None
        # A captioner that never saw a capital would have to spell the corpus's letter by letter.
        corpus = [plain_text(c) for c in texts.captions] if _only_lower(found.tokenizer) else texts.captions
        options["constraint"] = CorpusConstraint.from_captions(
            corpus, found.encode, stop=found.stop, vocabulary=found.vocabulary, ids=texts.ids, n=d.n or None
        )
    if d.rerank is not None:
        options["rerank"] = d.rerank
    return found.with_options(**options, **({"without": without} if without else {}))


@dataclass(frozen=True)
class Contents:
    """Hashes of what several steps read.

    Attributes
    ----------
    weights : str
        Weights, intercepts and penalties.
    rows : str
        Features and responses of every subject, fitted on and held out.
    scores : str
    bank : str
        Embeddings and ids of the bank, and the captions of its images.
    writing : str
        All that a caption is written with: decoder and its settings, captioner, caption bank, space, word lists.
    words : str
        All that captions are read with: lexicon, categories, parser.
    """

    weights: str
    rows: str
    scores: str
    bank: str
    writing: str
    words: str


def captioner_content(name: str) -> str:
    """Hash of a captioner's files: of a folder, or of one that comes with the package; "" for none."""
    if not name:
        return ""
    if Path(name).is_dir():
        return hash_path(name)
    with as_file(files("neuroenc.captions.decoding") / "weights" / name) as folder:
        return hash_path(folder) if folder.is_dir() else ""


@lru_cache(maxsize=1)
def _words() -> str:
    lists: list[Mapping[str, Any]] = [load_lexicon(), load_categories()]
    return hash_json([*({k: list(v) for k, v in found.items()} for found in lists), spacy_version()])


def contents_of(study: Study, captioner: Captioner, texts: Texts | None, embed_text: Any) -> Contents:
    """Contents of a captioning's inputs."""
    config, fitted, shown = study.table("captions"), study.fitted, captioner.stimuli
    d = config.decoder
    return Contents(
        weights=content_key(fitted.coef, fitted.intercept, fitted.alphas, fitted.truth),
        rows=content_key(fitted.rows, fitted.voxels),
        scores=content_key(fitted.scores),
        # Pictures are what the embeddings were made of, and are shown by the report alone.
        bank=content_key(bank_hash(captioner.bank), None if shown is None else [shown.ids, shown.captions]),
        writing=content_key(
            # Not where the captioner lies, but what it is.
            d.model_copy(update={"captioner": ""}),
            captioner_content("" if d.kind == "retrieval" else d.captioner),
            texts,
            config.space,
            getattr(embed_text, "weights_hash", ""),
            _words() if d.without else "",
            study.config.seed,
        ),
        words=_words(),
    )


def sampled_voxels(config: StabilityConfig, scores: xr.Dataset, passed: np.ndarray, seed: int) -> np.ndarray:
    """Voxels (bool) on which stability is measured, a stratified sample of those that passed the gate."""
    at = np.flatnonzero(passed)
    rois = scores["roi"].values[at] if "roi" in scores.coords else np.full(len(at), "")
    names = scores["subject"].values[at] if "subject" in scores.coords else np.full(len(at), "")
    strata = [f"{subject} {str(roi).split(';')[0]}" for subject, roi in zip(names, rois)]
    out = np.zeros(len(passed), dtype=bool)
    out[at[sample_voxels(strata, config.max_voxels or None, seed)]] = True
    return out


def _resampled(fitted: Fitted, chosen: np.ndarray, kind: str, n: int, seed: int) -> Iterator[xr.DataArray]:
    """Weights of chosen voxels on resampled stimuli, one variant after another."""
    streams = []
    for s, (subject, alpha, voxels) in enumerate(zip(fitted.rows, fitted.alphas, fitted.voxels)):
        groups = subject.Y.coords["stimulus"].values
        if len(np.unique(groups)) < 20 and "run" in subject.Y.coords:
            # Few stimuli, each shown in every run: runs are what was sampled.
            groups = subject.Y.coords["run"].values
        mine = np.flatnonzero(chosen[voxels])
        rows = resampled_rows(groups, kind, n, seed=seed + 1000 * s)
        streams.append((subject.X.values, subject.Y.values[:, mine], np.asarray(alpha)[mine], rows))
    coef = fitted.coef.isel(voxel=np.flatnonzero(chosen))
    for _ in range(2 * n if kind == "halves" else n):
        parts = []
        for x, y, alpha, rows in streams:
            at = next(rows)
            if y.shape[1]:
                parts.append(ridge_weights(x[at], y[at], alpha)[0])
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
        Kind, whether it is the null, and projection of each captioning that stability rests on.
    images : BankImages or None
        What phrases are compared with; None where they are not checked.
    sampled : bool array (voxel,)
        Voxels on which stability is measured.
    n_passed : int
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
    "read",
    reads=("fitted", "gate", "captioner", "contents", "config.captions", "config.seed"),
    writes=("readings",),
    kept=False,  # what was read is
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
    ]
    parts = study.store.keep("bank", inputs, lambda: _read(study, passed, sampled))
    images = None
    if "images" in parts:
        seen = parts["images"]
        vectors = dict(zip(seen["stimulus"].values.astype(str).tolist(), seen["vectors"].values))
        images = BankImages(seen["mean"].values, float(seen["norm"]), vectors, parts["random"])
    stability = [(kind, null, parts[f"stability-{n:03d}"]) for n, (kind, null) in enumerate(parts["kinds"])]
    key = study.store.path("bank", inputs).name
    found = Readings(
        key, parts["fitted"], parts["shuffled"], parts["evidence"], stability, images, sampled, int(passed.sum())
    )
    return {"readings": found}


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
            variants[name] = [(w, None) for w in _resampled(study.fitted, sampled, kind, n, seed)]
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
    variants = [ask(job.weights, job.bank) for job in jobs]
    shown = captioner.stimuli
    told = shown is not None and shown.captions is not None and all(shown.captions)
    best = reading.evidence(
        coef,
        intercept=bias,
        k=max(1, min(captioner.n_evidence, int(captioner.bank.n or 0))),
        features_normalised=captioner.features_normalised,
        keep_rows=config.grounding.enabled and not told,
    )
    # As many as `GroundingChecker` draws by itself.
    images = reading.images(1000, seed) if config.grounding.enabled else None
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


def captioned_weights(study: CaptionStudy, fitted: Fitted) -> tuple[xr.DataArray, np.ndarray]:
    """Weights and intercepts of the captioned voxels."""
    at = np.flatnonzero(study.gate["captioned"].to_numpy(dtype=bool))
    return fitted.coef.isel(voxel=at), fitted.intercept.values[at]


@stage(
    "caption",
    reads=("fitted", "gate", "captioner", "contents", "readings", "bank_name", "config"),
    writes=("captions",),
    kept=False,  # the captions are
)
def caption(study: Study) -> dict[str, Any]:
    """Captions of the voxels that passed the gate, with their evidence."""
    whole, config = study.config, study.table("captions")
    told = [whole.title, whole.notes, config.space, whole.encoder, whole.evaluation, config.gate, config.projection]
    inputs = [study.contents, study.readings.key, study.gate, study.bank_name, config.decoder.captioner, told]
    return study.store.keep("captions", inputs, lambda: {"captions": _caption(study)})


def _caption(study: Study) -> CaptionStudy:
    whole, config, readings = study.config, study.table("captions"), study.readings
    fitted, gate = study.fitted, study.gate
    e, h = whole.encoder, whole.evaluation
    found = study.captioner.caption(
        (fitted.coef, fitted.intercept),
        fitted.scores,
        gate=gate,
        title=whole.title,
        settings={
            "features": {"model": config.space.model, "stimuli": config.space.stimuli, "normalised": "unit norm"},
            "encoder": {"kind": e.kind, "cv": e.cv, "scoring": e.scoring},
            "held_out": {"scheme": h.scheme, "permutations": h.permutations},
            "gate": {k: v for k, v in vars(config.gate).items() if v},
            "seed": whole.seed,
        },
        caveats=[*whole.notes, *_caveats(config)],
        projected=(readings.fitted, readings.evidence) if gate["captioned"].any() else None,
    )
    settings = dict(found.settings)
    settings["bank"] = {**settings["bank"], "name": study.bank_name}
    # Of a folder its name: where it lies says nothing to another reader; what it is stands in the provenance.
    settings["decoder"] = {**settings["decoder"], "captioner": Path(config.decoder.captioner).name}
    more = {"weights": hash_array(fitted.coef.values), "writing": study.contents.writing}
    return dataclasses.replace(found, settings=settings, provenance={**found.provenance, **more})


def _caveats(config: CaptionsConfig) -> list[str]:
    notes = []
    if config.space.model == "conse":
        notes.append(NOTES["conse"])
    if config.decoder.kind == "retrieval":
        notes.append(NOTES["retrieval"])
    if config.gate.kind != "q":
        notes.append("Voxels are captioned whether or not they are predicted above chance.")
    return notes
