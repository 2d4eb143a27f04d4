"""Protocol and registry of readouts, and the torch module of a core with the readouts of all subjects."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neuroenc._core.checks import keywords, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.encoders.readout._geometry import check_shape

#: Readouts by name; see `register_readout`.
READOUTS: dict[str, type[Readout]] = {}


class Readout(nn.Module, ABC):
    """Base class of readouts: responses ``y[b, v]`` of voxels from feature maps ``x[b, c, h, w]``.

    Positions are in [-1, 1], x to the right and y down, with -1 and 1 the outer edges of the map, so that the
    field of view is 2 wide.

    Parameters
    ----------
    in_shape : (int, int, int)
        Channels, height and width of the maps.
    n_voxels : int
    max_memory : int
        Bytes that intermediate arrays of one chunk of voxels may take. Results do not depend on it.
    """

    name: ClassVar[str] = ""
    #: Whether least squares with a squared penalty has a closed form (`ReadoutEncoder` then uses it).
    closed_form: ClassVar[bool] = False

    def __init__(self, in_shape: Sequence[int], n_voxels: int, *, max_memory: int = 2**28) -> None:
        super().__init__()
        self.in_shape = check_shape(in_shape)
        if n_voxels < 1:
            raise ConfigError(f"n_voxels={n_voxels} must be at least 1.")
        self.n_voxels = int(n_voxels)
        self.max_memory = int(max_memory)

    @abstractmethod
    def read(self, x: Tensor, voxels: slice, shared: Any) -> Tensor:
        """Responses (B, chunk) of ``voxels``; ``shared`` is what `prepare` made."""

    @abstractmethod
    def weights(self) -> xr.Dataset:
        """Weights as labelled arrays over voxel, channel, y and x."""

    def prepare(self, x: Tensor, context: Tensor | None) -> Any:
        """What all chunks of a batch share (None for most readouts)."""
        return None

    def chunk_bytes(self, batch: int) -> float:
        """Bytes of intermediate arrays that one voxel of a batch needs."""
        return 4.0 * batch * self.in_shape[0]

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Responses of all voxels.

        Parameters
        ----------
        x : Tensor (B, C, H, W)
        context : Tensor (B, Cc, Hc, Wc), optional
            Map that content-dependent readouts look at; ``x`` itself where it is left out.

        Returns
        -------
        Tensor (B, V)
        """
        if tuple(x.shape[1:]) != self.in_shape:
            raise DataError(f"maps have shape {tuple(x.shape[1:])} a stimulus; this readout reads {self.in_shape}.")
        shared = self.prepare(x, context)
        size = max(1, min(self.n_voxels, int(self.max_memory // max(1.0, self.chunk_bytes(len(x))))))
        if size >= self.n_voxels:
            return self.read(x, slice(0, self.n_voxels), shared)
        parts = []
        for start in range(0, self.n_voxels, size):
            voxels = slice(start, min(start + size, self.n_voxels))
            if torch.is_grad_enabled():
                # A chunk's arrays are made again in the backward pass instead of being kept for all chunks.
                # Nothing random happens inside read, so no random state has to be kept either.
                parts.append(checkpoint(self.read, x, voxels, shared, use_reentrant=False, preserve_rng_state=False))
            else:
                parts.append(self.read(x, voxels, shared))
        return torch.cat(parts, dim=1)

    def regulariser(self) -> Tensor:
        """Weighted penalty, summed over voxels."""
        return next(self.parameters()).new_zeros(())

    def constrain(self) -> None:
        """Put parameters back where they are legal, after a step of the optimiser."""
        return

    def start(self, mean: Tensor) -> None:
        """Begin at the voxels' mean responses (V,), so that no step is spent on them."""
        with torch.no_grad():
            self.bias.copy_(mean.to(self.bias))

    def receptive_field(self) -> dict[str, Tensor] | None:
        """Centre ``x``, ``y`` and ``size`` (s.d.), each (V,), or None where the readout has none."""
        return None

    @property
    def n_parameters(self) -> int:
        """Number of trained parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    @classmethod
    def search_space(cls) -> dict[str, list[Any]]:
        """Options that a comparison may tune, and their values."""
        return {}

    bias: nn.Parameter

    def _initial(self, *shape: int, scale: float = 1e-3) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape) * scale)

    def _labelled(self, **parts: tuple[tuple[str, ...], Tensor]) -> xr.Dataset:
        """Tensors over voxel and the dimensions that are named with them, and the intercept."""
        arrays = {k: (("voxel", *dims), v.detach().cpu().numpy()) for k, (dims, v) in parts.items()}
        return xr.Dataset({**arrays, "intercept": ("voxel", self.bias.detach().cpu().numpy())})


def register_readout(cls: type[Readout]) -> type[Readout]:
    """Register a readout class by its ``name``.

    Examples
    --------
    >>> from neuroenc.encoders.readout import READOUTS
    >>> sorted(READOUTS)
    ['attention', 'codebook', 'compression', 'factorized', 'gaussian', 'linear', 'lowrank', 'patch_summary', 'pooled',
     'semantic', 'sentence_gate']
    """
    if not cls.name or cls.name in READOUTS:
        raise ConfigError(f"readout name {cls.name!r} is empty or taken.")
    READOUTS[cls.name] = cls
    return cls


def make_readout(name: str, in_shape: Sequence[int], n_voxels: int, **options: Any) -> Readout:
    """Make a readout by name.

    Parameters
    ----------
    name : str
        One of `READOUTS`.
    in_shape : (int, int, int)
        Channels, height and width of the maps.
    n_voxels : int
    **options
        The readout's own.

    Raises
    ------
    ConfigError
        An unknown name or option; the message has the nearest.

    Examples
    --------
    >>> make_readout("pooled", (8, 7, 7), 3).n_parameters
    27
    """
    one_of("readout", name, READOUTS)
    build: Callable[..., Readout] = READOUTS[name]
    for option in options:
        one_of(f"option of readout {name!r}", option, keywords(build))
    return build(in_shape, n_voxels, **options)


Shape = tuple[int, int, int]


class EncoderModule(nn.Module):
    """``y = [readout_k(core(x, k)) for k in tasks]``, side by side; a task is a subject, or a region of one.

    Parameters
    ----------
    core : torch.nn.Module, optional
        None reads the inputs themselves.
    readouts : sequence of Readout
        One a task.
    extent : (float, float)
        Height and width of the core's map in units of its input's.
    subjects : sequence of str
        Of every task; each a subject of its own where left out.
    first : int
        Number of the first task in a conditioned core.
    """

    def __init__(
        self,
        core: nn.Module | None,
        readouts: Sequence[Readout],
        extent: tuple[float, float] = (1.0, 1.0),
        subjects: Sequence[str] = (),
        first: int = 0,
    ) -> None:
        super().__init__()
        self.first = first
        self._pull: Tensor | None = None
        self.core = core
        self.readouts = nn.ModuleList(readouts)
        self.extent = extent
        self.subjects = list(subjects) or [str(k) for k in range(len(readouts))]

    @property
    def conditioned(self) -> bool:
        """Whether the core's maps depend on the task."""
        return bool(getattr(self.core, "conditioned", False))

    def maps(self, x: Tensor, task: int = 0, width: int | None = None) -> Tensor:
        """What the readout of a task reads; ``width`` of a slimmable core."""
        if self.core is None:
            return x
        how = {} if width is None else {"width": width}
        return self.core(x, self.first + task, **how) if self.conditioned else self.core(x, **how)

    @property
    def sizes(self) -> list[int]:
        """Voxels of each readout."""
        return [readout.n_voxels for readout in self.each]

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        seen: Tensor | None = None,
        only: Sequence[int] | None = None,
        widths: Sequence[int | None] | None = None,
    ) -> Tensor:
        """Outputs (B, V), task after task.

        Parameters
        ----------
        x : Tensor (B, C, H, W)
        context : Tensor (B, Cc, Hc, Wc), optional
        seen : Tensor (B, task) of bool, optional
            Which tasks' subjects saw which stimuli; outputs for stimuli that one did not see may then be left at 0.
        only : sequence of int, optional
            Tasks to compute; outputs of the others are 0, without gradients.
        widths : sequence of int or None, optional
            For each task, of a slimmable core.
        """
        out = self._outputs(x, context, seen, only, widths or [None] * len(self.readouts))
        core: Any = self.core
        slim = getattr(core, "slim_widths", ())
        self._pull = None
        if self.training and slim and torch.is_grad_enabled():
            # The narrowest and one more: what lies between follows (Yu & Huang, 2019).
            drawn = {slim[0], slim[int(torch.randint(len(slim), (1,)))]}
            columns = [0] if seen is None else [k for k, size in enumerate(self.sizes) for _ in range(size)]
            count = len(x) if seen is None else seen.sum(0).clamp(min=1)[columns]
            errors = [self._outputs(x, context, seen, only, [w] * len(self.readouts)) - out.detach() for w in drawn]
            self._pull = core.distil * torch.stack([(e.square().sum(0) / count).sum() for e in errors]).mean()
        return out

    def _outputs(
        self, x: Tensor, context: Tensor | None, seen: Tensor | None, only: Any, widths: Sequence[int | None]
    ) -> Tensor:
        shared: dict[int | None, Tensor] = {}

        def read(number: int, rows: Tensor | None) -> Tensor:
            width = widths[number]
            if not self.conditioned and width not in shared:
                shared[width] = self.maps(x, width=width)
            some = x if rows is None else x[rows]
            maps = self.maps(some, number, width) if self.conditioned else shared[width]
            if rows is not None and not self.conditioned:
                maps = maps[rows]
            return self.readouts[number](maps, context if context is None or rows is None else context[rows])

        if len(self.readouts) == 1:
            return read(0, None)
        parts = []
        for number in range(len(self.readouts)):
            if only is not None and number not in only:
                parts.append(x.new_zeros(len(x), self.sizes[number]))
                continue
            rows = None if seen is None or bool(seen[:, number].all()) else torch.nonzero(seen[:, number])[:, 0]
            if rows is None:
                parts.append(read(number, None))
                continue
            # A readout without a stimulus takes part with one that counts for nothing: its parameters then have
            # gradients (of 0), which training on several devices needs.
            rows = rows if len(rows) else rows.new_zeros(1)
            some = read(number, rows)
            parts.append(some.new_zeros(len(x), some.shape[1]).index_copy(0, rows, some))
        return torch.cat(parts, dim=1)

    def regulariser(self, only: Sequence[int] | None = None) -> Tensor:
        """Sum of the penalties of the readouts (those of ``only`` some tasks), and of the core.

        The distance of slim widths' predictions to those of the last `forward` in training is one of the core's.
        """
        readouts = self.each if only is None else [self.each[k] for k in only]
        penalties = [part.regulariser() for part in (*readouts, self.core) if hasattr(part, "regulariser")]
        if self._pull is not None:
            penalties.append(self._pull)
            self._pull = None  # it holds the graph of a step
        return penalties[0] if len(penalties) == 1 else torch.stack(penalties).sum()

    def constrain(self) -> None:
        """Parameters of every readout, and of the core, back to where they are legal."""
        for part in (*self.each, self.core):
            if hasattr(part, "constrain"):
                part.constrain()

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
        found = []
        for number, readout in enumerate(self.each):
            if not number or self.conditioned:
                maps = torch.cat([self.maps(part, number) for part in x.split(batch_size)])
            found.append(readout.warp_spread(maps, context, batch_size))
        return {k: np.concatenate([f[k].cpu().numpy() for f in found]) for k in found[0]}


def build_module(
    readout: str,
    options: dict[str, Any] | None,
    core: Any,
    core_options: dict[str, Any] | None,
    in_shape: Shape,
    sizes: Sequence[int],
    *,
    tasks: Sequence[dict[str, str]] = (),
    spaces: Sequence[str] = (),
    context_shape: Shape | None = None,
    seed: int = 0,
    max_memory: int = 2**28,
) -> EncoderModule:
    """Core and one readout for each number of voxels in ``sizes``; first weights follow from ``seed``.

    ``tasks`` are the labels of each, ``spaces`` the feature space of every channel: for cores that take them.
    """
    given = dict(options or {})
    if context_shape is not None and "context_shape" in keywords(READOUTS[one_of("readout", readout, READOUTS)]):
        given.setdefault("context_shape", context_shape)
    from neuroenc.encoders.readout.cores import CORES

    known = keywords(CORES[core]) if isinstance(core, str) and core in CORES else ()
    labels = {name: value for name, value in (("tasks", tasks), ("spaces", spaces)) if name in known and len(value)}
    network, shape, extent = _make_core(core, {**labels, **(core_options or {})}, in_shape, seed)
    readouts = draw_readouts(readout, shape, sizes, seed, **{"max_memory": max_memory, **given})
    subjects = [next(iter(task.values()), "") for task in tasks]
    return EncoderModule(network, readouts, extent, subjects)


def draw_readouts(
    readout: str, shape: Shape, sizes: Sequence[int], seed: int, first: int = 0, **options: Any
) -> list[Readout]:
    """A readout for each number of voxels; ``first`` is the number of the first task.

    Option ``groups`` may hold a list for each readout.
    """
    groups = options.get("groups") or []
    each = [isinstance(part, list) for part in groups] == [True] * len(sizes)
    made = []
    with torch.random.fork_rng(devices=[]):
        for number, size in enumerate(sizes, first):
            # A seed of its own for each subject: who else is in the data does not change a subject's start.
            torch.manual_seed(int(np.random.SeedSequence([seed, number]).generate_state(1)[0]))
            own = {**options, "groups": groups[number - first]} if each else options
            made.append(make_readout(readout, shape, size, **own))
    return made


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
