"""The data model: every name that describes responses, features and stimuli."""

from __future__ import annotations

from neuroenc.data._align import align, in_roi, match, roi_names
from neuroenc.data._build import make_features, make_responses
from neuroenc.data._stimuli import EncodingData, Stimuli
from neuroenc.data._validate import validate, validate_features, validate_responses

__all__ = [
    "EncodingData",
    "Stimuli",
    "align",
    "in_roi",
    "make_features",
    "make_responses",
    "match",
    "roi_names",
    "validate",
    "validate_features",
    "validate_responses",
]
