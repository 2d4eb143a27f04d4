"""Merging of in-context models, and of the trained cores of readout encoders, for a new subject's few trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.incontext._episodes import EpisodeSource, ResponseEpisodes
from neuroenc.encoders.incontext._model import InContextModel
from neuroenc.encoders.incontext._training import Stage, episode_loss
from neuroenc.encoders.merge._merge import Merged, learn_merge

_FEWEST = 6


def merge_incontext(
    base: InContextModel,
    models: Mapping[str, InContextModel],
    source: EpisodeSource | tuple[Any, Any],
    *,
    way: str = "blocks",
    labels: bool = True,
    voxels: int = 32,
    support: tuple[int, int] = (20, 100),
    query: int = 50,
    **settings: Any,
) -> Merged:
    """Merge in-context models that were fine-tuned on other subjects, by a new subject's trials.

    In each step some trials are the support and others the query.

    Parameters
    ----------
    base : InContextModel
    models : mapping of name to InContextModel
        Fine-tuned from ``base``.
    source : EpisodeSource, or (X, Y)
        Features (n, feature) and responses (n, voxel) of the new subject, 20 to 100 trials; or episodes of a probe set.
    way : {"blocks", "model", "position", "soup"}
        See `learn_merge`.
    labels : bool
        Learn from the responses to query trials (squared error). False does not look at them: predictions from one half
        of the support are to correlate with those from the other half, which says less of a model than its error.
    voxels : int
        Of an episode.
    support, query : (int, int) and int
        Trials of an episode, where episodes are given. Of (X, Y) two thirds of the trials are the support.
    **settings
        ``n_steps, lr, penalty, seed`` of `learn_merge`.

    Returns
    -------
    Merged
        Its ``model`` is an `InContextModel`.

    Examples
    --------
    >>> import copy
    >>> from neuroenc.encoders.incontext import make_model
    >>> base = make_model("small", n_features=6, depth=1, dim=16, heads=2)
    >>> tuned = {"a": copy.deepcopy(base), "b": copy.deepcopy(base)}
    >>> rng = np.random.default_rng(0)
    >>> X, Y = rng.standard_normal((30, 6)), rng.standard_normal((30, 4))
    >>> merge_incontext(base, tuned, (X, Y), n_steps=2).coefficients.sizes["model"]
    2
    """
    seed = int(settings.get("seed", 0))
    trials = None
    if isinstance(source, tuple):
        X, Y = (as_numpy(part, "trials").astype(np.float32) for part in source)
        if len(X) != len(Y) or len(X) < _FEWEST:
            raise DataError(f"{len(X)} rows of features and {len(Y)} of responses; at least {_FEWEST} trials of both.")
        source, trials = ResponseEpisodes([(X, Y)]), len(X)
        voxels = min(voxels, Y.shape[1])
    drawn: EpisodeSource = source
    stage = Stage(support=(2, 500), voxels=voxels)

    def loss(model: nn.Module, step: int) -> Tensor:
        assert isinstance(model, InContextModel)
        rng = np.random.default_rng([seed, 23, step])
        # Two thirds of few trials condition the model, the rest judges it.
        n = int(rng.integers(support[0], support[1] + 1)) if trials is None else (2 * trials) // 3
        episode = drawn.draw(rng, voxels, n, query if trials is None else trials - n)
        if labels:
            return episode_loss(model, episode, stage)
        half = n // 2
        both = [model(episode.x[at], episode.y[:, at]).predict(episode.xq) for at in (slice(half), slice(half, None))]
        return 1 - _correlation(*both)

    return learn_merge(base, models, loss, way=way, **settings)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Mean over voxels of the correlation over queries."""
    a, b = (x - x.mean(1, keepdim=True) for x in (a, b))
    return ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).mean()


def merge_cores(
    base: Any, encoders: Mapping[str, Any], X: Any, Y: Any, *, way: str = "blocks", **settings: Any
) -> nn.Module:
    """Merge the trained cores of readout encoders for a new subject's few trials.

    Coefficients and a readout of the new subject are learned together; the core is returned, for
    ``ReadoutEncoder(core=...)``, which trains it on from there (or keeps it, with ``requires_grad_(False)``).

    Parameters
    ----------
    base : ReadoutEncoder
        Fitted with a core, from whose core the others started (``ReadoutEncoder(core=base.model_.core)``).
    encoders : mapping of name to ReadoutEncoder
        Fitted, such as on one subject each.
    X : array (n, C, H, W)
        What the new subject saw.
    Y : array (n, voxel)
        Its responses.
    way : {"blocks", "model", "position", "soup"}
        See `learn_merge`.
    **settings
        ``n_steps, lr, penalty, seed`` of `learn_merge`.

    Returns
    -------
    torch.nn.Module
        The core; its attribute ``merge_coefficients`` is a DataArray (model, block).

    Raises
    ------
    ConfigError
        An encoder without a core.
    """
    one_of("way", way, ("blocks", "model", "position", "soup"))
    for name, encoder in {"base": base, **encoders}.items():
        if getattr(getattr(encoder, "model_", None), "core", None) is None:
            raise ConfigError(
                f"encoder {name!r} has no trained core to merge. Next step: ReadoutEncoder(core=...).fit."
            )
    features, values = base._new(X, None)[0], torch.as_tensor(as_numpy(Y, "responses"), dtype=torch.float32)
    maps = features.rows(torch.arange(len(features))).cpu()
    values = values[:, None] if values.ndim == 1 else values
    if len(maps) != len(values):
        raise DataError(f"{len(maps)} stimuli and {len(values)} rows of responses; they must agree.")
    core = base.model_.core.cpu()
    with torch.no_grad():
        width = core.eval()(maps[:1]).flatten(1).shape[1]
    start = _Read(core, width, values)
    tuned = {name: _Read(encoder.model_.core.cpu(), width, values) for name, encoder in encoders.items()}

    def loss(model: nn.Module, step: int) -> Tensor:
        assert isinstance(model, _Read)
        seen = ~values.isnan()
        return (model(maps) - values.nan_to_num(0.0)).square()[seen].mean() / values[seen].var()

    found = learn_merge(start, tuned, loss, way=way, **settings)
    assert isinstance(found.model, _Read)
    merged: nn.Module = found.model.core
    merged.merge_coefficients = found.coefficients  # type: ignore[assignment]
    return merged


class _Read(nn.Module):
    """A core and, in closed form, leave-one-out ridge predictions of the new subject from its maps."""

    def __init__(self, core: nn.Module, width: int, values: Tensor, share: float = 0.1) -> None:
        super().__init__()
        self.core, self.share = core, share
        self.values = values.nan_to_num(0.0)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.core(x).flatten(1)
        maps = maps - maps.mean(0)
        kernel = maps @ maps.T
        n = len(kernel)
        ridge = self.share * kernel.diagonal().mean()
        hat = torch.linalg.solve(kernel + ridge * torch.eye(n), kernel) + 1 / n
        fitted = hat.T @ self.values
        # What ridge would predict of each trial without it.
        own = hat.diagonal()[:, None].clamp(max=0.999)
        return (fitted - own * self.values) / (1 - own)
