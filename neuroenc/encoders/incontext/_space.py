"""The feature space that a model or a prior belongs to: two of one width are not therefore the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from neuroenc._core.errors import DataError
from neuroenc.encoders._labels import describe_features

__all__ = ["check_space", "feature_space"]

_NAMES = ("backbone", "weights", "layer", "pooling", "normalised")


def feature_space(X: Any) -> dict[str, Any]:
    """What labelled features say about their making; empty where they say nothing.

    >>> from neuroenc.data import make_features
    >>> feature_space(make_features([[1.0]], stimulus=["a"], backbone="clip"))["backbone"]
    'clip'
    """
    found: dict[str, Any] = {k: v for k, v in describe_features(X).get("origin", {}).items() if v != ""}
    return found if found.get("backbone", "unknown") != "unknown" else {}


def check_space(known: Mapping[str, Any], X: Any, what: str) -> None:
    """Refuse features that were made in another way than ``known``, as far as both say how.

    Raises
    ------
    DataError
        Backbone, weights, layer, pooling or normalisation differ; both are named.
    """
    found = feature_space(X)
    for name in _NAMES:
        if name in known and name in found and known[name] != found[name]:
            raise DataError(
                f"features have {name}={found[name]!r}, {what} {known[name]!r}: numbers of one width, of another "
                "meaning. Next step: embed the stimuli in the same way."
            )
