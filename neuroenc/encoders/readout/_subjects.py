"""A new subject behind the core of a fitted encoder, which stays what it is for the others."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.encoders._labels import sample_coords, voxel_coords
from neuroenc.encoders.readout._linear import solve_ridge
from neuroenc.encoders.readout._losses import make_loss
from neuroenc.encoders.readout._maps import Maps, as_maps
from neuroenc.encoders.readout._protocol import EncoderModule, draw_readouts
from neuroenc.encoders.readout._targets import masked_responses, task_columns
from neuroenc.encoders.readout.cores import TrunkCore


class Through:
    """Maps behind the core for one task, read as `Maps` are."""

    def __init__(self, model: EncoderModule, maps: Maps, task: int) -> None:
        self.model, self.maps, self.task = model, maps, task

    def __len__(self) -> int:
        return len(self.maps)

    @torch.no_grad()
    def rows(self, rows: Tensor) -> Tensor:
        """Maps of some rows."""
        return self.model.maps(self.maps.rows(rows), self.task)


def coords_of(responses: Any, known: dict[str, Any] | None, subjects: str | None) -> dict[str, Any]:
    """Voxel coordinates of a new subject's responses, ``subject`` spread over voxels where it is one label."""
    found = voxel_coords(responses)
    if found is None or known is None or subjects is None:
        raise DataError(
            "a new subject is told from others by labels, which the responses or this encoder's voxels lack. Next "
            "step: responses (stimulus, voxel) with a coordinate 'subject', at fit and here."
        )
    if subjects not in found and subjects in responses.coords and not responses[subjects].ndim:
        found[subjects] = ("voxel", np.repeat(responses[subjects].values, responses.shape[1]))
    lost = sorted({subjects, "voxel"} & set(known) - set(found))
    if lost:
        raise DataError(f"the new responses lack the voxel coordinate {lost[0]!r}, which this encoder's voxels have.")
    return found


def begin_like(
    tasks: list[dict[str, str]], known: list[dict[str, str]], subjects: str, start: Any
) -> list[dict[int, float]]:
    """Weights of known tasks that each new one begins as: those of the same region of the subjects in ``start``."""
    names = sorted({task[subjects] for task in known if subjects in task})
    given = {str(start): 1.0} if isinstance(start, str) else dict(start or dict.fromkeys(names, 1.0))
    for name in given:
        if name not in names:
            raise ConfigError(unknown_name("subject in start=", str(name), names))
    found = []
    for task in tasks:
        place = {k: v for k, v in task.items() if k != subjects}
        same = [k for k, one in enumerate(known) if place == {n: v for n, v in one.items() if n != subjects}]
        weights = {k: float(given.get(known[k].get(subjects, ""), 0)) for k in (same or range(len(known)))}
        total = sum(weights.values())
        if not np.isfinite(total) or total <= 0:
            raise ConfigError(f"start={start!r} gives task {task} no weight. Next step: a subject that has the region.")
        found.append({k: w / total for k, w in weights.items() if w})
    return found


def fit_addition(
    encoder: Any, X: Any, Y: Any, start: Any, maps: Maps, context: Maps | None, ridge: dict[str, Any]
) -> tuple[EncoderModule, list[dict[str, str]], np.ndarray, dict[str, Any]]:
    """Core with the new tasks and their fitted readouts, the tasks, the columns of their voxels, and coordinates.

    The encoder is left as it is: its core is copied. ``ridge`` are settings of closed forms.
    """
    voxels = coords_of(Y, encoder._voxels_, encoder.subjects)
    values = masked_responses(X, Y, as_maps(X), voxels)
    known, options = encoder.tasks_, encoder.core_options or {}
    also = str(options.get("experts", "subject")) if options.get("conditioning") == "experts" else ""
    names = encoder.subjects, encoder.regions
    tasks, columns = task_columns(voxels, *names, values.shape[1], also=also)
    twice = sorted({task[encoder.subjects] for task in tasks} & {str(task.get(encoder.subjects)) for task in known})
    if twice:
        raise ConfigError(
            f"this encoder knows subject {twice[0]!r} already. Next step: another label, or fit on all its responses."
        )
    core, old = copy.deepcopy(encoder.model_.core), encoder.model_.each
    own: list[nn.Parameter] = []
    if isinstance(core, TrunkCore) and core.conditioned:
        own = core.add_tasks(tasks, begin_like(tasks, known, encoder.subjects, start))
    elif start is not None:
        raise ConfigError(
            f"start={start!r} is where a trunk's conditioning begins; core {encoder.core!r} has none. Next step: "
            "start=None."
        )
    more = {"max_memory": old[0].max_memory, **(encoder.readout_options or {})}
    if encoder.context_shape_ is not None and hasattr(old[0], "localization"):
        more.setdefault("context_shape", encoder.context_shape_)
    sizes = [len(c) for c in columns]
    readouts = draw_readouts(encoder.readout, old[0].in_shape, sizes, encoder.seed, len(known), **more)
    subjects = [task[encoder.subjects] for task in tasks]
    module = EncoderModule(core, readouts, encoder.model_.extent, subjects, first=len(known))
    free = [] if core is None else [p for p in core.parameters() if p.requires_grad]
    closed = encoder._able() and encoder.solver != "gradient"
    for parameter in free:
        parameter.requires_grad_(not closed and any(parameter is p for p in own))
    order = np.concatenate(columns)
    module.to(maps.device)
    values, coords = values[:, order], sample_coords(Y, X)
    if closed:
        for task, part in enumerate(np.split(np.arange(len(order)), np.cumsum(sizes)[:-1])):
            through: Any = maps if core is None else Through(module, maps, task)
            solve_ridge(module.each[task], through, values[:, part], coords, encoder.cv, **ridge)
    else:
        # Statistics of a core's batch normalisation are the others' too.
        still = core is not None and not own and not getattr(core, "frozen", False)
        if still:
            core.frozen = True
        share = encoder.validation if isinstance(encoder.validation, (float, np.floating)) else 0.1
        held = encoder._held(share, sizes, values, coords)
        encoder._descend(module, maps, context, values, held, make_loss(encoder.loss), None, order)
        if still:
            core.frozen = False
    for parameter in free:
        parameter.requires_grad_(True)
    return module, tasks, order, voxels
