"""Posterior variance of noiseless responses and of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from neuroenc.encoders.incontext._condition import conditioned_blocks
from neuroenc.encoders.incontext._encoder import InContextEncoder

__all__ = ["clean_variance"]


def clean_variance(encoder: Any, query: np.ndarray | None) -> np.ndarray | None:
    """Variance of noiseless responses (n, voxel), or of weights (feature, voxel); None where there is none."""
    if not isinstance(encoder, InContextEncoder) or encoder._conditioned().anchor is None:
        return None
    support, Y, log_weight, scale = encoder._support_
    place = encoder._place()
    out = np.empty((support.shape[1] if query is None else len(query), Y.shape[1]))
    images = None if query is None else torch.as_tensor(query, device=place["device"])
    x = support.astype(np.float32)
    for columns, found in conditioned_blocks(
        encoder._conditioned(),
        x,
        Y,
        log_weight=log_weight,
        scale=scale,
        pooled=encoder._pooled_,
        covariance=True,
        **place,
    ):
        assert found.covariance is not None
        assert found.noise is not None
        if images is None:
            part = found.covariance.diagonal(dim1=1, dim2=2)[:, :-1]
        else:
            part = found.variance(images) - found.noise[:, None]
        out[:, columns] = part.clamp_min(0).T.cpu().numpy()
    return out if scale is None else out * scale[1] ** 2
