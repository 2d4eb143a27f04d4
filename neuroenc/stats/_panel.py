"""Tables of models by tasks: Borda ranks with intervals, and the reduction of many tasks to a small panel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from neuroenc._core.checks import check_fraction, check_whole, make_rng, one_of, share
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc.stats._blocks import Floats
from neuroenc.stats._intervals import sample_interval
from neuroenc.stats._resampling import draw_counts, unit_of

#: Penalties that `select_panel` chooses from, in units of the mean squared norm of a model's standardised scores.
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


def borda(
    scores: Any,
    *,
    missing: str = "refuse",
    groups: Any = None,
    n_bootstraps: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Borda ranks of models over tasks, with intervals from resampled tasks.

    A model's points are the share of the other models that it beats, a tie counting half, averaged over tasks,

    .. math:: b_m = \frac{1}{T} \sum_t \frac{\#\{k : s_{kt} < s_{mt}\} + \frac12 \#\{k \ne m : s_{kt} = s_{mt}\}}
              {M - 1}

    which orders models as the classical sum of :math:`M - rank` does, and does not depend on the scale of any score.
    The interval of a rank holds all ranks that differences of points leave open: one plus the number of models that
    are ahead, to M less the number of those that are behind, over paired resamples of tasks, each at
    :math:`1 - (1 - confidence) / (M - 1)`.

    Parameters
    ----------
    scores : DataFrame or DataArray (model, task)
        Higher is better.
    missing : {"refuse", "skip"}
        Of NaN cells. "skip": in each task the models that have a score there are compared, and a model's points are
        the mean over its own tasks. Models that were given the hard tasks alone are then not comparable with others.
    groups : sequence or mapping of task to label, optional
        Tasks that are no independent units, such as sessions of one animal: groups are resampled whole.
    n_bootstraps : int
    confidence : float
    seed : int

    Returns
    -------
    DataFrame
        One row a model, the best first: ``model, rank`` (ties share their mean rank), ``rank_low, rank_high, points,
        low, high, n_tasks``.

    Raises
    ------
    DataError
        Fewer than two models or tasks, a name that stands twice, NaN cells where they are refused, a model or task
        without any score.

    References
    ----------
    Enevoldsen et al. (2025), MMTEB, ICLR (Borda counts of models over tasks). Mogstad et al. (2024), Inference for
    ranks, Rev. Econ. Stud. 91:476.

    Examples
    --------
    >>> table = pd.DataFrame({"V1": [0.1, 0.3, 0.3], "V4": [0.2, 0.4, 0.3]}, index=["a", "b", "c"])
    >>> found = borda(table)
    >>> found["model"].tolist(), found["points"].tolist(), found["rank"].tolist()
    (['b', 'c', 'a'], [0.875, 0.625, 0.0], [1.0, 2.0, 3.0])
    """
    missing = one_of("missing", missing, ("refuse", "skip"))
    confidence = check_fraction("confidence", confidence)
    table = _table(scores, missing=missing)
    points, known = _points(table.to_numpy())
    n_models, n_tasks = points.shape
    labels = None if groups is None else _of_tasks(groups, table.columns, "groups")
    unit, n_units = unit_of(n_tasks, labels, least=2)
    make_rng(seed)
    weights = draw_counts(n_units, check_whole("n_bootstraps", n_bootstraps, 2), seed)[:, unit].astype(np.float64)
    mean = points.sum(axis=1) / known.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        drawn = (weights @ points.T) / (weights @ known.T)
    seen = np.array([len(np.unique(unit[row > 0])) for row in known])
    low, high, _ = sample_interval(drawn, mean, n_units=seen, confidence=confidence, bounds=(0.0, 1.0))
    ahead, behind = np.zeros(n_models, int), np.zeros(n_models, int)
    level = 1.0 - (1.0 - confidence) / (n_models - 1)
    for m in range(n_models):
        others = np.flatnonzero(np.arange(n_models) != m)
        gap = mean[others] - mean[m]
        below, above, _ = sample_interval(
            drawn[:, others] - drawn[:, [m]], gap, n_units=np.minimum(seen[others], seen[m]), confidence=level
        )
        ahead[m], behind[m] = int((below > 0).sum()), int((above < 0).sum())
    found = pd.DataFrame(
        {
            "model": table.index.to_numpy(dtype=str),
            "rank": rankdata(-mean.round(12)),
            "rank_low": 1 + ahead,
            "rank_high": n_models - behind,
            "points": mean,
            "low": low,
            "high": high,
            "n_tasks": known.sum(axis=1).astype(int),
        }
    )
    return found.sort_values(["rank", "model"], kind="stable", ignore_index=True)


@dataclass(frozen=True)
class SelectedPanel:
    """What `select_panel` kept, in which order it dropped the rest, and what that costs.

    Attributes
    ----------
    tasks : list of str
        Kept tasks, in the order of the table.
    order : DataFrame
        One row a dropped task, the first first: ``task``, ``reason`` ("unreliable" or "predictable") and ``value``
        (its reliability, or the Spearman r of its scores with those predicted).
    coverage : DataFrame
        One row a factor: ``factor, n`` (its values in the whole table), ``kept``, ``lost`` (names).
    agreement, low, high : float
        Spearman r over models of the Borda points on the panel and on the whole table, with its 95 % interval over
        models; NaN where every resample of the models agrees alike, as where r is 1.
    random : array (n_random,), float64
        The same of random panels.
    p : float
        Share of random panels that agree at least as well.
    held_out : bool
        Whether the models that agreement is measured on are others than those that chose the tasks.
    statement : str
        All of it in one sentence.
    """

    tasks: list[str]
    order: pd.DataFrame
    coverage: pd.DataFrame
    agreement: float
    low: float
    high: float
    random: Floats
    p: float
    held_out: bool
    statement: str


def select_panel(
    scores: Any,
    *,
    reliability: Any = None,
    factors: Any = None,
    threshold: float = 0.8,
    least_reliability: float = 0.8,
    penalty: float | str = "auto",
    held_out: Sequence[str] = (),
    n_random: int = 200,
    n_bootstraps: int = 2000,
    seed: int = 0,
) -> SelectedPanel:
    r"""Reduce many tasks to a small panel: drop, one after another, the task that the others predict best.

    First unreliable tasks go. Then each task's scores are predicted from those of the tasks that are left, by a linear
    regression that leaves out one model at a time,

    .. math:: \hat s_{mt} = a^{(-m)} + \sum_{u \ne t} w_u^{(-m)} s_{mu}

    the task of the highest Spearman r between predicted and true scores is dropped, unless it is the last of a value
    of a factor, until none reaches ``threshold`` or two tasks are left. What is kept are the tasks that the others do
    not tell about, so that every ability that the whole table measures stays measured; noise is not told by others
    either, which is why reliability comes first.

    A panel need not rank models better than one drawn at random. Where tasks are equally noisy it does not, and where
    abilities have unequal numbers of tasks it ranks them worse, because the whole table weighs abilities by their tasks
    and the panel does not. The result says which it is.

    Parameters
    ----------
    scores : DataFrame or DataArray (model, task)
        Higher is better; without NaN.
    reliability : mapping of task to float, or two tables like ``scores``, optional
        Split-half reliability of each task; of two tables, from the two halves of the stimuli, it is their correlation
        over models with the Spearman-Brown correction. None: no task is dropped for it.
    factors : Series, mapping of task to value, or DataFrame (task, factor), optional
        What tasks are of, such as data set, region and metric. The last task of a value is not dropped for being
        predictable (for being unreliable it is, and ``coverage`` tells).
    threshold : float
        Spearman r from which on a task is dropped.
    least_reliability : float
    penalty : float or "auto"
        Of a ridge on standardised scores, in units of the mean squared norm of a model's scores; 0 is ordinary least
        squares (of least norm, where tasks outnumber models). "auto": for each task that of `PENALTIES` with the least
        squared error over models left out. Ordinary regression predicts nothing where there are about as many tasks as
        models, and stops there.
    held_out : sequence of str
        Models that choose no task, for an agreement that nothing was chosen by.
    n_random, n_bootstraps, seed : int
        Random panels of the same size (and, with ``factors``, of as many tasks of each combination of values) among
        the reliable tasks; resamples of models.

    Raises
    ------
    DataError
        NaN cells, fewer than six models that choose or two that are held out, fewer than two reliable tasks, labels of
        reliability or factors that are not those of the tasks.
    ConfigError
        A threshold, penalty or name that is not legal.

    References
    ----------
    Enevoldsen et al. (2025), MMTEB: Massive multilingual text embedding benchmark, ICLR.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> ability = rng.standard_normal((30, 2))                              # two abilities, four tasks each
    >>> table = pd.DataFrame(ability[:, [0, 0, 0, 0, 1, 1, 1, 1]] + 0.1 * rng.standard_normal((30, 8)))
    >>> table = table.rename(index="model{}".format, columns="task{}".format)
    >>> found = select_panel(table, factors={f"task{t}": "ab"[t // 4] for t in range(8)})
    >>> len(found.tasks), found.coverage["kept"].tolist(), bool(found.agreement > 0.9)
    (2, [2], True)
    """
    table = _table(scores, missing="refuse")
    threshold, n_random = share("threshold", threshold), check_whole("n_random", n_random, 10)
    least = share("least_reliability", least_reliability)
    if penalty != "auto" and not (isinstance(penalty, (int, float)) and np.isfinite(penalty) and penalty >= 0):
        raise ConfigError(f"penalty={penalty!r} is not legal; legal are 'auto' and numbers of at least 0.")
    for name in held_out:
        if name not in table.index:
            raise ConfigError(unknown_name("model in held_out:", name, table.index))
    chooses = ~table.index.isin(list(held_out))
    if chooses.sum() < 6 or (len(held_out) and (~chooses).sum() < 2):
        raise DataError(
            f"{int(chooses.sum())} models choose and {int((~chooses).sum())} are held out; a regression over models "
            "needs six that choose, and a rank correlation two (better 20). Next step: rows of more models."
        )
    values = _factors(factors, table.columns)
    names = table.columns.to_numpy(dtype=str)
    reliable = np.ones(len(names), bool)
    dropped: list[tuple[str, str, float]] = []
    if reliability is not None:
        r = _reliability(reliability, table)
        reliable = r >= least
        for t in np.argsort(r, kind="stable")[: int((~reliable).sum())]:
            dropped.append((names[t], "unreliable", float(r[t])))
    if reliable.sum() < 2:
        raise DataError(
            f"{int(reliable.sum())} of {len(names)} tasks have a reliability of at least {least:g}; a panel needs two. "
            "Next step: a lower least_reliability, or scores from more stimuli."
        )
    own = table.to_numpy()[chooses]
    spread = own.std(axis=0)
    flat = spread <= 1e-12 * np.abs(own).max(axis=0, initial=0.0)
    Z = np.where(flat, 0.0, (own - own.mean(axis=0)) / np.where(flat, 1.0, spread))
    kept = np.flatnonzero(reliable).tolist()
    while len(kept) > 2:
        free = [t for t in kept if not _is_last(values, kept, t)]
        told = np.array([_predictability(Z, t, [u for u in kept if u != t], penalty) for t in free])
        if not len(free) or not np.max(told) >= threshold:
            break
        best = int(np.argmax(told))
        dropped.append((names[free[best]], "predictable", float(told[best])))
        kept.remove(free[best])
    tested = table.to_numpy()[~chooses if len(held_out) else chooses]
    how: dict[str, Any] = {"n_random": n_random, "n_bootstraps": n_bootstraps, "seed": seed}
    return _judged(names, kept, np.flatnonzero(reliable), dropped, values, tested, bool(len(held_out)), **how)


def _judged(
    names: Any,
    kept: list[int],
    pool: Any,
    dropped: list[tuple[str, str, float]],
    values: pd.DataFrame,
    tested: Floats,
    held_out: bool,
    *,
    n_random: int,
    n_bootstraps: int,
    seed: int,
) -> SelectedPanel:
    """The panel with its coverage, and its agreement beside that of random ones."""
    points = _points(tested)[0]
    whole, panel = rankdata(points.mean(axis=1)), rankdata(points[:, kept].mean(axis=1))
    rng = make_rng(seed)
    drawn = rng.integers(0, len(whole), (check_whole("n_bootstraps", n_bootstraps, 2), len(whole)))
    samples = _spearman(whole[drawn], panel[drawn])
    agreement = float(_spearman(whole[None], panel[None])[0])
    low, high = np.clip(sample_interval(samples, agreement, n_units=len(whole))[:2], -1.0, 1.0)
    if np.ptp(samples[np.isfinite(samples)]) < 1e-12:  # ranks that agree in every resample tell no width
        low = high = np.nan
    combined = values.agg(" & ".join, axis=1).to_numpy() if len(values.columns) else np.full(len(names), "")
    cells = {c: (pool[combined[pool] == c], int((combined[kept] == c).sum())) for c in dict.fromkeys(combined[kept])}
    random = np.empty(n_random)
    for k in range(n_random):
        chosen = np.concatenate([rng.choice(members, n, replace=False) for members, n in cells.values()])
        random[k] = _spearman(whole[None], rankdata(points[:, chosen].mean(axis=1))[None])[0]
    p = float((1 + (random >= agreement - 1e-12).sum()) / (1 + n_random))
    rows = []
    for factor in values.columns:
        every, left = list(dict.fromkeys(values[factor])), set(values[factor].iloc[kept])
        rows.append((str(factor), len(every), len(left), ", ".join(v for v in every if v not in left)))
    coverage = pd.DataFrame(rows, columns=["factor", "n", "kept", "lost"])
    order = pd.DataFrame(dropped, columns=["task", "reason", "value"])
    alike = " and numbers of tasks of each kind" if len(values.columns) else ""
    verdict = "better" if p <= 0.05 else "worse" if p >= 0.975 else "no better"
    who = "held out" if held_out else "that chose them"
    interval = f"{low:.3f} to {high:.3f}" if np.isfinite(low) else "too few models for an interval"
    statement = (
        f"{len(kept)} of {len(names)} tasks rank {len(whole)} models {who} as all tasks do with "
        f"Spearman r = {agreement:.3f} ({interval}); {n_random} random panels of "
        f"the same size{alike}: {random.mean():.3f} ({np.quantile(random, 0.025):.3f} to "
        f"{np.quantile(random, 0.975):.3f}); {verdict} than random panels (p = {p:.3f})."
    )
    kept_names = [str(names[t]) for t in sorted(kept)]
    return SelectedPanel(
        kept_names, order, coverage, agreement, float(low), float(high), random, p, held_out, statement
    )


def _table(scores: Any, *, missing: str) -> pd.DataFrame:
    """Models by tasks, float64, each name once."""
    if hasattr(scores, "dims") and hasattr(scores, "to_pandas"):
        if set(scores.dims) != {"model", "task"}:
            raise DataError(f"scores have dims {tuple(scores.dims)}; expected (model, task).")
        scores = scores.transpose("model", "task").to_pandas()
    if not isinstance(scores, pd.DataFrame):
        raise DataError(
            f"scores is a {type(scores).__name__}; legal: a DataFrame (models in rows, tasks in columns) or a "
            "DataArray (model, task)."
        )
    table = scores.rename(index=str, columns=str)
    for kind, names in (("model", table.index), ("task", table.columns)):
        if len(names) < 2:
            raise DataError(f"scores have {len(names)} {kind}s; a ranking needs at least two.")
        if names.has_duplicates:
            raise DataError(f"scores name {kind} {names[names.duplicated()][0]!r} more than once.")
    try:
        table = table.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"scores hold what is no number: {error}.") from None
    unknown = table.isna().to_numpy()
    if np.isinf(table.to_numpy()).any():
        raise DataError("scores hold infinite values.")
    if unknown.any() and missing == "refuse":
        m, t = (int(k[0]) for k in np.nonzero(unknown))
        raise DataError(
            f"{int(unknown.sum())} of {unknown.size} cells have no score; the first is model {table.index[m]!r} in "
            f"task {table.columns[t]!r}. Next step: leave such models or tasks out, or (ranks) missing='skip'."
        )
    for kind, axis, names in (("model", 1, table.index), ("task", 0, table.columns)):
        known = (~unknown).sum(axis=axis)
        need = 1 if kind == "model" else 2
        if (known < need).any():
            raise DataError(
                f"{kind} {names[int(np.argmax(known < need))]!r} has {int(known.min())} scores; it needs {need}. "
                "Next step: leave it out."
            )
    return table


def _points(values: Floats) -> tuple[Floats, Floats]:
    """Share of the other models beaten (model, task), 0 where there is no score, and where there is one."""
    known = ~np.isnan(values)
    points = np.zeros(values.shape)
    for t in range(values.shape[1]):
        rows = known[:, t]
        points[rows, t] = (rankdata(values[rows, t]) - 1.0) / max(int(rows.sum()) - 1, 1)
    return points, known.astype(np.float64)


def _spearman(a: Floats, b: Floats) -> Floats:
    """Of each row; NaN where one is constant."""
    x, y = (rankdata(v, axis=1) - (v.shape[1] + 1) / 2.0 for v in (a, b))
    norm = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((x * y).sum(axis=1) / np.where(norm > 0, norm, np.nan))


def left_out(X: Floats, y: Floats, penalty: float) -> Floats:
    """Prediction of each row of ``y`` (n,) from ``X`` (n, p) by a ridge with free intercept fitted on the other rows.

    In closed form, from one fit on all rows. The penalty is in units of the mean squared norm of rows; 0 is least
    squares, of least norm where there are several.
    """
    n, p = X.shape
    if penalty == 0 and p <= n - 2:
        u, s, _ = np.linalg.svd(X - X.mean(axis=0), full_matrices=False)
        u = u[:, s > 1e-10 * s[0]] if s[0] > 0 else u[:, :0]
        leverage = 1.0 / n + (u**2).sum(axis=1)
        residual = y - y.mean() - u @ (u.T @ y)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(y - residual / np.where(leverage < 1 - 1e-10, 1.0 - leverage, np.nan))
    kernel = X @ X.T
    scale = float(np.trace(kernel)) / n
    system = np.ones((n + 1, n + 1))
    system[:n, :n] = kernel / (scale if scale > 0 else 1.0) + penalty * np.eye(n)
    system[n, n] = 0.0
    inverse = np.linalg.pinv(system, hermitian=True) if penalty == 0 else np.linalg.inv(system)
    return np.asarray(y - (inverse[:n, :n] @ y) / np.diag(inverse)[:n])


def _predictability(Z: Floats, task: int, others: list[int], penalty: float | str) -> float:
    """Spearman r over models of a task's scores and those predicted from other tasks; -1 where there is none."""
    X, y = Z[:, others], Z[:, task]
    tried = [left_out(X, y, float(x)) for x in (PENALTIES if penalty == "auto" else (penalty,))]
    best = min(tried, key=lambda found: float(((found - y) ** 2).sum()))
    r = float(_spearman(best[None], y[None])[0]) if np.isfinite(best).all() else np.nan
    return r if np.isfinite(r) else -1.0


def _of_tasks(values: Any, tasks: Any, what: str) -> Any:
    """One value a task, by label where there are labels."""
    if isinstance(values, (Mapping, pd.Series)):
        named = {str(k): v for k, v in dict(values).items()}
        for name in tasks:
            if name not in named:
                raise DataError(f"{what}: " + unknown_name("task", name, named, "Every task of the scores needs one."))
        return np.array([named[name] for name in tasks])
    found = np.asarray(values)
    if found.shape != (len(tasks),):
        raise DataError(f"{what} has shape {found.shape}; legal is one value for each of {len(tasks)} tasks.")
    return found


def _factors(factors: Any, tasks: Any) -> pd.DataFrame:
    if factors is None:
        return pd.DataFrame(index=tasks)
    if isinstance(factors, pd.DataFrame):
        return pd.DataFrame({str(c): _of_tasks(factors[c], tasks, f"factor {c!r}") for c in factors}).astype(str)
    name = str(getattr(factors, "name", None) or "factor")
    return pd.DataFrame({name: _of_tasks(factors, tasks, "factors")}).astype(str)


def _is_last(values: pd.DataFrame, kept: list[int], task: int) -> bool:
    """Whether no other kept task has the task's value of some factor."""
    held = values.iloc[kept]
    return any(int((held[c] == values[c].iloc[task]).sum()) == 1 for c in values.columns)


def _reliability(reliability: Any, table: pd.DataFrame) -> Floats:
    """Of each task; of two tables the correlation of their columns, for both halves together."""
    if isinstance(reliability, (tuple, list)) and len(reliability) == 2 and np.ndim(reliability[0]) == 2:
        halves = [_table(half, missing="refuse") for half in reliability]
        for half in halves:
            for kind, mine, theirs in (("model", table.index, half.index), ("task", table.columns, half.columns)):
                if set(mine) != set(theirs):
                    odd = sorted(set(mine) ^ set(theirs))
                    raise DataError(f"a half of the scores has other {kind}s than the scores: {', '.join(odd[:3])}.")
        a, b = (half.loc[table.index, table.columns].to_numpy() for half in halves)
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        norm = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
        r = np.where(norm > 0, (a * b).sum(axis=0) / np.where(norm > 0, norm, 1.0), 0.0)
        return np.asarray(np.where(r > 0, 2.0 * r / (1.0 + np.abs(r)), 0.0))
    found = np.asarray(_of_tasks(reliability, table.columns, "reliability"), dtype=np.float64)
    return np.where(np.isfinite(found), found, 0.0)
