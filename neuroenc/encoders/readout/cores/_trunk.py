"""Trunk shared by many tasks (subject x region): conditioned by task, with experts, or slimmable."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from neuroenc._core.checks import check_whole, one_of
from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc.encoders.readout.cores._core import Core, register_core

#: What a trunk gives each task of its own.
CONDITIONING = ("none", "affine+gate", "experts")


def channel_spaces(spaces: Any, n_channels: int) -> tuple[list[str], list[int]]:
    """Names of feature spaces, and the space of every channel.

    Parameters
    ----------
    spaces : int, mapping, sequence of str or None
        Number of blocks of channels of equal size, sizes by name, or the name of every channel; None is one space.

    Examples
    --------
    >>> channel_spaces({"early": 1, "late": 2}, 3)
    (['early', 'late'], [0, 1, 1])
    """
    if spaces is None:
        spaces = 1
    if isinstance(spaces, Mapping):
        each = [str(name) for name, size in spaces.items() for _ in range(int(size))]
    elif isinstance(spaces, Sequence) and not isinstance(spaces, str):
        each = [str(name) for name in spaces]
    else:
        check_whole("spaces", spaces)
        each = [f"channels{k * spaces // n_channels}" for k in range(n_channels)] if spaces <= n_channels else []
    if len(each) != n_channels:
        raise ConfigError(
            f"spaces={spaces!r} names {len(each)} channels; the features have {n_channels}. Next step: sizes that add "
            "up to it, such as {'early': 96, 'late': 160}, or a number of equal blocks."
        )
    names = list(dict.fromkeys(each))
    return names, [names.index(name) for name in each]


@register_core
class TrunkCore(Core):
    r"""Trunk of 1 x 1 layers that many tasks share, a task being a subject's region.

    .. math:: z = A\,\big(g_k \odot (\gamma_k \odot x + \beta_k)\big), \qquad
              z \leftarrow z + F_{e(k)}\big(\gamma'_k \odot \mathrm{LN}(z) + \beta'_k\big), \qquad \mathrm{core}(x) = Bz

    with F a feed-forward network. One trunk serves all tasks; ``conditioning`` says what each has of its own:

    - "none": nothing. Tasks that want opposite features of a narrow trunk hurt each other.
    - "affine+gate": a hypernetwork emits the affine maps :math:`\gamma_k, \beta_k` of the inputs and of every layer
      norm from an embedding of the task, and a squeeze-and-excitation gate :math:`g_k` in (0, 1) weighs the feature
      spaces: :math:`g_k = \sigma(W_2\,\mathrm{relu}(W_1 [e_k; s]))`, s the mean over places of every channel.
    - "experts": a feed-forward network for every value of the voxel coordinate ``experts``; the task decides which.

    Parameters
    ----------
    in_shape : (int, int, int)
        Channels, height, width.
    tasks : sequence of mapping
        Labels of every task, such as ``{"subject": "s1", "roi": "V1"}``; `ReadoutEncoder` passes them.
    width : int
        Channels inside and of the map that readouts read.
    depth, expand : int
        Feed-forward blocks, and their hidden units in units of ``width``.
    conditioning : {"none", "affine+gate", "experts"}
    spaces : int, mapping or sequence of str, optional
        Feature spaces that gates weigh: a number of equal blocks of channels, sizes by name, or a name for every
        channel. `ReadoutEncoder` passes the coordinate ``space`` of the features' channels, if there is one.
    embedding : int
        Length of a task's embedding.
    squeeze : bool
        Whether gates look at the stimulus besides the task. On planted conflict that costs accuracy, so that it is off.
    affine_l2 : float
        Penalty on affine maps away from the identity, without which they take over what gates are for.
    experts : str
        Voxel coordinate that names a task's expert, such as "subject", "roi" or a data set.
    upcycle : int
        Steps for which all experts are one dense network, each then beginning as its copy; 0 starts them apart.
    widths : sequence of int
        Narrower widths that the trained trunk can also run at, each the first channels and hidden units of ``width``.
        In training the narrowest and a random one are pulled towards the predictions of the full width (in-place
        distillation); `ReadoutEncoder.predict` then takes ``widths=``.
    distil : float
        Weight of that pull.

    Raises
    ------
    ConfigError
        Sizes below 1, an unknown conditioning, spaces that do not make up the channels.

    References
    ----------
    Deep task-specific bottom representation network (CIKM 2023); mixture of experts with enforced routing and sparse
    upcycling (Komatsuzaki et al., 2023, ICLR).

    Examples
    --------
    >>> tasks = [{"subject": "s1", "roi": "V1"}, {"subject": "s1", "roi": "FFA"}]
    >>> core = TrunkCore((12, 5, 5), tasks=tasks, width=8, conditioning="affine+gate", spaces={"early": 4, "late": 8})
    >>> core(torch.zeros(2, 12, 5, 5), task=1).shape, core.gates().shape
    (torch.Size([2, 8, 5, 5]), torch.Size([2, 2]))
    """

    name: ClassVar[str] = "trunk"
    space_of: Tensor
    steps: Tensor

    def __init__(
        self,
        in_shape: Sequence[int],
        *,
        tasks: Sequence[Mapping[str, Any]] = ({},),
        width: int = 64,
        depth: int = 1,
        expand: int = 2,
        conditioning: str = "none",
        spaces: Any = None,
        embedding: int = 8,
        squeeze: bool = False,
        affine_l2: float = 0.1,
        experts: str = "subject",
        upcycle: int = 0,
        widths: Sequence[int] = (),
        distil: float = 1.0,
    ) -> None:
        super().__init__(in_shape)
        for name, value in {"width": width, "depth": depth, "expand": expand, "embedding": embedding}.items():
            check_whole(name, value)
        check_whole("upcycle", upcycle, least=0)
        one_of("conditioning", conditioning, CONDITIONING)
        channels, height, wide = self.in_shape
        self.conditioning, self.depth, self.width, self.squeeze = conditioning, depth, width, bool(squeeze)
        self.affine_l2, self.upcycle = float(affine_l2), upcycle
        self.slim_widths, self.distil = tuple(sorted(int(w) for w in widths)), float(distil)
        if self.slim_widths and not 0 < self.slim_widths[0] <= self.slim_widths[-1] < width:
            raise ConfigError(f"widths={list(widths)} must lie between 1 and width={width}, the full one left out.")
        self.out_shape = (width, height, wide)
        self.tasks = [dict(task) for task in tasks]
        self.spaces, of_channel = channel_spaces(spaces, channels)
        self.register_buffer("space_of", torch.tensor(of_channel), persistent=False)
        self.experts, self.expert_name = [""], experts
        if conditioning == "experts":
            lost = [task for task in self.tasks if experts not in task]
            if lost:
                raise ConfigError(unknown_name("coordinate of experts:", experts, lost[0]))
            self.experts = list(dict.fromkeys(str(task[experts]) for task in self.tasks))
        self.route = tuple(
            self.experts.index(str(task.get(experts, ""))) if len(self.experts) > 1 else 0 for task in tasks
        )
        self.into = _drawn(width, channels)
        self.into_bias = nn.Parameter(torch.zeros(width))
        self.networks = nn.ModuleList(_Network(width, expand * width, depth) for _ in self.experts)
        self.out = _drawn(width, width)
        if len(self.experts) > 1 and upcycle:
            self.register_buffer("steps", torch.zeros(1, dtype=torch.int64))
            self._copy_expert()
        if conditioning == "affine+gate":
            self.sizes = [channels] + [width] * depth
            self.embedding = nn.ParameterList(torch.randn(embedding) for _ in self.tasks)
            self.emit = nn.Parameter(torch.randn(2 * sum(self.sizes), embedding) * 1e-2)
            seen = embedding + (channels if squeeze else 0)
            layers = nn.Linear(seen, 2 * embedding), nn.ReLU(), nn.Linear(2 * embedding, len(self.spaces))
            self.gate = nn.Sequential(*layers)
            if squeeze:  # begins as a gate of the task alone
                with torch.no_grad():
                    layers[0].weight[:, embedding:] = 0

    @property
    def conditioned(self) -> bool:
        """Whether maps depend on the task."""
        return self.conditioning != "none"

    def forward(self, x: Tensor, task: int = 0, width: int | None = None) -> Tensor:
        """Maps of ``x`` for one task, by its number in ``tasks``, computed at one of ``widths`` (default the full one).

        Parameters
        ----------
        x : Tensor (B, C, H, W)
        task : int
        width : int, optional

        Returns
        -------
        Tensor (B, width, H, W)
            Of the full width always, so that readouts can read it.
        """
        self.check(x)
        return self.run(x, task, width)

    def run(self, x: Tensor, task: int = 0, width: int | None = None) -> Tensor:
        """Maps of checked inputs."""
        w = self.width if width is None else width
        z = x.flatten(2).transpose(1, 2)
        affine = self._affine(task)
        if affine:
            scale, shift = affine[0]
            gates = self._gate(task, x if self.squeeze else None)
            z = (scale * z + shift) * gates[:, None, self.space_of]
        z = functional.linear(z, self.into[:w], self.into_bias[:w])
        network = self.networks[0 if self._dense else self.route[task]]
        for k in range(self.depth):
            normed = functional.layer_norm(z, z.shape[-1:])
            if affine:
                scale, shift = affine[k + 1]
                normed = scale[:w] * normed + shift[:w]
            z = z + network(normed, k)
        z = functional.linear(z, self.out[:, :w])
        return z.transpose(1, 2).unflatten(2, x.shape[2:])

    def _affine(self, task: int) -> list[tuple[Tensor, Tensor]]:
        """Scale and shift of the inputs and of every layer norm; empty where tasks have none."""
        if self.conditioning != "affine+gate":
            return []
        scales, shifts = (self.emit @ self.embedding[task]).chunk(2)
        return [(1 + a, b) for a, b in zip(scales.split(self.sizes), shifts.split(self.sizes))]

    def _gate(self, task: int, x: Tensor | None) -> Tensor:
        """Gates (B, space) of a task; (1, space) without a stimulus."""
        seen = self.embedding[task][None]
        if x is not None:
            seen = torch.cat([seen.expand(len(x), -1), x.mean((2, 3))], 1)
        return self.gate(seen).sigmoid()

    @torch.no_grad()
    def gates(self) -> Tensor:
        """Gates (task, space), those of the mean stimulus where they look at stimuli (inputs are standardised)."""
        if self.conditioning != "affine+gate":
            raise ConfigError(
                f"a trunk with conditioning {self.conditioning!r} has no gates. Next step: conditioning='affine+gate'."
            )
        mean = self.emit.new_zeros(1, *self.in_shape) if self.squeeze else None
        return torch.cat([self._gate(task, mean) for task in range(len(self.tasks))])

    def regulariser(self) -> Tensor:
        """Penalty on affine maps away from the identity, mean over tasks."""
        if self.conditioning != "affine+gate" or not self.affine_l2:
            return self.into.new_zeros(())
        return self.affine_l2 * (torch.stack(list(self.embedding)) @ self.emit.T).square().sum(1).mean()

    @property
    def _dense(self) -> bool:
        return self.upcycle > 0 and len(self.experts) > 1 and int(self.steps) < self.upcycle

    def constrain(self) -> None:
        """After a step: while the trunk is still dense, every expert is the same."""
        if self._dense:
            self._copy_expert()
            self.steps += 1

    def _copy_expert(self) -> None:
        for network in self.networks[1:]:
            network.load_state_dict(self.networks[0].state_dict())

    @torch.no_grad()
    def add_tasks(self, tasks: Sequence[Mapping[str, Any]], like: Sequence[Mapping[int, float]]) -> list[nn.Parameter]:
        """Add tasks, each begun as a weighted mean of others (``like``: weights by number); what is theirs alone.

        Embeddings of tasks and experts are parameters of their own, so that those of the other tasks stay as they are.
        """
        new: list[nn.Parameter] = []
        for task, weights in zip(tasks, like):
            label = str(task.get(self.expert_name, ""))
            if self.conditioning == "experts" and label not in self.experts:
                states = [(self.networks[self.route[k]].state_dict(), weight) for k, weight in weights.items()]
                self.networks.append(copy.deepcopy(self.networks[0]))
                mean = {name: sum(weight * state[name] for state, weight in states) for name in states[0][0]}
                self.networks[-1].load_state_dict(mean)
                self.experts.append(label)
                new += self.networks[-1].parameters()
            if self.conditioning == "affine+gate":
                self.embedding.append(torch.stack([weight * self.embedding[k] for k, weight in weights.items()]).sum(0))
                new.append(self.embedding[-1])
            self.tasks.append(dict(task))
            self.route = (*self.route, self.experts.index(label) if self.conditioning == "experts" else 0)
        return new


class _Network(nn.Module):
    """Feed-forward networks of all blocks: one expert."""

    def __init__(self, width: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.up = nn.ParameterList(_drawn(hidden, width) for _ in range(depth))
        self.up_bias = nn.ParameterList(torch.zeros(hidden) for _ in range(depth))
        self.down = nn.ParameterList(_drawn(width, hidden) for _ in range(depth))
        self.down_bias = nn.ParameterList(torch.zeros(width) for _ in range(depth))

    def forward(self, z: Tensor, block: int) -> Tensor:
        """``down gelu(up z)`` of a block, for the first channels where there are fewer."""
        w = z.shape[-1]
        n = w * len(self.up[block]) // self.up[block].shape[1]
        hidden = functional.gelu(functional.linear(z, self.up[block][:n, :w], self.up_bias[block][:n]))
        return functional.linear(hidden, self.down[block][:w, :n], self.down_bias[block][:w])


def _drawn(*shape: int) -> nn.Parameter:
    """First weights (out, in) with variance 1 / in."""
    return nn.Parameter(torch.randn(*shape) / shape[-1] ** 0.5)
