"""Diffusion prior over image embeddings, conditioned on a voxel's weights."""

from __future__ import annotations

import hashlib
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from neuroenc._core.checks import at_least, check_whole, one_of
from neuroenc._core.device import exact_arithmetic, resolve_device
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.memory import parse_memory
from neuroenc._core.progress import progress as bar_of
from neuroenc._core.provenance import provenance
from neuroenc._core.topk import row_norms
from neuroenc._core.weights import Kind, read_folder, reading, write_folder
from neuroenc.captions._descent import descend
from neuroenc.captions._linear import as_weights
from neuroenc.captions.projection._denoiser_model import (
    DenoiserNet,
    ExactDenoiser,
    WeightPrior,
    alpha_sigma,
    ddim,
    draw_images,
)
from neuroenc.retrieval import as_bank

_KIND = Kind("denoiser", "denoiser.json", "denoiser.safetensors", ("settings", "n_features", "n_images", "training"))
_WEIGHTS = Path(__file__).parent / "weights"
SHIPPED = ("world",)
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


KINDS = ("diffusion", "empirical", "regression")
SCALINGS = ("robust", "unit")
# Share of examples without a condition, for guidance; decay of the average of parameters over steps.
_DROP, _EMA = 0.1, 0.998
# Images of one step among which the one that a condition asks for is drawn.
_POOL = 4096


def _noise(label: Any, sample: int, seed: int) -> np.random.Generator:
    """Random numbers of one sample of one voxel: the same in every batch, order and subset of voxels."""
    digest = hashlib.sha256(f"{label}\0{sample}\0{seed}".encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, np.uint32))


class ConceptDenoiser:
    r"""Diffusion prior over natural-image embeddings, conditioned on a voxel's weights.

    The softmax projection is the mean of a distribution over images, ``s_i(k) = softmax_k(w_i . m_k / temperature)``.
    A voxel that likes two things has a mean between them, which is neither. This draws from ``s_i``, smoothed over
    the images of the bank, by taking noise out of an embedding step by step:

    .. math:: \min_\theta E \| v_\theta(\alpha_t z + \sigma_t \epsilon, t, w, \tau) - (\alpha_t \epsilon - \sigma_t z)
        \|^2, \qquad z = \mathrm{scale}(m_k), \; k \sim s(w, \tau), \; w \sim \text{ridge weights of random concepts}

    with a cosine schedule, DDIM sampling and classifier-free guidance. No voxel and no label is needed: weights are
    made from the images (:class:`WeightPrior`), and one network serves all temperatures of its range.

    Parameters
    ----------
    kind : {"diffusion", "empirical", "regression"}
        "diffusion": a residual network with two towers. "empirical": the exact denoiser of the fitted images, which
        gives back these images. "regression": the network predicts the image from the weights by squared error; all
        samples of a voxel are one, near the mean. It is what the first is measured against.
    scaling : {"robust", "unit"}
        Median and interquartile range of each dimension (in units of a normal standard deviation) of unit-norm
        embeddings, clipped at ten; or unit-norm embeddings times the root of their width.
    width, depth : int
        Of the network.
    temperatures : (float, float)
        Range that the network is trained for.
    seed : int
        Of first weights and training.
    device : str

    Attributes
    ----------
    training_ : dict
        ``losses, steps, ended_by, seconds``.
    n_images_ : int
        Images that were fitted.

    References
    ----------
    LCM team et al. Large Concept Models: language modeling in a sentence representation space. 2024.
    Song, Meng, Ermon. Denoising diffusion implicit models. ICLR 2021.
    Salimans, Ho. Progressive distillation for fast sampling of diffusion models. ICLR 2022.
    Ho, Salimans. Classifier-free diffusion guidance. 2022.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> bank = np.repeat(np.eye(4), 50, axis=0) + 0.05 * rng.standard_normal((200, 4))
    >>> denoiser = ConceptDenoiser("empirical", device="cpu").fit(bank)
    >>> likes_two = np.array([[1.0], [1.0], [0.0], [0.0]])
    >>> found = denoiser.sample(likes_two, n_samples=20, temperature=0.05)
    >>> sorted(set(np.abs(found.values[0]).argmax(axis=1).tolist()))
    [0, 1]
    """

    def __init__(
        self,
        kind: str = "diffusion",
        *,
        scaling: str = "robust",
        width: int = 192,
        depth: int = 4,
        temperatures: tuple[float, float] = (1 / 1500, 1 / 10),
        seed: int = 0,
        device: str = "auto",
    ) -> None:
        one_of("kind of denoiser", kind, KINDS)
        one_of("scaling", scaling, SCALINGS)
        if check_whole("width", width, 2) % 2:
            raise ConfigError(f"width={width} is not legal; it must be even.")
        if not 0 < temperatures[0] <= temperatures[1] < math.inf:
            raise ConfigError(f"temperatures={temperatures!r} must be a range of positive numbers, low first.")
        self.kind, self.scaling, self.width, self.depth = kind, scaling, int(width), check_whole("depth", depth)
        self.temperatures = (float(temperatures[0]), float(temperatures[1]))
        self.seed, self.device = int(seed), resolve_device(device)
        self.training_: dict[str, Any] = {}
        self.n_images_ = 0
        self._net: DenoiserNet | None = None
        self._exact: ExactDenoiser | None = None
        self._centre = self._scale = torch.zeros(0)

    def __repr__(self) -> str:
        state = f"{self.n_images_} images" if self.n_images_ else "not fitted"
        return f"ConceptDenoiser({self.kind!r}, {state})"

    @property
    def n_features(self) -> int:
        """Width of the embeddings; 0 before fitting."""
        return len(self._centre)

    def _to_scaled(self, directions: Tensor) -> Tensor:
        return ((directions - self._centre) / self._scale).clamp(-10, 10)

    def _start(self, dim: int) -> DenoiserNet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return DenoiserNet(dim, self.width, self.depth).to(self.device)

    def _set_images(self, directions: np.ndarray) -> Tensor:
        rows = torch.from_numpy(np.ascontiguousarray(directions, dtype=np.float32)).to(self.device)
        if self.kind == "empirical":
            self._exact = ExactDenoiser(rows, self._to_scaled(rows))
        return rows

    def fit(
        self,
        bank: Any,
        *,
        steps: int = 5000,
        batch_size: int = 256,
        lr: float = 1e-3,
        minutes: float | None = None,
        max_memory: str | int | None = None,
        progress: bool = False,
    ) -> ConceptDenoiser:
        """Learn the images of a bank.

        Parameters
        ----------
        bank : see :func:`neuroenc.retrieval.as_bank`
            Image embeddings (n, feature), any norm.
        steps, batch_size, lr : int, int, float
            AdamW with warm-up and a cosine to zero.
        minutes : float, optional
            Time limit, at which the cosine ends.
        max_memory : str, int or None
            Of a larger bank a random sample is kept, of what half of it holds.
        progress : bool

        Returns
        -------
        ConceptDenoiser
            Itself.

        Raises
        ------
        DataError
            Fewer than two images; NaN, infinite or zero-norm ones.
        """
        directions = self._read(bank, max_memory)
        dim = directions.shape[1]
        if self.scaling == "robust":
            from sklearn.preprocessing import RobustScaler

            found = RobustScaler(unit_variance=True).fit(directions)
            centre, scale = found.center_, found.scale_
        else:
            centre, scale = np.zeros(dim), np.full(dim, 1 / math.sqrt(dim))
        self._centre = torch.as_tensor(centre, dtype=torch.float32, device=self.device)
        self._scale = torch.as_tensor(scale, dtype=torch.float32, device=self.device)
        self.n_images_ = len(directions)
        rows = self._set_images(directions)
        if self.kind == "empirical":
            self.training_ = {"losses": [], "steps": 0, "ended_by": "steps", "seconds": 0.0}
            return self
        self._net = net = self._start(dim)
        average = {k: v.detach().clone() for k, v in net.state_dict().items()}

        def averaged(step: int) -> None:
            # The average begins short, so that the first weights are soon forgotten.
            keep = min(_EMA, (step + 1) / (step + 10))
            for name, value in net.state_dict().items():
                average[name].lerp_(value, 1 - keep)

        generator = torch.Generator().manual_seed(self.seed)
        self.training_ = descend(
            net,
            torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.01, betas=(0.9, 0.99)),
            partial(self._loss, WeightPrior(rows), self._to_scaled(rows), generator, batch_size),
            lambda done: 0.5 * (1 + math.cos(math.pi * done)),
            steps=steps,
            minutes=minutes,
            desc="denoiser",
            show=progress,
            after=averaged,
        )
        net.load_state_dict(average)
        return self

    def _loss(self, prior: WeightPrior, scaled: Tensor, generator: torch.Generator, batch_size: int) -> Tensor:
        """Squared error of v, or of a regression of the image itself, on a batch that is drawn."""
        assert self._net is not None
        net, images, device = self._net, prior.directions, scaled.device
        low, high = (math.log(x) for x in self.temperatures)
        with torch.no_grad():
            w = prior.draw(batch_size, generator)
            tau = torch.exp(low + (high - low) * torch.rand(batch_size, generator=generator)).to(device)
            some = torch.arange(len(images), device=device)
            if len(some) > _POOL:
                some = torch.randperm(len(some), generator=generator)[:_POOL].to(device)
            target = scaled[some[draw_images(w, images[some], tau, generator)]]
            noise = torch.randn(target.shape, generator=generator).to(device)
            t = torch.rand(batch_size, generator=generator).to(device)
            dropped = (torch.rand(batch_size, 1, generator=generator) < _DROP).to(device)
        context = net.read(w, tau)
        if self.kind == "regression":
            return (-net(torch.zeros_like(target), torch.ones_like(t), context) - target).square().mean()
        context = torch.where(dropped, net.nothing, context)
        alpha, sigma = (a[:, None] for a in alpha_sigma(t))
        v = net(alpha * target + sigma * noise, t, context)
        return (v - (alpha * noise - sigma * target)).square().mean()

    def _read(self, bank: Any, max_memory: str | int | None) -> np.ndarray:
        """Unit-norm rows of a bank, or of a sample of it, float32."""
        images = as_bank(bank).again("a denoiser is fitted to a bank of known length")
        total, width = int(images.n or 0), int(images.width or 0)
        # Unit norm in float64 while reading, float32 directions, and what the normaliser makes of them.
        room = parse_memory(max_memory) // 2 // (20 * width)
        n = min(total, room)
        if n < 2:
            raise DataError(f"{n} images can be fitted (bank {total}, room for {room}); at least 2 are needed.")
        at = np.arange(total)
        if n < total:
            at = np.sort(np.random.default_rng(self.seed).choice(total, n, replace=False))
        chunks = images.take(at, 4096)
        return np.concatenate([(c.rows / row_norms(c, need_positive=True)[:, None]).astype(np.float32) for c in chunks])

    def _conditions(self, coef: Any) -> tuple[np.ndarray, xr.DataArray]:
        """Unit-norm weights (voxel, feature) float32, NaN where there is no direction, and the labelled weights."""
        if not self.n_images_:
            raise ConfigError("this denoiser was not fitted. Next step: fit(bank), or ConceptDenoiser.load(folder).")
        found = as_weights(coef)
        if found.coef.sizes["feature"] != self.n_features:
            raise DataError(
                f"weights have width {found.coef.sizes['feature']}, the images of this denoiser {self.n_features}; "
                "both must come from one backbone."
            )
        return found.directions().astype(np.float32), found.coef

    def sample(
        self,
        coef: Any,
        *,
        n_samples: int = 8,
        temperature: float = 1 / 150,
        guidance: float = 1.0,
        n_steps: int = 50,
        seed: int = 0,
        max_memory: str | int | None = None,
        progress: bool = False,
    ) -> xr.DataArray:
        """Embeddings drawn for each voxel.

        The draws of a voxel follow from its label, the number of the sample and ``seed``: they are the same in any
        batch, order or subset of voxels.

        Parameters
        ----------
        coef : DataArray or array (feature, voxel), or encoder with ``to_linear()``
            Only the direction of a voxel's weights counts.
        n_samples : int
        temperature : float
            Of ``s_i``; for a network within the range it was trained for.
        guidance : float
            1: as trained; above 1 the condition counts more, at the price of variety and naturalness. For the
            empirical kind it divides the temperature.
        n_steps : int
            Of DDIM.
        seed : int
        max_memory : str, int or None
            For temporaries.
        progress : bool

        Returns
        -------
        DataArray (voxel, sample, feature) float32
            Of unit norm; NaN for voxels with zero or NaN weights.

        Raises
        ------
        ConfigError
            Not fitted, or a setting out of range.
        DataError
            Weights of another width.
        """
        check_whole("n_samples", n_samples)
        check_whole("n_steps", n_steps)
        low, high = (0.0, math.inf) if self.kind == "empirical" else self.temperatures
        if not (0 < temperature < math.inf and low * (1 - 1e-9) <= temperature <= high * (1 + 1e-9)):
            raise ConfigError(
                f"temperature={temperature!r} is outside of what this denoiser was trained for, {low:.3g} to "
                f"{high:.3g}. Next step: a temperature within, or ConceptDenoiser(temperatures=...)."
            )
        at_least("guidance", guidance)
        unit, labelled = self._conditions(coef)
        rows = np.repeat(np.flatnonzero(np.isfinite(unit).all(axis=1)), n_samples)
        number = np.tile(np.arange(n_samples), len(rows) // n_samples)
        out = np.full((len(unit) * n_samples, self.n_features), np.nan, np.float32)
        # Temporaries of a row: with the exact denoiser one number for each of its images, several times.
        numbers = 12 * self.n_features + (3 * self._exact.chunk if self._exact is not None else 12 * self.width)
        batch = int(np.clip(parse_memory(max_memory) // (8 * numbers), 1, 4096))
        labels = labelled["voxel"].values
        starts = range(0, len(rows), batch)
        with exact_arithmetic():
            for a in bar_of(starts, desc="denoise", show=progress):
                at, which = rows[a : a + batch], number[a : a + batch]
                draws = [_noise(labels[v], s, seed) for v, s in zip(at, which)]
                found = self._denoise(torch.from_numpy(unit[at]), draws, temperature, guidance, n_steps)
                out[at * n_samples + which] = found.cpu().numpy()
        coords = {k: v for k, v in labelled.coords.items() if v.dims == ("voxel",)}
        values = out.reshape(len(unit), n_samples, self.n_features)
        return xr.DataArray(values, dims=("voxel", "sample", "feature"), coords=coords, name="samples")

    def _denoise(
        self, weights: Tensor, draws: list[np.random.Generator], temperature: float, guidance: float, n_steps: int
    ) -> Tensor:
        drawn = [g.standard_normal(self.n_features, dtype=np.float32) for g in draws]
        noise = torch.from_numpy(np.stack(drawn)).to(self.device)
        w = weights.to(self.device)
        tau = torch.full((len(w),), temperature, device=self.device)
        if self._exact is not None:
            exact = self._exact
            clean = ddim(lambda x, t: exact.clean(x, t, w, tau, guidance), noise, n_steps)
        else:
            assert self._net is not None
            net, context = self._net, self._net.read(w, tau)
            if self.kind == "regression":
                clean = -net(torch.zeros_like(w), torch.ones_like(tau), context)
            else:
                clean = ddim(lambda x, t: net.clean(x, t, context, guidance), noise, n_steps)
        direction = clean * self._scale + self._centre
        return direction / direction.norm(dim=1, keepdim=True)

    def save(self, folder: str | os.PathLike[str], *, dtype: str = "float32", **record: Any) -> Path:
        """Write ``denoiser.safetensors`` and ``denoiser.json``.

        Parameters
        ----------
        folder : path
        dtype : {"float32", "float16"}
            Of the file.
        **record
            What to remember with it, such as the images it was fitted to.

        Returns
        -------
        Path
        """
        one_of("dtype", dtype, _DTYPES)
        if not self.n_images_:
            raise ConfigError("this denoiser was not fitted; there is nothing to save. Next step: fit(bank).")
        # The normaliser stays exact: it is small, and every sample passes through it.
        tensors: dict[str, Tensor] = {"centre": self._centre, "scale": self._scale}
        if self._exact is not None:
            tensors["images"] = self._exact.values[:, self.n_features :].to(_DTYPES[dtype])
        if self._net is not None:
            tensors |= {f"net.{k}": v.to(_DTYPES[dtype]) for k, v in self._net.state_dict().items()}
        described = {
            "settings": {k: getattr(self, k) for k in ("kind", "scaling", "width", "depth", "temperatures", "seed")},
            "n_features": self.n_features,
            "n_images": self.n_images_,
            "training": {k: v for k, v in self.training_.items() if k != "losses"},
            "record": record,
            "provenance": provenance(model="ConceptDenoiser"),
        }
        return write_folder(folder, _KIND, described, tensors)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str = "auto") -> ConceptDenoiser:
        """Read a denoiser from a folder that :meth:`save` wrote, or a shipped one by its name ("world").

        Raises
        ------
        DataError
            There is none, a newer format wrote it, or its file was changed.
        """
        path = Path(folder)
        if not path.exists() and str(folder) in SHIPPED:
            path = _WEIGHTS / str(folder)
        if not (path / _KIND.record).is_file():
            raise DataError(unknown_name("denoiser", folder, SHIPPED, "Next step: a name, or what save() wrote."))
        record, tensors = read_folder(path, _KIND)
        with reading(path, "denoiser"):
            settings = {**record["settings"], "temperatures": tuple(record["settings"]["temperatures"])}
            out = cls(device=device, **settings)
            out._centre, out._scale = (tensors.pop(k).float().to(out.device) for k in ("centre", "scale"))
            out.n_images_, out.training_ = int(record["n_images"]), {"losses": [], **record["training"]}
            if out.kind == "empirical":
                out._set_images(tensors["images"].float().numpy())
                return out
            out._net = out._start(int(record["n_features"]))
            out._net.load_state_dict({k.removeprefix("net."): v.float() for k, v in tensors.items()})
            out._net.eval()
        return out
