"""What training of an in-context model minimises."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from neuroenc._core.errors import ConfigError
from neuroenc.encoders.incontext._episodes import Episode
from neuroenc.encoders.incontext._model import InContextModel, VoxelWeights
from neuroenc.encoders.incontext._stages import Stage

__all__ = ["episode_loss", "explained_variance"]


def episode_loss(model: InContextModel, episode: Episode, stage: Stage) -> Tensor:
    r"""Loss of an episode, averaged over voxels and query trials that were seen.

    .. math:: \overline{(\hat y_q - y_q)^2}, \quad\text{or}\quad
              1 - \cos(\hat w, w) + \lambda\,\overline{(\hat y_q - y_q)^2}, \quad\text{or}\quad
              \overline{\tfrac12 \ln 2\pi v_q + (\hat y_q - y_q)^2 / 2 v_q}
    """
    likely = stage.loss == "likelihood"
    found = model(episode.x, episode.y, covariance=likely)
    seen = ~episode.yq.isnan()
    target = episode.yq.nan_to_num(0.0)
    error = (found.predict(episode.xq) - target).square()[seen]
    if likely:
        variance = found.variance(episode.xq)[seen]
        return 0.5 * (math.log(2 * math.pi) + variance.log() + error / variance).mean()
    if stage.loss == "response":
        return error.mean()
    if episode.weights is None:
        raise ConfigError(
            "loss='weights' needs the true weights of every voxel. Next step: ResponseEpisodes(..., weights=...), or "
            "loss='response'."
        )
    cosine = F.cosine_similarity(found.coef, episode.weights[:, :-1], dim=1)
    return (1 - cosine).mean() + stage.response_weight * error.mean()


def explained_variance(found: VoxelWeights, episode: Episode) -> Tensor:
    """1 - Var(error) / Var(response) of each voxel (voxel,), over query trials that were seen."""
    seen = ~episode.yq.isnan()
    error = torch.where(seen, found.predict(episode.xq) - episode.yq.nan_to_num(0.0), 0.0)
    target = episode.yq.nan_to_num(0.0)
    return 1 - _variance(error, seen) / _variance(target, seen).clamp_min(1e-12)


def _variance(values: Tensor, seen: Tensor) -> Tensor:
    n = seen.sum(1).clamp_min(1)
    mean = (values * seen).sum(1) / n
    return (((values - mean[:, None]) * seen).square()).sum(1) / n
