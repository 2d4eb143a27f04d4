"""Caption voxels: from encoder weights to a table of captions, or to a study of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.checks import at_least, check_whole, make_rng, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.provenance import versions
from neuroenc._core.schema import COLUMNS
from neuroenc.captions._bank_pass import BankPass
from neuroenc.captions._linear import Weights, as_weights, select_voxels
from neuroenc.captions._study import CaptionStudy
from neuroenc.captions.checks._gate import gate_voxels
from neuroenc.captions.decoding._retrieval import Decoder
from neuroenc.captions.projection._project import METHODS, project, project_folds, project_weights
from neuroenc.data import Stimuli
from neuroenc.retrieval import EmbeddingBank, as_bank


@dataclass(frozen=True)
class CaptionResult:
    """Result of `caption_voxels`: captions, projections, evidence and gated voxels.

    Attributes
    ----------
    captions : DataFrame
        One row per voxel and rank: ``voxel, rank, caption, score, caption_id, predicted``, voxel
        coordinates, ``evidence`` (ids of the voxel's best images, joined by ";").
    evidence : DataFrame
        ``voxel, rank, stimulus, predicted`` and voxel coordinates.
    projection : Dataset
        Of the captioned voxels; see :func:`neuroenc.captions.project`.
    n_gated : int
        Voxels that got no caption because of the mask.
    gated : tuple
        Their names.
    """

    captions: pd.DataFrame
    evidence: pd.DataFrame
    projection: xr.Dataset
    n_gated: int
    gated: tuple[Any, ...] = ()


def _gate(mask: Any, voxels: xr.DataArray) -> np.ndarray:
    if mask is None:
        return np.ones(voxels.size, dtype=bool)
    values = np.asarray(mask)
    if values.dtype != bool or values.shape != voxels.shape:
        raise DataError(
            f"mask has dtype {values.dtype} and shape {values.shape}; legal: bool of shape {voxels.shape}, True "
            "where a voxel is to be captioned."
        )
    if isinstance(mask, xr.DataArray) and "voxel" in mask.coords and not np.array_equal(mask["voxel"], voxels):
        raise DataError("mask and weights name different voxels or another order. Next step: align them by voxel.")
    return values


def caption_voxels(
    encoder_or_coef: Any,
    bank: Any,
    decoder: Decoder,
    *,
    intercept: Any = None,
    top: int = 5,
    n_evidence: int = 8,
    mask: Any = None,
    temperature: float = 1 / 150,
    renormalise: bool = True,
    decouple: bool = True,
    features_normalised: bool = True,
    projector: Callable[..., xr.Dataset] = project,
    max_memory: str | int | None = None,
    progress: bool = True,
) -> CaptionResult:
    """Caption voxels: project encoder weights onto natural images, decode, and list evidence images.

    Parameters
    ----------
    encoder_or_coef : encoder with ``to_linear()``, pair (coef, intercept), or array (feature, voxel)
    bank : see :func:`neuroenc.retrieval.as_bank`
        Raw image embeddings (n, feature); read once for projection and evidence together. A one-time stream has no
        length to be known in advance, and is refused.
    decoder : Decoder
    intercept : array (voxel,), optional
        Only with a coef array.
    top : int
        Captions a voxel.
    n_evidence : int
        Images a voxel, at most as many as the bank has; 0 for none.
    mask : bool array or DataArray (voxel,), optional
        True where a voxel is captioned; the others (for example not predicted above chance) are gated:
        they get no caption and are named in the result.
    temperature, renormalise, decouple, features_normalised, max_memory, progress
        As in :func:`neuroenc.captions.project`.
    projector : callable
        What is called with the weights, the bank and these settings; :func:`project` is the softmax. Another one
        reads the bank for itself.

    Raises
    ------
    DataError
        A bank that can be read only once, a mask of another shape, or what ``project`` refuses.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.captions import RetrievalDecoder
    >>> bank = np.array([[1.0, 0.1], [0.1, 1.0]])
    >>> decoder = RetrievalDecoder(["a face", "a house"], np.eye(2))
    >>> out = caption_voxels(np.eye(2), bank, decoder, top=1, mask=np.array([True, False]), progress=False)
    >>> out.captions[["voxel", "caption", "evidence"]].values.tolist(), out.n_gated
    ([[0, 'a face', '0;1']], 1)
    """
    if not callable(getattr(decoder, "decode", None)):
        raise ConfigError(
            f"decoder is a {type(decoder).__name__}, which has no decode(). "
            "Next step: RetrievalDecoder(captions, vectors), or load_captioner('photo')."
        )
    weights = as_weights(encoder_or_coef, intercept)
    images = as_bank(bank).again("images are looked up in the bank")
    n_evidence = check_whole("n_evidence", n_evidence, 0)
    passed = _gate(mask, weights.coef["voxel"])
    gated = tuple(weights.coef["voxel"].values[~passed].tolist())
    kept = select_voxels(weights, passed)
    softmax: dict[str, Any] = {"temperature": temperature, "renormalise": renormalise, "decouple": decouple}
    softmax["features_normalised"] = features_normalised
    k = max(1, min(n_evidence, int(images.n or 0)))
    reading = BankPass(images, max_memory=max_memory, progress=progress)
    best = reading.evidence(kept, k=k, features_normalised=features_normalised)
    if projector is project:
        projected = reading.project(kept, **softmax)
    else:
        softmax |= {"max_memory": max_memory, "progress": progress}
        projected = partial(projector, kept.coef, images, intercept=kept.bias, **softmax)
    reading.read()
    found = best().table
    return decoded(kept, decoder, projected(), found if n_evidence else found.iloc[:0], top, gated)


def decoded(
    weights: Weights,
    decoder: Decoder,
    projection: xr.Dataset,
    evidence: pd.DataFrame,
    top: int,
    gated: tuple[Any, ...] = (),
) -> CaptionResult:
    """Captions of voxels whose projection and best images are known."""
    captions = decoder.decode(projection, top, coef=weights.coef, intercept=weights.bias)
    joined: Any = evidence.groupby("voxel", sort=False)["stimulus"].agg(";".join) if len(evidence) else {}
    captions = captions.assign(evidence=[joined.get(v, "") for v in captions["voxel"]])
    return CaptionResult(captions, evidence, projection, len(gated), gated)


def shuffled_control(coef: Any, seed: int = 0) -> xr.DataArray:
    """Control: weights with features permuted within each voxel, whose captions should be at chance.

    Length, values and voxel labels of the weights stay; only which feature each value belongs to is lost.

    Parameters
    ----------
    coef : DataArray or array (feature, voxel), or encoder with ``to_linear()``
    seed : int

    Returns
    -------
    DataArray (feature, voxel)

    Examples
    --------
    >>> import numpy as np
    >>> mixed = shuffled_control(np.arange(8.0).reshape(4, 2), seed=1)
    >>> sorted(mixed.values[:, 0].tolist())
    [0.0, 2.0, 4.0, 6.0]
    """
    weights = as_weights(coef).coef
    values = make_rng(seed).permuted(weights.values, axis=0)
    return weights.copy(data=values)


_SOFTMAX = ("temperature", "renormalise", "decouple", "features_normalised")


class Captioner:
    """What a voxel prefers, in words: its weights, projected onto natural images, decoded, with their evidence.

    Parameters
    ----------
    bank : see :func:`neuroenc.retrieval.as_bank`
        Raw image embeddings (n, feature) of the encoder's backbone.
    decoder : Decoder
        Such as :class:`RetrievalDecoder` or :class:`PrefixDecoder`.
    stimuli : Stimuli, optional
        Images (and captions) of the bank, by id: for the pictures of the report and for grounding.
    embed_text : callable, optional
        ``embed_text(list of str) -> (n, feature)`` in the space of the bank.
    method : str
        "softmax", or another of :func:`neuroenc.captions.project_weights`.
    top : int
        Captions a voxel.
    n_evidence : int
        Images a voxel.
    temperature, renormalise, decouple, features_normalised, max_memory
        As in :func:`neuroenc.captions.project`.
    progress : bool

    Raises
    ------
    DataError
        A bank of one image, with two rows of one name, or whose names are not those of ``stimuli``.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc import Captioner
    >>> from neuroenc.captions import RetrievalDecoder
    >>> bank = np.array([[1.0, 0.1], [0.1, 1.0]])
    >>> captioner = Captioner(bank, RetrievalDecoder(["a face", "a house"], np.eye(2)), top=1, progress=False)
    >>> captioner.caption(np.array([[2.0, 0.0], [0.1, 3.0]])).captions["caption"].tolist()
    ['a face', 'a house']
    """

    def __init__(
        self,
        bank: Any,
        decoder: Decoder,
        *,
        stimuli: Stimuli | None = None,
        embed_text: Callable[[list[str]], Any] | None = None,
        method: str = "softmax",
        top: int = 3,
        n_evidence: int = 8,
        temperature: float = 1 / 150,
        renormalise: bool = True,
        decouple: bool = True,
        features_normalised: bool = True,
        max_memory: str | int | None = None,
        progress: bool = True,
    ) -> None:
        one_of("method of projection", method, METHODS)
        self.bank, self.decoder, self.stimuli = as_bank(bank), decoder, stimuli
        _check_bank(self.bank, stimuli)
        self.embed_text = embed_text
        self.method, self.top = method, check_whole("top", top)
        self.n_evidence = check_whole("n_evidence", n_evidence, 0)
        self.temperature = at_least("temperature", temperature, above=True, also=" (1/150 is usual)")
        self.renormalise, self.decouple = bool(renormalise), bool(decouple)
        self.features_normalised, self.max_memory = bool(features_normalised), max_memory
        self.progress = progress
        self._direction: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"Captioner({self.bank.n} images, {self.decoder!r}, method={self.method!r}, top={self.top})"

    def project(self, coef: Any, part: np.ndarray | None = None, **settings: Any) -> xr.Dataset:
        """Projection of weights onto the bank, or onto part of it.

        Parameters
        ----------
        coef : DataArray (feature, voxel), or encoder with ``to_linear()``
        part : bool array (n,), optional
            Images that count, such as a row of :func:`neuroenc.captions.bank_folds`.
        **settings
            Of :func:`neuroenc.captions.project`, instead of the captioner's own.
        """
        options: dict[str, Any] = {**self._softmax(), "max_memory": self.max_memory, "progress": False, **settings}
        if self.method == "softmax":
            if part is None:
                return project(coef, self.bank, **options)
            return project_folds(coef, self.bank, np.asarray(part)[None], **options).isel(fold=0)
        bank = self.bank
        if part is not None:
            bank = as_bank([(c.rows, c.ids) for c in self.bank.take(np.flatnonzero(part))])
        return project_weights(coef, bank, method=self.method, **options)

    def _softmax(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in _SOFTMAX}

    def asking(self, reading: BankPass) -> Callable[..., Callable[[], xr.Dataset]]:
        """As :meth:`project`, but softmax projections are found by ``reading``; what is given has them afterwards."""

        def ask(coef: Any, part: np.ndarray | None = None, intercept: Any = None) -> Callable[[], xr.Dataset]:
            if self.method == "softmax":
                return reading.project(coef, part, intercept=intercept, **self._softmax())
            return lambda: self.project(coef, part, intercept=intercept)

        return ask

    def image_direction(self) -> np.ndarray:
        """Mean unit-norm image of the bank (feature,): known once something was captioned, else a pass over it."""
        if self._direction is None:
            width = int(self.bank.width or 0)
            self._direction = self.project(np.eye(width, 1))["bank_direction"].values
        return self._direction

    def best(self, coef: Any, part: np.ndarray | None = None) -> list[str]:
        """The best caption of each voxel; "" where it has none (zero weights).

        Parameters
        ----------
        coef : DataArray (feature, voxel)
        part : bool array (n,), optional
            As in :meth:`project`.
        """
        return self.best_of(self.project(as_weights(coef).coef, part))

    def best_of(self, projection: xr.Dataset) -> list[str]:
        """As :meth:`best`, of weights that are projected already."""
        found = self.decoder.decode(projection, 1)
        texts: list[str] = found.set_index("voxel")["caption"].reindex(projection["voxel"].values).fillna("").tolist()
        return texts

    def caption(
        self,
        encoder: Any,
        scores: xr.Dataset | None = None,
        *,
        gate: pd.DataFrame | None = None,
        title: str = "Voxel captions",
        settings: Mapping[str, Any] | None = None,
        caveats: Sequence[str] = (),
        projected: tuple[xr.Dataset, pd.DataFrame] | None = None,
    ) -> CaptionStudy:
        """Captions of the voxels that pass the gate. The bank is read once, for projection and evidence together.

        Parameters
        ----------
        encoder : encoder with ``to_linear()``, pair (coef, intercept), or array (feature, voxel)
        scores : Dataset over ``voxel``, optional
            ``r``, ``q_value``, ... of the encoder's voxels or of some of them, by their names: the study is of these.
            Without it nothing is gated, and the study says so.
        gate : DataFrame, optional
            From :func:`neuroenc.captions.gate_voxels`, of the same voxels, matched by name; by default q below .05, or
            nobody held back where ``scores`` have no ``q_value``.
        title : str
        settings : mapping, optional
            More of what the methods paragraph should know (``encoder``, ``features``, ...).
        caveats : sequence of str
            What a reader must know.
        projected : tuple of (Dataset, DataFrame), optional
            Projection and evidence of just the voxels that pass the gate, where they are known: the bank is then not
            read.

        Raises
        ------
        DataError
            Scores, gate or projections of voxels that the encoder does not have, or a bank of another space.
        """
        weights = as_weights(encoder)
        caveats = list(caveats)
        if scores is None:
            scores = xr.Dataset({"r": ("voxel", np.full(weights.coef.sizes["voxel"], np.nan))})
            scores = scores.assign_coords({k: c for k, c in weights.coef.coords.items() if c.dims == ("voxel",)})
            everyone = pd.DataFrame({"voxel": scores["voxel"].values, "captioned": True, "reason": ""})
            gate = everyone if gate is None else gate
            caveats.append("No accuracy was given: voxels that are not predicted above chance are captioned as well.")
        else:
            weights = _of_voxels(weights, scores)
        if gate is None:
            known = "q_value" in scores
            gate = gate_voxels(scores, "q" if known else "none")
            if not known:
                caveats.append("Scores have no q_value: voxels are captioned whether predicted above chance or not.")
        gate = _gate_of(gate, scores)
        passed = gate["captioned"].to_numpy(dtype=bool)
        if passed.any():
            if projected is not None:
                own = scores["voxel"].values[passed]
                if not np.array_equal(projected[0]["voxel"].values, own):
                    raise DataError(
                        f"the projection is of {projected[0].sizes['voxel']} voxels, which are not the {len(own)} that "
                        "pass the gate, in their order. Next step: project the weights of those voxels."
                    )
                found = decoded(select_voxels(weights, passed), self.decoder, *projected, top=self.top)
            else:
                options = {name: getattr(self, name) for name in ("top", "n_evidence", "max_memory", "progress")}
                if self.method != "softmax":
                    options["projector"] = lambda coef, bank, **settings: self.project(coef, **settings)
                found = caption_voxels(weights, self.bank, self.decoder, mask=passed, **options, **self._softmax())
            captions, evidence = found.captions, found.evidence
            projection = found.projection
            self._direction = projection["bank_direction"].values
            facts = {k: v for k, v in projection.attrs.items() if isinstance(v, (int, float, str))}
            extra = _per_voxel(projection, scores)
        else:
            captions = pd.DataFrame({c: [] for c in COLUMNS["captions"]})
            evidence, facts, extra = pd.DataFrame({c: [] for c in COLUMNS["evidence"]}), {}, {}
        gate = _unprojected(gate, captions, weights.valid())
        # Memory addresses differ from run to run.
        name = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self))
        return CaptionStudy(
            title=title,
            scores=scores.assign(extra),
            captions=captions[captions["caption"].astype(str).str.strip() != ""],
            evidence=evidence,
            gate=gate,
            settings={**self._settings(facts), **(settings or {})},
            provenance={"versions": versions(), "captioner": name, "bank": facts.get("bank_hash", "")},
            caveats=tuple(caveats),
        )

    def _settings(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        search = getattr(self.decoder, "search", None)
        name = type(self.decoder).__name__.removesuffix("Decoder").lower()
        decoder = {"kind": name, **(search.as_dict() if search is not None else {})}
        return {
            "bank": {"n": facts.get("n_images", self.bank.n), "hash": facts.get("bank_hash", "")},
            "projection": {name: getattr(self, name) for name in ("method", *_SOFTMAX[:3])},
            "decoder": decoder,
            "captions": {"top": self.top},
        }


def _check_bank(bank: EmbeddingBank, stimuli: Stimuli | None) -> None:
    """Names of a bank's rows, as far as they are at hand, against each other and those of its pictures."""
    if bank.n == 1:
        raise DataError("a bank of one image cannot tell voxels apart. Next step: hundreds of images, or more.")
    if not bank.reusable:
        return
    shards = bank.shards()
    at_hand = [shard.ids for shard in shards if isinstance(shard.ids, np.ndarray)]
    names = pd.Index(np.concatenate(at_hand)) if at_hand else pd.Index([])
    if not names.is_unique:
        twice = names[names.duplicated()]
        raise DataError(
            f"{len(twice)} rows of the bank have the name of another (first: {twice[0]!r}); evidence could not be "
            "told apart. Next step: as_bank(array, ids=...) with a name for every row."
        )
    if stimuli is None:
        return
    if any(shard.ids is None for shard in shards):
        raise DataError(
            f"the bank's rows have no names, and the pictures of {len(stimuli)} stimuli cannot be matched to them. "
            "Next step: as_bank(array, ids=stimuli.ids), or embeddings as ImageEmbedder gives them."
        )
    if len(names) and not names.isin(np.asarray(stimuli.ids).astype(str)).any():
        raise DataError(
            f"none of the bank's names (first: {names[0]!r}) is among the stimuli's (first: {stimuli.ids[0]!r}). "
            "Next step: pass the stimuli that were embedded."
        )


def _of_voxels(weights: Weights, scores: xr.Dataset) -> Weights:
    """Weights of the voxels that ``scores`` name, in their order."""
    if "voxel" not in scores.coords:
        raise DataError("scores have no voxel names. Next step: scores.assign_coords(voxel=coef.voxel).")
    wanted, have = pd.Index(scores["voxel"].values), pd.Index(weights.coef["voxel"].values)
    if wanted.equals(have):
        return weights
    if not wanted.is_unique:
        raise DataError(f"{len(wanted) - wanted.nunique()} voxels of scores share a name with another.")
    at = have.get_indexer(wanted)
    if (at < 0).any():
        lost = wanted[at < 0]
        raise DataError(
            f"scores name {len(lost)} of {len(wanted)} voxels that the encoder does not have (first: {lost[0]}; its "
            f"voxels: {have[0]} to {have[-1]}). Next step: score the encoder that is captioned."
        )
    return select_voxels(weights, at)


def _gate_of(gate: pd.DataFrame, scores: xr.Dataset) -> pd.DataFrame:
    """The gate's rows in the order of the scores' voxels."""
    wanted = pd.Index(scores["voxel"].values)
    rows = pd.Index(gate["voxel"])
    if rows.equals(wanted):
        return gate
    at = rows.get_indexer(wanted) if rows.is_unique else np.full(len(wanted), -1)
    if (at < 0).any():
        raise DataError(
            f"the gate has no row of its own for {int((at < 0).sum())} of {len(wanted)} voxels of scores (first: "
            f"{wanted[at < 0][0]!r}). Next step: gate_voxels(scores)."
        )
    return gate.iloc[at].reset_index(drop=True)


def _per_voxel(projected: xr.Dataset, scores: xr.Dataset) -> dict[str, Any]:
    """What the projection says of each voxel, NaN for voxels that were held back."""
    at = pd.Index(projected["voxel"].values).get_indexer(scores["voxel"].values)
    names = ("cosine_before_after", "effective_images", "nearest_cosine", "projected_predicted", "distance")
    values = {name: np.where(at >= 0, projected[name].values[at], np.nan) for name in names if name in projected}
    return {name: ("voxel", value.astype(np.float32)) for name, value in values.items()}


def _unprojected(gate: pd.DataFrame, captions: pd.DataFrame, valid: np.ndarray) -> pd.DataFrame:
    """Voxels that passed and still have no caption (zero weights, a decoder that found nothing)."""
    mute = gate["captioned"] & ~gate["voxel"].isin(captions["voxel"])
    if not mute.any():
        return gate
    why = np.where(valid, "no caption was found", "its weights are zero or not finite")
    reason = np.where(mute, why, gate["reason"])
    return gate.assign(captioned=gate["captioned"] & ~mute, reason=reason)
