"""Methods paragraph of a caption study, generated from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

_REFERENCES = {
    "brainscuba": "Luo, Henderson, Tarr & Wehbe (2024) BrainSCUBA, ICLR",
    "clip": "Radford et al. (2021) CLIP, ICML",
    "clipcap": "Mokady, Hertz & Bermano (2021) ClipCap, arXiv:2111.09734",
    "lavca": "Matsuyama, Nishimoto & Takagi (2026) LaVCa, ICLR",
    "fdr": "Benjamini & Hochberg (1995) J R Stat Soc B 57:289-300",
    "ncsnr": "Allen et al. (2022) Nat Neurosci 25:116-126",
    "ridge": "Hoerl & Kennard (1970) Technometrics 12:55-67",
}


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


def _sentences(study: Any, cited: set[str]) -> list[str]:
    settings, scores = study.settings, study.scores
    out: list[str] = []
    features, encoder = _Part(settings, "features"), _Part(settings, "encoder")
    if features.there:
        name = features.take("model", "backbone", "name", "")
        cited.add("clip")
        out.append(f"Stimuli were embedded with {name or 'an image model'}{features.rest()}.")
    if encoder.there:
        kind = encoder.take("kind", "name", "type", "") or "a linear encoder"
        if "ridge" in kind.lower():
            cited.add("ridge")
            kind += " regression" if "regression" not in kind.lower() else ""
        out.append(f"Responses of each voxel were predicted from the embeddings by {kind}{encoder.rest()}.")
    folds = _Part(settings, "folds")
    if folds.there:
        number = folds.take("n", "n_splits", "number", "")
        out.append(f"Cross-validation used {number or 'several'} folds{folds.rest()}.")
    n, n_captioned = scores.sizes["voxel"], int(study.gate["captioned"].sum())
    metric = str(scores["r"].attrs.get("n_stimuli", "")).strip()
    shown = f" on {metric} held-out stimuli" if metric else " on held-out stimuli"
    ceiling = ""
    if "noise_ceiling_r" in scores or "noise_ceiling_r2" in scores:
        cited.add("ncsnr")
        ceiling = ", beside the noise ceiling estimated from repeated presentations"
    out.append(f"Accuracy is Pearson's r between measured and predicted responses{shown}{ceiling}.")
    gate = _Part(settings, "gate")
    gated, level = gate.take("kind", "gate", ""), gate.take("q", "alpha", "level")
    rule = ""
    if level is not None:
        cited.add("fdr")
        rule = f", those predicted above chance at a false discovery rate of {level}"
    elif gated not in (None, "none"):
        rule = f", by the gate {gated}"
    out.append(f"{n_captioned:,} of {n:,} voxels were captioned{rule}{gate.rest()}.")
    bank, projection = _Part(settings, "bank"), _Part(settings, "projection")
    if bank.there or projection.there:
        cited.add("brainscuba")
        size, name = bank.take("n", "size", "n_images"), bank.take("name", "dataset", "")
        digest = bank.take("hash", "sha256", "content_hash")
        what = f"{size} natural-image embeddings" if size else "natural-image embeddings"
        about = [x for x in (name, f"SHA-256 {digest[:12]}" if digest else "") if x]
        what += f" ({', '.join(about)})" if about else ""
        temperature = projection.take("temperature")
        at = f" with softmax temperature {temperature}" if temperature else ""
        out.append(
            f"Each voxel's unit-norm weight vector was projected onto {what}{bank.rest()} by attention{at}"
            f"{projection.rest()}."
        )
    decoder = _Part(settings, "decoder")
    captions = _Part(settings, "captions")
    if decoder.there:
        kind = decoder.take("kind", "name", "") or "a decoder"
        if kind == "prefix":
            cited.add("clipcap")
            kind = "a language model with the projected weights as its prefix"
        elif kind == "retrieval":
            kind = "retrieving the nearest captions of a caption bank"
        out.append(f"Captions were produced by {kind}{decoder.rest()}{captions.rest()}.")
    grounding = _Part(settings, "grounding")
    if study.phrases is not None or grounding.there:
        out.append(
            "Every phrase of a caption was checked against the voxel's most effective images and against the response "
            f"predicted for the phrase's own text embedding, beside matched random phrases{grounding.rest()}."
        )
    if study.stability is not None:
        part = _Part(settings, "stability")
        kinds = [
            c
            for c in study.stability.columns
            if c != "voxel" and not str(c).endswith("_null") and f"{c}_null" in study.stability.columns
        ]
        over = f" over {_join(kinds)}" if kinds else ""
        part.take("n_voxels"), part.take("of_voxels")
        n_stable, on = study.stability["voxel"].nunique(), ""
        if n_stable < n_captioned:
            of = f"{n_stable:,} of {n_captioned:,} captioned voxels"
            on = f", measured on {of} (a random sample, stratified by region)"
        out.append(
            f"Stability is the mean pairwise cosine of a voxel's caption vectors{over}, beside that of shuffled voxels"
            f"{on}{part.rest()}."
        )
    if study.sentence is not None:
        cited.add("lavca")
        part = _Part(settings, "sentence")
        out.append(
            "The sentence-level score is Spearman's correlation, over held-out stimuli, of measured responses with the "
            "cosine between a voxel's caption and the stimulus' captions; nulls give each voxel the caption of another "
            f"voxel, anywhere or within its region{part.rest()}."
        )
    seed = settings.get("seed")
    if seed is not None:
        out.append(f"Random choices used seed {_said(seed)}.")
    return out


def _join(items: list[Any]) -> str:
    names = [str(x) for x in items]
    return ", ".join(names[:-1]) + (" and " if len(names) > 1 else "") + names[-1] if names else ""


def methods_text(study: Any) -> str:
    """See `CaptionStudy.methods`."""
    from neuroenc._core.provenance import versions

    cited: set[str] = set()
    lines = _sentences(study, cited)
    kept = study.provenance.get("versions")
    found = kept if isinstance(kept, Mapping) else versions()
    lines.append("Software: " + ", ".join(f"{k} {v}" for k, v in found.items()) + ".")
    text = " ".join(lines)
    if cited:
        text += "\n\nReferences: " + "; ".join(_REFERENCES[k] for k in sorted(cited)) + "."
    return text + "\n"
