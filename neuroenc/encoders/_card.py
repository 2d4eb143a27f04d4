"""Model card of a fitted encoder: what its predictions mean, where it comes from, and how good it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError, unknown_name
from neuroenc.data import in_roi, roi_names

#: Kinds of feature spaces (``[features.NAME] kind``) that are made of pictures alone.
_OF_PICTURES = ("image", "pixels", "join")
# Identifiers that hubs know; any other licence is "other", with its name beside it.
_LICENCES = ("apache-2.0", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-4.0", "gpl-3.0", "mit")
_POOR = 0.1


@dataclass(frozen=True)
class EncoderCard:
    """What a stranger must know of a fitted encoder, from which its README is written.

    Attributes
    ----------
    title, subject, dataset : str
    features : mapping of str to mapping
        Recipe of the features: tables ``[features.NAME]`` of a config, by name, as JSON can hold them.
    space : str
        Which of ``features`` the encoder reads; the others are joined by it.
    units : str
        Of responses, ``"z"`` where they were z-scored.
    zscored : {"", "none", "session", "run"}
        Within what each voxel's responses were z-scored.
    pictures : str
        The stimuli of the fit, in words.
    stimuli : tuple of str
        Ids of the stimuli of the fit.
    n_fit, n_test : int
        Rows that the encoder was fitted on, and rows held out for ``scores``.
    split : str
        How rows were held out, in words.
    licence, citation : str
        Of the data.
    notes : tuple of str
        Sentences on the data and the fit.
    limits : tuple of str
        Sentences on what it is not good for, beside those that every card has.
    scores : Dataset over voxel, optional
        ``r`` (held-out Pearson correlation), and where they are known ``r2``, ``noise_ceiling_r`` and others; float.

    Examples
    --------
    >>> EncoderCard(units="z", zscored="session").meaning[:66]
    'Responses were z-scored within session: 0 is the mean of a voxel, '
    """

    title: str = ""
    subject: str = ""
    dataset: str = ""
    features: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    space: str = ""
    units: str = ""
    zscored: str = ""
    pictures: str = ""
    stimuli: tuple[str, ...] = ()
    n_fit: int = 0
    n_test: int = 0
    split: str = ""
    licence: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    scores: xr.Dataset | None = None

    @property
    def meaning(self) -> str:
        """What a predicted value means, in a sentence."""
        if self.zscored in ("session", "run"):
            return (
                f"Responses were z-scored within {self.zscored}: 0 is the mean of a voxel, and 1 one standard "
                f"deviation of this voxel's single responses over the presentations of a {self.zscored}."
            )
        if self.units == "z":
            return "Responses were z-scored: 0 is the mean of a voxel over the data, and 1 one standard deviation."
        if self.units:
            return f"Values are in the units of the measured responses: {self.units}."
        return "Values are in the units of the responses that it was fitted on, which did not name them."

    @property
    def reads_pictures(self) -> bool:
        """Whether the recipe leads from pictures to features."""
        kinds = {str(table.get("kind", "image")) for table in self.features.values()}
        return bool(kinds) and kinds <= set(_OF_PICTURES)

    def regions(self) -> pd.DataFrame:
        """Held-out accuracy of regions: ``roi, n_voxels, median_r, low, high, ceiling``; empty without scores.

        ``low`` and ``high`` are the 5 and 95 % quantiles of r over the region's voxels, ``ceiling`` the median noise
        ceiling in units of correlation. A voxel of several regions counts in each; the last row is all voxels.
        """
        columns = ["roi", "n_voxels", "median_r", "low", "high", "ceiling"]
        if self.scores is None or "r" not in self.scores:
            return pd.DataFrame(columns=columns)
        names = roi_names(self.scores) if "roi" in self.scores.coords else []
        masks = {name: in_roi(self.scores, name) for name in names}
        masks["all voxels"] = np.ones(self.scores.sizes["voxel"], dtype=bool)
        r = self.scores["r"].values.astype(np.float64)
        known = "noise_ceiling_r" in self.scores
        ceiling = self.scores["noise_ceiling_r"].values.astype(np.float64) if known else np.full(len(r), np.nan)
        rows = []
        for name, mask in masks.items():
            found, above = r[mask & np.isfinite(r)], ceiling[mask & np.isfinite(ceiling)]
            low, middle, high = np.quantile(found, [0.05, 0.5, 0.95]) if len(found) else [np.nan] * 3
            rows.append((name, int(mask.sum()), middle, low, high, np.median(above) if len(above) else np.nan))
        return pd.DataFrame(rows, columns=columns)

    def pack(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The card as JSON can hold it, and its scores (voxel,) by name."""
        scores = {} if self.scores is None else {str(k): v for k, v in self.scores.data_vars.items()}
        arrays = {k: v.values.astype(np.float32) for k, v in scores.items() if v.dims == ("voxel",)}
        plain = asdict(EncoderCard(**{f.name: getattr(self, f.name) for f in fields(self) if f.name != "scores"}))
        plain["scores"] = {k: {a: _plain(x) for a, x in scores[k].attrs.items()} for k in arrays}
        return plain, arrays

    @classmethod
    def unpack(cls, plain: Mapping[str, Any], arrays: Mapping[str, np.ndarray], voxels: Mapping[str, Any]) -> Self:
        """Undo `pack`; fields that a later version added are passed over."""
        legal = {f.name for f in fields(cls)} - {"scores"}
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items() if k in legal}
        about = plain.get("scores") or {}
        table = {k: ("voxel", v, about.get(k, {})) for k, v in arrays.items()}
        return cls(**known, scores=xr.Dataset(table, coords=dict(voxels)) if table else None)


def _plain(value: Any) -> Any:
    plain = value.item() if isinstance(value, np.generic) else value
    return plain if isinstance(plain, (str, int, float)) else str(plain)


def _limits(card: EncoderCard, reads_pictures: bool) -> list[str]:
    """What every encoder is not good for, with its own figures."""
    found = list(card.limits)
    if card.scores is not None and "r" in card.scores:
        r = card.scores["r"].values
        poor = int((~(r >= _POOR)).sum())
        if poor:
            found.append(
                f"{poor} of {len(r)} voxels are predicted with r below {_POOR:g}, or not at all: what it says of these "
                "is no evidence."
            )
    kind = "pictures" if reads_pictures else "stimuli"
    found.append(
        f"{kind.capitalize()} unlike those of the fit (another style, size, task): nothing tells how good it is."
    )
    found.append("Claims about other people: the voxels of two brains do not correspond one to one.")
    found.append(f"Testing ideas on the {kind} of the fit: it has seen their responses.")
    return found


def render_card(encoder: Any, card: EncoderCard) -> str:
    """README of a fitted encoder: YAML that hubs read, then Markdown for people."""
    origin = dict(encoder._features_.get("origin", {}))
    table = card.regions().round(2).astype(object)
    voxels = encoder._voxels_ or {}
    unlabelled = encoder.columns_ if hasattr(encoder, "columns_") else encoder.intercept_
    n_voxels = len(next(iter(voxels.values()))[1]) if voxels else np.size(unlabelled)
    licence = card.licence.strip().lower().replace(" ", "-")
    recipe = "; ".join(_words(settings) for settings in card.features.values())
    made = ", ".join(f"{k} {v}" for k, v in origin.items() if k in ("backbone", "layer") and str(v))
    tested = ""
    if card.n_test:
        how = f" ({card.split})" if card.split else ""
        tested = f"{card.n_test} held-out responses{how} were predicted by encoders that were fitted without them."
    kind = type(encoder).__name__
    return (
        _environment()
        .get_template("card.md.j2")
        .render(  # type: ignore[no-any-return]
            card=card,
            kind=kind,
            title=card.title or f"{kind} of {n_voxels} voxels",
            origin=origin,
            space=", ".join(_places(encoder)),
            features=recipe or made or f"{encoder.n_features_in_} numbers of unknown making",
            licence_id=licence if licence in _LICENCES else "other",
            n_features=int(encoder.n_features_in_),
            n_voxels=n_voxels,
            regions=table.where(table.notna(), "-").to_dict("records"),
            tested=tested,
            reads_pictures=card.reads_pictures,
            limits=_limits(card, card.reads_pictures),
            version=json.loads(encoder.provenance_)["versions"]["neuroenc"],
        )
    )


def _places(encoder: Any) -> list[str]:
    """What says where a voxel lies."""
    known = encoder._voxels_ or {}
    found = [f"space {encoder._space_['space']}"] if encoder._space_.get("space") else []
    found += ["vertex and hemisphere"] if {"vertex", "hemi"} <= set(known) else []
    return [*found, *(["indices i, j, k of a volume"] if {"i", "j", "k"} <= set(known) else [])]


def _words(settings: Mapping[str, Any]) -> str:
    """A feature space in words: what of which model, and every setting that is not as usual."""
    kept = {k: v for k, v in settings.items() if v not in ("", [], {}, None) and k != "standardise"}
    what = {"image": "the picture", "captions": "captions"}.get(str(kept.pop("kind", "image")), "")
    model, layer = kept.pop("model", ""), kept.pop("layer", "")
    begin = f"{layer or 'the final vector'} of {model}" + (f", of {what}" if what else "") if model else ""
    unit = ["at unit length"] if kept.pop("normalise", False) else []
    rest = [*unit, *(f"{k} {v}" for k, v in kept.items())]
    return ", ".join([*([begin] if begin else []), *rest])


def _one_line(value: Any) -> str:
    """A text as one line of Markdown that is nothing but text."""
    text = " ".join(str(value).split())
    for mark in "\\`|<[*_":
        text = text.replace(mark, "\\" + mark) if mark != "<" else text.replace("<", "&lt;")
    return text


@lru_cache(maxsize=1)
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("neuroenc.encoders", "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    # JSON texts are YAML texts.
    made.filters |= {"plain": _one_line, "json": lambda x: json.dumps(str(x), ensure_ascii=False)}
    return made


def check_card(card: Any, voxels: Mapping[str, Any] | None) -> EncoderCard:
    """``card`` as one that goes with the voxels of an encoder."""
    if isinstance(card, Mapping):
        legal = {f.name for f in fields(EncoderCard)}
        strange = sorted(set(card) - legal)
        if strange:
            raise DataError(unknown_name("field of a card", strange[0], sorted(legal)))
        card = EncoderCard(**card)
    if not isinstance(card, EncoderCard):
        raise DataError(f"card is a {type(card).__name__}; legal is an EncoderCard or a mapping of its fields.")
    if card.features and card.space and card.space not in card.features:
        raise DataError(unknown_name("feature space of the card", card.space, card.features))
    if card.scores is not None:
        if voxels is None or "voxel" not in voxels:
            raise DataError(
                "card.scores are of labelled voxels, and the encoder was fitted on unlabelled responses. "
                "Next step: fit it on neuroenc.data.make_responses(...)."
            )
        want = np.asarray(voxels["voxel"][1])
        missing = want[~np.isin(want, card.scores["voxel"].values)]
        if len(missing) or card.scores.sizes["voxel"] != len(want):
            raise DataError(
                f"card.scores have {card.scores.sizes['voxel']} voxels, the encoder {len(want)}; {len(missing)} of "
                f"these are missing. Next step: scores of the encoder's voxels."
            )
        scores = card.scores.sel(voxel=want)
        kept = {str(k): ("voxel", v.values, v.attrs) for k, v in scores.data_vars.items() if v.dims == ("voxel",)}
        card = replace(card, scores=xr.Dataset(kept, coords=dict(voxels)))
    return card
