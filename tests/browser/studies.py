"""Studies for tests of the page of voxel captions: the simulated cortex, captioned and checked, and made-up ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc.captions import CaptionStudy, search_vectors, search_vocabulary

NOUNS = ["man", "house", "pizza", "sign", "runner", "church", "dog", "beach", "letter", "cake"]
COLOURS = ["red", "green", "old", "small", "bright"]
#: What the embedder of `with_vectors` knows beyond the words of captions.
MEANT = {"meal": ("pizza", "cake"), "person": ("man", "runner"), "building": ("house", "church")}
EVIL = "</script><script>window.taken=1</script><img src=x onerror='window.taken=2'>\"'&{{ 7*7 }}\u2028 𝒳 😀"


def simulated(n_subjects=1, n_voxels=110, n_train=300, n_test=60, n_bank=260, seed=3):
    """The path of the demo in small: scenes, cortex, ridge, projection, retrieved captions, phrases checked."""
    from neuroenc import data
    from neuroenc.captions import (
        GroundingChecker,
        RetrievalDecoder,
        caption_voxels,
        gate_voxels,
        sentence_scores,
        words,
    )
    from neuroenc.data.simulate import simulate_cortex, simulate_world
    from neuroenc.embedding import ImageEmbedder, TextEmbedder
    from neuroenc.encoders import RidgeEncoder
    from neuroenc.study.config import EvaluationConfig
    from neuroenc.study.stages.score import noise_ceilings, score_table

    def unit_norm(features, responses):
        unit = features / np.linalg.norm(features, axis=1, keepdims=True)
        unit.attrs.update(features.attrs, normalised=1)
        return data.match(unit, responses)

    shown = simulate_world(n_train + n_test, seed=70_000 + seed)
    unseen = simulate_world(n_bank, seed=70_001 + seed)
    test_ids = shown.ids[n_train:]
    images, text = ImageEmbedder("world", progress=False), TextEmbedder("world", progress=False)
    features, bank = images.embed(shown), images.embed(unseen)
    texts = [c[0] for c in unseen.captions]
    vectors = text.embed(texts, ids=list(unseen.ids))
    config = EvaluationConfig(scheme="test", test_ids=["held out"], permutations=200)
    scores, coefs, intercepts, told = [], [], [], []
    first = 0
    for number, subject in enumerate(
        simulate_cortex(shown, n_subjects=n_subjects, n_voxels=n_voxels, test_ids=test_ids, own=0.0, seed=seed)
    ):
        scaled = data.zscore(subject.responses, by="session")
        train, single = data.shared_test(scaled, test_ids)
        train, test = data.average_repeats(train), data.average_repeats(single)
        encoder = RidgeEncoder(progress=False).fit(unit_norm(features, train), train)
        ceilings = noise_ceilings(None, single, test)
        found = score_table(test, encoder.predict(unit_norm(features, test)), config, ceilings=ceilings, seed=seed)
        ids = np.arange(first, first + test.shape[1])
        first += test.shape[1]
        coef, intercept = encoder.to_linear()
        scores.append(found.assign_coords(voxel=ids, subject=("voxel", [f"sub-{number + 1:02d}"] * len(ids))))
        coefs.append(coef.assign_coords(voxel=ids))
        intercepts.append(intercept.assign_coords(voxel=ids))
        told.append(test.assign_coords(voxel=ids))
    options = {"dim": "voxel", "combine_attrs": "override", "coords": "different", "compat": "equals"}
    table, coef, intercept = (xr.concat(x, **options) for x in (scores, coefs, intercepts))
    gate = gate_voxels(table, "q", q=0.05)
    decoder = RetrievalDecoder(texts, vectors.values, list(unseen.ids))
    passed = gate["captioned"].to_numpy()
    made = caption_voxels(coef, bank, decoder, intercept=intercept, top=3, n_evidence=6, mask=passed, progress=False)
    checker = GroundingChecker(
        coef,
        made.evidence,
        dict(zip(unseen.ids.tolist(), unseen.captions)),
        lambda t: text.embed(t).values,
        bank=bank,
        intercept=intercept,
        engine="rules",
        n_images=200,
        n_random=200,
    )
    grounded = checker.check(made.captions)
    best = grounded.captions[grounded.captions["rank"] == 1]
    own = text.embed_captions(shown)
    sentence = []
    for responses in told:
        mine = best[best["voxel"].isin(responses["voxel"].values)]
        part = responses.sel(voxel=mine["voxel"].to_numpy())
        rho = sentence_scores(
            text.embed(mine["caption"].tolist()).values,
            own.sel(stimulus=part["stimulus"].values).values,
            part.values,
            roi=part["roi"].values,
            n_shuffles=20,
            n_bootstraps=50,
        )
        columns = {name: rho[name].values for name in ("rho", "shuffled", "shuffled_within_roi")}
        sentence.append(pd.DataFrame({"voxel": mine["voxel"].to_numpy(), **columns}))

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    # Halves of the bank, captioned again: agreement of the caption's vector, beside another voxel's.
    rng = np.random.default_rng(seed)
    halves = []
    for rows in np.array_split(rng.permutation(bank.shape[0]), 2):
        again = caption_voxels(coef, bank[np.sort(rows)], decoder, top=1, n_evidence=0, mask=passed, progress=False)
        halves.append(unit(text.embed(again.captions["caption"].tolist()).values))
    alike = (halves[0] * halves[1]).sum(axis=1)
    other = (halves[0] * np.roll(halves[1], 1, axis=0)).sum(axis=1)
    stability = pd.DataFrame({"voxel": best["voxel"].to_numpy(), "folds": alike, "folds_null": other})
    study = CaptionStudy(
        title="Voxel captions of simulated cortices",
        scores=table,
        captions=grounded.captions,
        evidence=made.evidence,
        gate=gate,
        phrases=grounded.phrases,
        stability=stability,
        sentence=pd.concat(sentence, ignore_index=True),
        words=words(grounded.captions),
        quality={
            "sentence-level scores": pd.DataFrame(
                [
                    {"captions": "own", "mean ρ": sentence[0]["rho"].mean()},
                    {"captions": "another voxel's", "mean ρ": sentence[0]["shuffled"].mean()},
                ]
            ),
        },
        settings={
            "features": {"model": "world"},
            "encoder": {"kind": "ridge"},
            "bank": {"n": n_bank, "name": "unseen"},
            "projection": {"temperature": 1 / 150},
            "decoder": {"kind": "retrieval"},
            "gate": {"kind": "q", "q": 0.05},
            "seed": seed,
        },
        caveats=("Everything here is simulated.",),
    )
    return study, unseen


def made_up(n=40, places="none", evil=False, subjects=1, captions_each=3, n_stimuli=50, seed=0):
    """A study of any size without any model: words, verdicts and numbers are drawn."""
    rng = np.random.default_rng(seed)
    ids = np.arange(100, 100 + n)
    r = np.clip(rng.normal(0.4, 0.2, n), -0.2, 0.95)
    regions = np.array(["FFA", "PPA", "EBA;FBA", "V1", ""])
    roi = regions[rng.integers(0, 5, n)]
    if evil:
        roi = np.where(roi == "V1", EVIL.replace(";", ""), roi)
    coords = {"voxel": ids, "roi": ("voxel", roi)}
    coords["subject"] = ("voxel", np.array([(EVIL if evil else "sub-") + str(k * subjects // n) for k in range(n)]))
    attrs = {}
    if places == "volume":
        flat = np.concatenate(
            [rng.permutation(14 * 15 * 6)[: int((np.arange(n) * subjects // n == s).sum())] for s in range(subjects)]
        )
        index = np.unravel_index(flat, (14, 15, 6))
        coords |= {axis: ("voxel", index[k]) for k, axis in enumerate("ijk")}
        attrs = {"affine": np.diag([-2.0, 2, 2.5, 1]).ravel().tolist(), "volume_shape": [14, 15, 6], "space": "T1w"}
    if places == "surface":
        coords |= {"vertex": ("voxel", rng.permutation(10242)[:n]), "hemi": ("voxel", np.array(["L", "R"] * n)[:n])}
        attrs = {"space": "fsaverage5"}
    scores = xr.Dataset(
        {
            "r": ("voxel", r),
            "noise_ceiling_r": ("voxel", np.clip(r + 0.2, 0.1, 1)),
            "q_value": ("voxel", np.exp(-12 * np.clip(r, 0, None))),
        },
        coords=coords,
        attrs=attrs,
    )
    good = scores["q_value"].values < 0.2
    rows, said, shown = [], [], []
    for v in ids[good]:
        for rank in range(1, captions_each + 1):
            noun, other, colour = rng.choice(NOUNS), rng.choice(NOUNS), rng.choice(COLOURS)
            before = EVIL + " " if evil else ""
            text = f"{before}a {colour} {noun} near a {other} number {rng.integers(90)}"
            start = len(before) + 2
            rows.append((v, rank, text, 0.4 - 0.02 * rank))
            for phrase, at in ((f"{colour} {noun}", start), (other, text.index(" near a ") + 8)):
                verdict = ("supported", "uncertain", "unsupported")[rng.integers(3)]
                number = (rng.random(), rng.normal(), rng.random())
                said.append((v, rank, phrase, at, at + len(phrase), *number, verdict))
        for rank, s in enumerate(rng.choice(n_stimuli, 8, replace=n_stimuli < 8), 1):
            shown.append((v, rank, f"{EVIL if evil else 'scene-'}{s}", 3 - 0.2 * rank))
    return CaptionStudy(
        title=EVIL if evil else "Made-up voxels",
        scores=scores,
        captions=pd.DataFrame(rows, columns=["voxel", "rank", "caption", "score"]),
        evidence=pd.DataFrame(shown, columns=["voxel", "rank", "stimulus", "predicted"]),
        gate=pd.DataFrame(
            {
                "voxel": ids,
                "captioned": good,
                "reason": [
                    "" if ok else (EVIL if evil else f"not predicted above chance (q = {q:.2f})")
                    for ok, q in zip(good, scores["q_value"].values)
                ],
            }
        ),
        phrases=pd.DataFrame(
            said, columns=["voxel", "rank", "phrase", "start", "end", "in_images", "predicted", "percentile", "verdict"]
        ),
        folds=pd.DataFrame([(v, k, text) for v, k, text, _ in rows], columns=["voxel", "fold", "caption"]),
        stability=pd.DataFrame({"voxel": ids[good], "folds": rng.random(good.sum()), "folds_null": 0.3}),
        quality={EVIL if evil else "controls": pd.DataFrame({"weights": [EVIL if evil else "shuffled"], "ρ": [0.01]})},
        settings={EVIL: EVIL} if evil else {"seed": seed},
        provenance={EVIL: EVIL} if evil else {},
        caveats=(EVIL,) if evil else (),
    )


def embedder(seed=0, width=80):
    """Vectors of words: random, those of ``MEANT`` the sum of two; of any other text, one vector."""
    rng = np.random.default_rng(seed)
    table = {w: rng.standard_normal(width) for w in [*NOUNS, *COLOURS]}
    table |= {w: sum(table[x] for x in of) for w, of in MEANT.items()}
    nothing = rng.standard_normal(width)

    def embed_text(texts):
        found = [[table[w] for w in t.split() if w in table] for t in texts]
        return np.stack([np.sum(v, axis=0) if v else nothing for v in found])

    return embed_text


def with_vectors(study, seed=0):
    """The study with weights along its first captions' nouns, as vectors."""
    embed_text, rng = embedder(), np.random.default_rng(seed)
    first = study.captions[study.captions["rank"] == 1]
    nouns = [next(w for w in text.split() if w in NOUNS) for text in first["caption"]]
    weights = embed_text(nouns).T + 2.0 * rng.standard_normal((80, len(first)))
    texts = [*search_vocabulary(study.captions["caption"], n=60), *MEANT, "zebra"]
    found = search_vectors(weights, embed_text, texts)
    named = found.assign_coords(voxel=first["voxel"].to_numpy()[found["voxel"].values])
    return dataclasses.replace(study, vectors=named)
