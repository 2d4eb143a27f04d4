"""Patch maps: which part of a picture drives a voxel, a region or a phrase."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.nn import functional

from neuroenc._core.arrays import as_numpy
from neuroenc._core.checks import at_least, check_whole, make_rng
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders._labels import sample_coords
from neuroenc.encoders.readout._encoder import FittedReadout
from neuroenc.encoders.readout._linear import LinearReadout
from neuroenc.encoders.readout._maps import MapArray, as_maps, map_moments


def patch_map(
    encoder: Any, tokens: Any, *, context: Any = None, upsampler: PatchUpsampler | None = None
) -> xr.DataArray:
    r"""Patch map: what each place of a picture adds to a voxel's predicted response.

    .. math:: M_{nv}[p] = \sum_c w_{vc[p]}\, x_{nc}[p]

    A weight vector as wide as a token meets every token (the encoder was fitted on their mean, or on an embedding in
    the same space): the map's mean is the prediction less the intercept. An encoder fitted on whole maps has weights
    for each place: the map's sum is the prediction less the intercept. Other readouts are asked how the prediction
    changes with each token, :math:`\sum_c x_c[p]\, \partial y_v / \partial x_c[p]` on standardised maps, which is the
    same where the readout is linear in the maps.

    Parameters
    ----------
    encoder : ReadoutEncoder, encoder with ``to_linear()``, or array (feature, voxel)
        An array may hold any vectors in the space of the tokens: weights, means of a region's weights, or text vectors
        of phrases. The second dimension of a labelled one keeps its name.
    tokens : array (n, C, H, W) or (n, token, feature)
        As `ReadoutEncoder` takes them; a class token in front is dropped.
    context : array, optional
        Of readouts that were fitted with one.
    upsampler : PatchUpsampler, optional
        Finer maps, in log odds; for weight vectors as wide as a token.

    Returns
    -------
    DataArray (stimulus, voxel, y, x)
        ``x`` and ``y`` are centres of places in [-1, 1], y down. The mean over voxels of a region is the map of its
        mean response.

    Raises
    ------
    DataError
        Weights that fit neither a token nor a whole map.
    ConfigError
        An upsampler with weights for each place.

    References
    ----------
    Tang et al. (2025), UFO: A unified approach to fine-grained visual perception via open-ended language interface,
    arXiv:2503.01342 (retrieval of patches by an embedding, sub-tokens).

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.encoders import RidgeEncoder
    >>> rng = np.random.default_rng(0)
    >>> tokens = rng.standard_normal((200, 4, 5, 5))
    >>> encoder = RidgeEncoder().fit(tokens.mean((2, 3)), tokens.mean((2, 3))[:, :2])
    >>> maps = patch_map(encoder, tokens[:3])
    >>> maps.dims, maps.shape
    (('stimulus', 'voxel', 'y', 'x'), (3, 2, 5, 5))
    >>> from_map = maps.mean(["y", "x"]).values + encoder.intercept_
    >>> bool(np.allclose(from_map, encoder.predict(tokens[:3].mean((2, 3))), atol=1e-5))
    True
    """
    maps = as_maps(tokens)
    coords: dict[str, Any] = {}
    dim = "voxel"
    if isinstance(encoder, FittedReadout) and not _has_weights(encoder):
        if upsampler is not None:
            raise ConfigError("an upsampler reads weight vectors as wide as a token; this encoder has none.")
        values = _by_gradient(encoder, tokens, context)
        coords |= encoder._voxels_ or {}
    else:
        vectors = encoder.to_linear()[0] if hasattr(encoder, "to_linear") else encoder
        if isinstance(vectors, xr.DataArray):
            dim = str(vectors.dims[-1])
            coords |= {str(k): (dim, c.values) for k, c in vectors.coords.items() if c.dims == (dim,)}
        weights = as_numpy(vectors, "weights").astype(np.float32)
        if weights.ndim != 2:
            raise DataError(f"weights have shape {weights.shape}; expected (feature, voxel).")
        values = _by_weights(weights, maps, upsampler)
    height, width = values.shape[2:]
    places = {"y": (2 * np.arange(height) + 1) / height - 1, "x": (2 * np.arange(width) + 1) / width - 1}
    row = str(tokens.dims[0]) if isinstance(tokens, xr.DataArray) else "stimulus"
    rows = {k: (row, v) for k, v in sample_coords(tokens).items()}
    units = "log odds" if upsampler is not None else "contribution to the predicted response"
    found = xr.DataArray(values, dims=(row, dim, "y", "x"), coords={**places, **rows, **coords}, name="patch_map")
    return found.assign_attrs(units=units)


def _has_weights(encoder: FittedReadout) -> bool:
    return encoder.core is None and all(isinstance(part, LinearReadout) for part in encoder.model_.each)


def _by_weights(weights: np.ndarray, maps: MapArray, upsampler: PatchUpsampler | None) -> np.ndarray:
    """Products of weights with tokens (n, V, H, W)."""
    _, channels, height, width = maps.shape
    places = height * width
    whole = channels * (places + maps.dropped)
    if len(weights) not in (channels, whole):
        raise DataError(
            f"weights have {len(weights)} features; tokens have {channels}, whole maps {whole}. Next step: tokens of "
            "the layer and the space that the encoder was fitted on."
        )
    each = weights[:, :, None]
    if len(weights) != channels or places + maps.dropped == 1:
        if upsampler is not None:
            raise ConfigError(
                "an upsampler reads weight vectors as wide as a token; these have weights for each place."
            )
        if maps.layout == "tokens":
            each = weights.reshape(-1, channels, weights.shape[1])[maps.dropped :].transpose(1, 2, 0)
        else:
            each = weights.reshape(channels, places, -1).transpose(0, 2, 1)
    parts = []
    for block in maps.blocks():
        x = np.asarray(block, dtype=np.float32)
        if upsampler is not None:
            parts.append(upsampler.predict(x, weights))
            continue
        pattern = "cvp,ncp->nvp" if each.shape[2] > 1 else "cvo,ncp->nvp"
        parts.append(np.einsum(pattern, each, x.reshape(len(x), channels, places), optimize=True))
    found = np.concatenate(parts)
    return found if found.ndim == 4 else found.reshape(*found.shape[:2], height, width)


def _by_gradient(encoder: FittedReadout, tokens: Any, context: Any, batch: int = 64) -> np.ndarray:
    """Input times gradient (n, V, H, W), of the maps that the readouts read."""
    maps, second = encoder._new(tokens, context)
    model = encoder.model_.to(maps.device).eval()
    back = np.argsort(encoder.columns_)
    parts = []
    for rows in torch.arange(len(maps)).split(batch):
        inputs, seen = maps.rows(rows), None if second is None else second.rows(rows)
        found: list[Tensor] = []
        for number, readout in enumerate(model.each):
            if not number or model.conditioned:
                with torch.no_grad():
                    x = model.maps(inputs, number)
                x.requires_grad_(True)
            y = readout(x, seen)
            for v in range(y.shape[1]):
                found.append((torch.autograd.grad(y[:, v].sum(), x, retain_graph=True)[0] * x).sum(1).detach())
        parts.append(torch.stack([found[v] for v in back], 1).cpu().numpy())
    return np.concatenate(parts)


@dataclass
class PatchUpsampler:
    r"""Sub-tokens: maps ``scale`` times as fine as the grid of tokens, learned from masks.

    .. math:: M_v[p, n] = \gamma\, \hat w_v^\top x_p + (A \hat w_v)^\top B_n x_p + \beta_n

    with one :math:`B_n` for each of the ``scale`` x ``scale`` positions n within a patch, on standardised tokens and
    weights of unit length. It begins with :math:`B = 0`, the coarse map, and minimises cross entropy plus Dice loss
    against masks of objects whose vectors are known; what it learned holds for other vectors of the space.

    Parameters
    ----------
    scale : int
        Finer by this along each axis; 4 gives 16 sub-tokens.
    rank : int
        Width of A and B.
    steps, batch_size : int
    lr, weight_decay : float
    seed : int

    References
    ----------
    Tang et al. (2025), UFO, arXiv:2503.01342.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> tokens, vectors = rng.standard_normal((20, 6, 3, 3)), rng.standard_normal((6, 2))
    >>> masks = rng.random((20, 2, 12, 12)) < 0.3
    >>> finer = PatchUpsampler(steps=5).fit(tokens, vectors, masks)
    >>> patch_map(vectors, tokens[:2], upsampler=finer).shape
    (2, 2, 12, 12)
    """

    scale: int = 4
    rank: int = 32
    steps: int = 300
    batch_size: int = 32
    lr: float = 0.01
    weight_decay: float = 1e-4
    seed: int = 0
    _state: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def fit(self, tokens: Any, vectors: Any, masks: Any) -> Self:
        """Learn from pictures in which the objects are known.

        Parameters
        ----------
        tokens : array (n, C, H, W) or (n, token, feature)
        vectors : array (feature, object)
            Weight or text vectors of the objects.
        masks : array of bool (n, object, scale * H, scale * W)
            Where each object is; no place at all where a picture does not show it.
        """
        for name in ("scale", "rank", "steps", "batch_size"):
            check_whole(name, getattr(self, name))
        at_least("lr", self.lr, above=True)
        maps = as_maps(tokens)
        w = torch.as_tensor(as_numpy(vectors, "vectors").astype(np.float32))
        truth = torch.as_tensor(as_numpy(masks, "masks").astype(np.float32))
        n, channels, height, width = maps.shape
        expected = (n, w.shape[-1], self.scale * height, self.scale * width)
        if w.ndim != 2 or len(w) != channels or truth.shape != expected:
            raise DataError(
                f"vectors {tuple(w.shape)} and masks {tuple(truth.shape)} do not fit tokens {maps.shape}: expected "
                f"({channels}, object) and {expected}."
            )
        mean, sd = map_moments(maps)
        x = torch.as_tensor(np.asarray(maps.read(slice(None)), dtype=np.float32))
        x = (x - torch.as_tensor(mean, dtype=torch.float32)[:, None, None]) / _column(sd)
        rng, generator = make_rng(self.seed), torch.Generator().manual_seed(int(self.seed))
        rate = truth.mean().clamp(1e-3, 1 - 1e-3)
        state = {
            "gain": torch.ones(()),
            "bias": torch.full((self.scale**2,), float(torch.logit(rate))),
            "a": torch.randn(self.rank, channels, generator=generator) / channels**0.5,
            "b": torch.zeros(self.scale**2, self.rank, channels),
        }
        self._state = {k: v.requires_grad_(True) for k, v in state.items()}
        optimiser = torch.optim.AdamW(self._state.values(), lr=self.lr, weight_decay=self.weight_decay)
        for _ in range(self.steps):
            rows = torch.as_tensor(rng.permutation(n)[: self.batch_size])
            logits, target = self._logits(x[rows], w), truth[rows]
            probability = torch.sigmoid(logits)
            both = (probability * target).sum((2, 3))
            dice = 1 - (2 * both + 1) / (probability.sum((2, 3)) + target.sum((2, 3)) + 1)
            loss = functional.binary_cross_entropy_with_logits(logits, target) + dice[target.amax((2, 3)) > 0].mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        self._state = {k: v.detach() for k, v in self._state.items()}
        self._state |= {"mean": torch.as_tensor(mean, dtype=torch.float32), "sd": _column(sd)[:, 0, 0]}
        return self

    def _logits(self, x: Tensor, w: Tensor) -> Tensor:
        """Log odds (B, V, scale * H, scale * W) on standardised tokens."""
        w = w / torch.linalg.vector_norm(w, dim=0).clamp(min=1e-12)
        coarse = self._state["gain"] * torch.einsum("cv,bchw->bvhw", w, x)
        fine = torch.einsum("rc,cv,nrd,bdhw->bvnhw", self._state["a"], w, self._state["b"], x)
        found = coarse[:, :, None] + fine + self._state["bias"][:, None, None]
        return functional.pixel_shuffle(found, self.scale)[:, :, 0]

    def predict(self, tokens: Any, vectors: Any) -> np.ndarray:
        """Log odds (n, voxel, scale * H, scale * W) of maps (n, C, H, W) or tokens and vectors (feature, voxel)."""
        if not self._state:
            raise ConfigError("this upsampler was not fitted. Next step: PatchUpsampler().fit(tokens, vectors, masks).")
        x = torch.as_tensor(np.asarray(as_maps(tokens).read(slice(None)), dtype=np.float32))
        with torch.no_grad():
            x = (x - self._state["mean"][:, None, None]) / self._state["sd"][:, None, None]
            w = torch.as_tensor(as_numpy(vectors, "vectors").astype(np.float32))
            return self._logits(x, w).numpy()


def _column(values: np.ndarray) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)[:, None, None]
