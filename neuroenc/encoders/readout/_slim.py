"""Widths of a slimmable trunk: what each costs and is worth, and which to take for whom."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from neuroenc import stats
from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.encoders.readout._losses import Loss
from neuroenc.encoders.readout._maps import Maps
from neuroenc.encoders.readout._protocol import EncoderModule
from neuroenc.encoders.readout._train import predict_maps

_MOST = 200_000


def task_widths(widths: Any, tasks: Sequence[dict[str, str]], core: Any) -> list[int | None]:
    """Width of every task; None is the full one."""
    known = [*getattr(core, "slim_widths", ()), getattr(core, "width", 0)]
    if len(known) < 2:
        raise ConfigError("this encoder has one width. Next step: core='trunk', core_options={'widths': [8, 16]}.")
    given = widths if isinstance(widths, Mapping) else {"": widths}
    for width in given.values():
        if width not in known:
            raise ConfigError(f"width {width!r} is not one of {known}, at which the trunk was trained.")
    names = [{"", "/".join(task.values()), *task.values()} for task in tasks]
    for name in given:
        if not any(name in own for own in names):
            raise ConfigError(unknown_name("name in widths:", str(name), sorted(set().union(*names) - {""})))
    # The most exact name that a task has decides.
    found = [max((str(n) for n in given if n in own), key=len, default=None) for own in names]
    return [None if name is None else int(given[name]) for name in found]


def time_widths(
    model: EncoderModule,
    tasks: Sequence[dict[str, str]],
    by: str,
    maps: Maps,
    context: Maps | None,
    measured: np.ndarray,
    loss: Loss,
    batch_size: int,
) -> pd.DataFrame:
    """R2 (mean over voxels) and seconds an image of every group of tasks at every width."""
    core: Any = model.core
    task_widths(core.width if hasattr(core, "width") else 0, tasks, core)
    if by and any(by not in task for task in tasks):
        raise ConfigError(unknown_name("by:", by, sorted(tasks[0])))
    groups = list(dict.fromkeys(task.get(by, "all") for task in tasks))
    owner = np.repeat([groups.index(task.get(by, "all")) for task in tasks], model.sizes)
    rows, found = torch.arange(len(maps)), []
    for number, group in enumerate(groups):
        only = [k for k, task in enumerate(tasks) if task.get(by, "all") == group]
        for width in (*core.slim_widths, core.width):
            how: dict[str, Any] = {"only": only, "widths": [width] * len(tasks)}
            seconds = []
            for _ in range(3):
                begin = time.perf_counter()
                out = loss.response(predict_maps(model, maps, context, rows, batch_size, **how)).cpu().numpy()
                seconds.append((time.perf_counter() - begin) / len(rows))
            own = owner == number
            r2 = float(np.nanmean(stats.score(measured[:, own], out[:, own], "r2")))
            found.append({"group": group, "width": width, "r2": r2, "seconds": min(seconds)})
    return pd.DataFrame(found)


def search_widths(table: pd.DataFrame, *, preference: Mapping[str, float], budget: float) -> dict[str, int]:
    r"""Search the widths of regions that give the best preferred R2 within a time for every image.

    .. math:: \max_w \sum_g p_g R^2_g(w_g) \quad \text{with} \quad \sum_g t_g(w_g) \le \text{budget}

    Nothing is fitted again: all widths are prefixes of one trunk.

    Parameters
    ----------
    table : DataFrame
        ``group, width, r2, seconds``, as `ReadoutEncoder.width_table` gives it.
    preference : mapping of group to weight
        Such as ``{"FFA": 0.8, "V1": 0.2}``; groups that are not named weigh nothing and get the cheapest width.
    budget : float
        Seconds an image, over all groups.

    Returns
    -------
    dict
        Width of every group, for ``predict(X, widths=...)``.

    Raises
    ------
    ConfigError
        Unknown groups, negative weights, a budget that the cheapest widths exceed, or too many combinations.

    Examples
    --------
    >>> rows = [("FFA", 8, 0.2, 1e-4), ("FFA", 32, 0.4, 3e-4), ("V1", 8, 0.1, 1e-4), ("V1", 32, 0.4, 3e-4)]
    >>> table = pd.DataFrame(rows, columns=["group", "width", "r2", "seconds"])
    >>> search_widths(table, preference={"FFA": 0.8, "V1": 0.2}, budget=4e-4)
    {'FFA': 32, 'V1': 8}
    """
    lost = {"group", "width", "r2", "seconds"} - set(table)
    if lost:
        raise DataError(f"the table lacks {sorted(lost)}. Next step: encoder.width_table(X, Y).")
    groups = list(dict.fromkeys(table["group"]))
    for name, weight in preference.items():
        one_of("group in preference:", name, groups)
        if not (np.isfinite(weight) and weight >= 0):
            raise ConfigError(f"preference of {name!r} is {weight}; expected 0 or more.")
    choices = [table[table["group"] == group].to_dict("records") for group in groups]
    if np.prod([float(len(c)) for c in choices]) > _MOST:
        raise ConfigError(
            f"{len(groups)} groups have more than {_MOST} combinations. Next step: width_table(by='roi')."
        )
    weights = [float(preference.get(group, 0)) for group in groups]
    best: tuple[float, float, dict[str, int]] | None = None
    for rows in itertools.product(*choices):
        cost = sum(row["seconds"] for row in rows)
        value = sum(w * row["r2"] for w, row in zip(weights, rows))
        if cost <= budget and (best is None or (value, -cost) > best[:2]):
            best = value, -cost, {group: int(row["width"]) for group, row in zip(groups, rows)}
    if best is None:
        least = sum(min(row["seconds"] for row in rows) for rows in choices)
        raise ConfigError(f"budget={budget:g} s an image; the cheapest widths need {least:g}. Next step: a larger one.")
    return best[2]
