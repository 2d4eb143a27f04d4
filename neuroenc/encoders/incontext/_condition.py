"""Inference of in-context models over many voxels in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.progress import progress as bar
from neuroenc.attention import Past
from neuroenc.encoders._labels import column_block, seen_patterns, voxel_groups
from neuroenc.encoders.incontext._anchor import gaussian_grid, grid_points
from neuroenc.encoders.incontext._model import InContextModel, VoxelWeights, complete


def read_register(
    model: InContextModel, x: Tensor, y: Tensor, log_weight: Tensor | None = None, *, half: bool = False
) -> Tensor:
    """First register (voxel, dim) of voxels' supports; ``half`` multiplies matrices in bfloat16."""
    y, log_weight = complete(x, y, log_weight)
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=half):
        return model.read(x, y, log_weight)[0][:, 0]


# More patterns of missing responses than this are dealt with by masking instead of one by one.
_MAX_GROUPS = 16
_LARGEST = 256


def voxels_at_once(
    model: InContextModel,
    support: int,
    max_bytes: int,
    *,
    half: bool = False,
    covariance: bool = False,
    masked: bool = False,
) -> int:
    """Voxels whose working memory fits in ``max_bytes``; ``masked`` voxels weigh trials each for itself."""
    c, e = model.config, model.config.n_features + 1
    own = c.components * (9 * 12 + 4 * e) * 8 if c.form != "published" else 0
    own += e * 12 if c.memory == "titans" else 0
    if covariance:
        own += (3 * 9 * 12 + 6 * e) * e * 8
    if model.solves_alone:
        # No tokens: responses and their weights. Every block pays for the components' eigendecompositions.
        each, largest = support * (32 + 16 * e * masked), 4 * _LARGEST
    else:
        per_token = 3 * c.hidden + 8 * c.dim + 3 * e + 2 * c.dim
        each, largest = (support + c.registers) * per_token * (2 if half else 4) * (4 if masked else 1), _LARGEST
    return int(max(1, min(largest, max_bytes // max(1, each + own))))


def missing_groups(seen: np.ndarray) -> list[tuple[np.ndarray | None, np.ndarray]]:
    """(rows that were seen, voxels) of each pattern of ``seen`` (support, voxel); rows None for the masked path."""
    groups = seen_patterns(seen)
    return list(groups) if len(groups) <= _MAX_GROUPS else [(None, np.arange(seen.shape[1]))]


def conditioned_blocks(
    model: InContextModel,
    x: np.ndarray,
    Y: Any,
    *,
    log_weight: np.ndarray | None = None,
    scale: Any = None,
    device: torch.device,
    half: bool = False,
    max_bytes: int = 2**28,
    covariance: bool = False,
    show: bool = False,
    registers: Tensor | None = None,
    pooled: Tensor | None = None,
) -> Iterator[tuple[np.ndarray, VoxelWeights]]:
    """Columns of voxels and their weights, block by block; ``scale`` = (mean, sd) (voxel,) taken off responses first.

    ``Y`` (support, voxel) is read block by block; NaN is a missing response. ``registers`` (voxel, dim) are those of a
    pass before this one, ``pooled`` the prior that it led to.
    """
    model = model.to(device).eval()
    images = torch.as_tensor(x, dtype=torch.float32, device=device)
    weight = None if log_weight is None else torch.as_tensor(log_weight, dtype=torch.float32, device=device)
    n_voxels = Y.shape[1]
    size, masked = (
        voxels_at_once(model, len(x), max_bytes, half=half, covariance=covariance, masked=m) for m in (False, True)
    )
    wide = max(size, 1024)
    with torch.inference_mode(), bar(total=n_voxels, desc="in context", show=show) as line:
        for start in range(0, n_voxels, wide):
            block = np.asarray(column_block(Y, slice(start, start + wide)), dtype=np.float32)
            if scale is not None:
                block = (block - scale[0][start : start + wide]) / scale[1][start : start + wide]
                block = block.astype(np.float32)
            seen = ~np.isnan(block)
            # Where the place of a trial matters, leaving rows out would move the others.
            whole = model.is_set or seen.all()
            for rows, columns in missing_groups(seen) if whole else [(None, np.arange(seen.shape[1]))]:
                step = masked if rows is None else size
                for first in range(0, len(columns), step):
                    part = columns[first : first + step]
                    y = torch.as_tensor(block[:, part].T.copy(), device=device)
                    few, less = images, weight
                    if rows is not None and len(rows) < len(block):
                        kept = torch.as_tensor(rows, device=device)
                        few, y, less = images[kept], y[:, kept], None if weight is None else weight[kept]
                    if registers is None:
                        z = read_register(model, few, y, less, half=half)
                    else:
                        z = registers[torch.as_tensor(start + part, device=device)]
                    y, less = complete(few, y, less)
                    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
                        found = model.write(z, few, y, less, pooled=pooled, covariance=covariance)
                    line.update(len(part))
                    yield start + part, found


def asked_blocks(
    model: InContextModel,
    x: np.ndarray,
    Y: Any,
    queries: np.ndarray,
    *,
    log_weight: np.ndarray | None,
    scale: Any,
    device: torch.device,
    half: bool,
    max_bytes: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Columns of voxels, and what queries (query, feature) find in their supports (query, voxel), block by block.

    Model of the query form; arguments as in `conditioned_blocks`, answers in the units of ``Y``.
    """
    model = model.to(device).eval()
    images = torch.as_tensor(x, dtype=torch.float32, device=device)
    asked = torch.as_tensor(queries, dtype=torch.float32, device=device)
    weight = None if log_weight is None else torch.as_tensor(log_weight, dtype=torch.float32, device=device)
    few = 512  # queries at once
    held = len(x) * (1 + model.config.depth) + min(few, len(queries))
    step = voxels_at_once(model, held, max_bytes, half=half)
    n_voxels = Y.shape[1]
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
        for start in range(0, n_voxels, step):
            columns = np.arange(start, min(n_voxels, start + step))
            block = np.asarray(column_block(Y, slice(start, start + step)), dtype=np.float32)
            if scale is not None:
                block = ((block - scale[0][columns]) / scale[1][columns]).astype(np.float32)
            y, less = complete(images, torch.as_tensor(block.T.copy(), device=device), weight)
            past: list[Past] = []
            model.read(images, y, less, past=past)
            answer = _numpy(torch.cat([model.ask(part, past) for part in asked.split(few)], dim=1)).T
            yield columns, answer if scale is None else answer * scale[1][columns]


def routes_of(model: InContextModel, expert: str | None, y: Any, n: int) -> list[tuple[InContextModel, np.ndarray]]:
    """Dense models and the voxels (columns) that each reads: the experts of their groups, or the model itself.

    ``expert`` names one for all ``n`` voxels, or the coordinate of the responses ``y`` that names each voxel's.
    """
    names, every = model.config.experts, np.arange(n)
    if not names:
        if expert is not None:
            raise ConfigError(f"expert={expert!r}, and this model has none. Next step: leave it out.")
        return [(model, every)]
    if expert is None:
        raise ConfigError(
            f"this model has an expert for each of {', '.join(names)}. Next step: expert=NAME for all voxels, "
            "the coordinate of labelled responses that names each voxel's, such as expert='roi', or model.expert(NAME)."
        )
    if expert in names:
        return [(model.expert(expert), every)]
    try:
        groups = voxel_groups(y, expert)
    except ConfigError as error:
        raise ConfigError(f"expert={expert!r} is no expert ({', '.join(names)}) either: {error}") from error
    lost = groups[~np.isin(groups, names)]
    if len(lost):
        step = "Next step: leave those voxels out, or name an expert for them with expert=NAME."
        raise DataError(f"{len(lost)} of {n} voxels: " + unknown_name("expert", lost[0], names, step))
    return [(model.expert(name), np.flatnonzero(groups == name)) for name in names if name in groups]


class VoxelPart:
    """Some voxels (``columns``, ascending) of responses (support, voxel), read in blocks."""

    def __init__(self, whole: Any, columns: np.ndarray) -> None:
        self.whole, self.columns, self.shape, self.ndim = whole, columns, (whole.shape[0], len(columns)), 2

    def __getitem__(self, key: Any) -> np.ndarray:
        wanted, parts = self.columns[key[1]], []
        for start in range(0, self.whole.shape[1], 4096):
            inside = wanted[(wanted >= start) & (wanted < start + 4096)] - start
            if inside.size or not start:
                parts.append(column_block(self.whole, slice(start, start + 4096))[:, inside])
        return np.concatenate(parts, axis=1)


def voxel_share(Y: Any, columns: np.ndarray, scale: Any) -> tuple[Any, Any]:
    """Responses of some voxels, and their scale; all of them as they are."""
    if len(columns) == Y.shape[1]:
        return Y, scale
    return VoxelPart(Y, columns), None if scale is None else (scale[0][columns], scale[1][columns])


def condition(model: InContextModel, x: np.ndarray, Y: Any, **settings: Any) -> dict[str, np.ndarray]:
    """``coef`` (feature, voxel), ``intercept`` (voxel,) and ``noise`` (voxel,) (NaN without an anchor)."""
    n = Y.shape[1]
    coef = np.empty((x.shape[1], n), dtype=np.float32)
    intercept, noise = np.empty(n, dtype=np.float32), np.full(n, np.nan, dtype=np.float32)
    for columns, found in conditioned_blocks(model, x, Y, **settings):
        coef[:, columns] = _numpy(found.coef).T
        intercept[columns] = _numpy(found.intercept)
        if found.noise is not None:
            noise[columns] = _numpy(found.noise)
    return {"coef": coef, "intercept": intercept, "noise": noise}


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


# Few: stopped early, the prior stays smooth. Chosen on subjects of the shipped model's training worlds.
_ITERATIONS = 3
# The learned prior counts as much as this many voxels.
_STRENGTH = 5.0
#: Voxels that say what others are like, and trials whose noise can be told apart.
FEWEST_VOXELS, FEWEST_TRIALS = 20, 10
_NARROWEST = 0.05  # standard deviation of a logarithm


def pooled_prior(log_posterior: Tensor, log_prior: Tensor, *, n_iterations: int = _ITERATIONS) -> Tensor:
    r"""Logarithm of a prior over components, signal and noise, by expectation maximisation over voxels.

    .. math:: \pi_{k s \sigma} = \pi_k\, N(\ln s, \ln \sigma^2; m, S), \qquad
              \pi_k \leftarrow \frac{c\,\pi^0_k + \sum_v p_{vk}}{c + V}

    and :math:`m, S` likewise from :math:`p_v`, the learned prior counting as :math:`c` voxels. Few trials of one voxel
    say little about its noise level or its kind; those of all voxels of a subject together say a lot. Iterations stop
    early, which keeps the prior smooth.

    Parameters
    ----------
    log_posterior : Tensor (voxel, component, signal, noise)
        Under the learned prior; see `ClosedFormAnchor.log_posterior`.
    log_prior : Tensor (component, signal, noise)
        The learned prior, not normalised.

    Returns
    -------
    Tensor (component, signal, noise)
        Normalised.

    Examples
    --------
    >>> import torch
    >>> evidence = torch.zeros(500, 2, 9, 12)
    >>> evidence[:, 1] = 3.0
    >>> found = pooled_prior(evidence, torch.zeros(2, 9, 12)).exp()
    >>> bool(found[1].sum() > 0.95), round(float(found.sum()), 6)
    (True, 1.0)
    """
    points = grid_points().to(log_prior.device).flatten(0, 1)
    prior = log_prior.double().flatten(1)
    likelihood = log_posterior.double().flatten(2) - prior
    start = prior.flatten().softmax(0).view_as(prior)
    share0, level0 = start.sum(1), start.sum(0)
    mean0 = level0 @ points
    around0 = points - mean0
    cov0 = (around0 * level0[:, None]).T @ around0
    share, mean, cov = share0, mean0, cov0
    floor = _NARROWEST**2 * torch.eye(2, dtype=cov.dtype, device=cov.device)
    for _ in range(n_iterations):
        current = share.log()[:, None] + gaussian_grid(mean, cov).flatten()
        p = (likelihood + current).flatten(1).softmax(1).view_as(likelihood)
        total = len(p) + _STRENGTH
        share = (_STRENGTH * share0 + p.sum((0, 2))) / total
        level = p.sum((0, 1))
        mean = (level @ points + _STRENGTH * mean0) / total
        around = points - mean
        drift = torch.outer(mean0 - mean, mean0 - mean)
        cov = ((around * level[:, None]).T @ around + _STRENGTH * (cov0 + drift)) / total + floor
    return (share.log()[:, None] + gaussian_grid(mean, cov).flatten()).view_as(log_prior)


def voxel_posteriors(
    model: InContextModel, x: Tensor, Y: np.ndarray, log_weight: Tensor | None, *, size: int, half: bool
) -> tuple[Tensor, Tensor]:
    """``ClosedFormAnchor.log_posterior`` and first registers of the voxels of ``Y`` (support, voxel).

    ``size`` voxels are read at a time.
    """
    assert model.anchor is not None
    scores, registers = [], []
    with torch.inference_mode():
        for part in torch.as_tensor(Y.T.copy(), dtype=torch.float32, device=x.device).split(size):
            z = read_register(model, x, part, log_weight, half=half)
            y, weight = complete(x, part, log_weight)
            scores.append(model.anchor.log_posterior(z, model.anchor.moments(x, y, weight)))
            registers.append(z.float())
    return torch.cat(scores), torch.cat(registers)
