"""Torch module of a core and the readouts of all subjects."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from neuroenc._core.checks import keywords, one_of
from neuroenc._core.errors import ConfigError
from neuroenc.encoders.readout._protocol import READOUTS, Readout, make_readout

Shape = tuple[int, int, int]


class EncoderModule(nn.Module):
    """``y = [readout_s(core(x)) for s in subjects]``, side by side.

    Parameters
    ----------
    core : torch.nn.Module, optional
        None reads the inputs themselves.
    readouts : sequence of Readout
        One a subject.
    extent : (float, float)
        Height and width of the core's map in units of its input's.
    """

    def __init__(
        self, core: nn.Module | None, readouts: Sequence[Readout], extent: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        super().__init__()
        self.core = core
        self.readouts = nn.ModuleList(readouts)
        self.extent = extent

    def maps(self, x: Tensor) -> Tensor:
        """What the readouts read."""
        return x if self.core is None else self.core(x)

    @property
    def sizes(self) -> list[int]:
        """Voxels of each readout."""
        return [readout.n_voxels for readout in self.each]

    def forward(self, x: Tensor, context: Tensor | None = None, seen: Tensor | None = None) -> Tensor:
        """Outputs (B, V), subject after subject.

        Parameters
        ----------
        x : Tensor (B, C, H, W)
        context : Tensor (B, Cc, Hc, Wc), optional
        seen : Tensor (B, subject) of bool, optional
            Which subjects saw which stimuli; outputs for stimuli that a subject did not see may then be left at 0.
        """
        maps = self.maps(x)
        if len(self.readouts) == 1:
            return self.readouts[0](maps, context)
        parts = []
        for number, readout in enumerate(self.readouts):
            rows = None if seen is None or bool(seen[:, number].all()) else torch.nonzero(seen[:, number])[:, 0]
            if rows is None:
                parts.append(readout(maps, context))
                continue
            # A readout without a stimulus takes part with one that counts for nothing: its parameters then have
            # gradients (of 0), which training on several devices needs.
            rows = rows if len(rows) else rows.new_zeros(1)
            some = readout(maps[rows], None if context is None else context[rows])
            parts.append(some.new_zeros(len(maps), some.shape[1]).index_copy(0, rows, some))
        return torch.cat(parts, dim=1)

    def regulariser(self) -> Tensor:
        """Sum of the readouts' penalties."""
        penalties = [readout.regulariser() for readout in self.each]
        return penalties[0] if len(penalties) == 1 else torch.stack(penalties).sum()

    def constrain(self) -> None:
        """Parameters of every readout back to where they are legal."""
        for readout in self.each:
            readout.constrain()

    def start(self, mean: Tensor) -> None:
        """Begin at outputs ``mean`` (V,)."""
        for readout, part in zip(self.each, mean.split(self.sizes)):
            readout.start(part)

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters, the core's included."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @property
    def each(self) -> list[Any]:
        """The readouts."""
        return list(self.readouts)

    def receptive_field(self) -> dict[str, np.ndarray] | None:
        """Centre and size (V,) in the frame of the inputs."""
        fields = [readout.receptive_field() for readout in self.each]
        if any(f is None for f in fields):
            return None
        height, width = self.extent
        units = {"x": width, "y": height, "size": (height * width) ** 0.5}
        return {
            k: np.concatenate([f[k].detach().cpu().numpy() for f in fields if f is not None]) * unit
            for k, unit in units.items()
        }

    def weights(self) -> xr.Dataset:
        """Weights of all readouts, along voxel."""
        parts = [readout.weights() for readout in self.each]
        return parts[0] if len(parts) == 1 else xr.concat(parts, dim="voxel", data_vars="minimal")

    @torch.no_grad()
    def warp_spread(self, x: Tensor, context: Tensor | None, batch_size: int) -> dict[str, np.ndarray] | None:
        """S.d. of warps over stimuli (V,) by name, or None where nothing is warped."""
        if not all(hasattr(readout, "warp_spread") for readout in self.readouts):
            return None
        maps = torch.cat([self.maps(part) for part in x.split(batch_size)])
        found = [readout.warp_spread(maps, context, batch_size) for readout in self.readouts]  # type: ignore[operator]
        return {k: np.concatenate([f[k].cpu().numpy() for f in found]) for k in found[0]}


def build_module(
    readout: str,
    options: dict[str, Any] | None,
    core: Any,
    core_options: dict[str, Any] | None,
    in_shape: Shape,
    sizes: Sequence[int],
    *,
    context_shape: Shape | None = None,
    seed: int = 0,
    max_memory: int = 2**28,
) -> EncoderModule:
    """Core and one readout for each number of voxels in ``sizes``; first weights follow from ``seed``."""
    given = dict(options or {})
    if context_shape is not None and "context_shape" in keywords(READOUTS[one_of("readout", readout, READOUTS)]):
        given.setdefault("context_shape", context_shape)
    network, shape, extent = _make_core(core, core_options, in_shape, seed)
    with torch.random.fork_rng(devices=[]):
        readouts = []
        for number, size in enumerate(sizes):
            # A seed of its own for each subject: who else is in the data does not change a subject's start.
            torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
            readouts.append(make_readout(readout, shape, size, **{"max_memory": max_memory, **given}))
    return EncoderModule(network, readouts, extent)


def _make_core(
    core: Any, options: dict[str, Any] | None, in_shape: Shape, seed: int
) -> tuple[nn.Module | None, Shape, tuple[float, float]]:
    if core is None:
        if options:
            raise ConfigError(f"core_options {sorted(options)} without a core. Next step: core='equivariant'.")
        return None, in_shape, (1.0, 1.0)
    from neuroenc.encoders.readout.cores import Core, FrozenCore, make_core

    if isinstance(core, str):
        made = make_core(core, in_shape, seed=seed, **(options or {}))
        return made, made.out_shape, made.extent
    if not isinstance(core, nn.Module):
        raise ConfigError(f"core is a {type(core).__name__}; expected a name, a torch module or None.")
    if options:
        raise ConfigError(f"core_options {sorted(options)} go with the name of a core, not with a module.")
    # A copy: fitting leaves the settings of an estimator as they were.
    module = copy.deepcopy(core)
    if not isinstance(module, Core) and not any(p.requires_grad for p in module.parameters()):
        module = FrozenCore(module, in_shape)
    if isinstance(module, Core):
        return module, module.out_shape, module.extent
    shape = FrozenCore(copy.deepcopy(module), in_shape).out_shape
    return module, shape, (1.0, 1.0)
