"""Borda ranks and panels against independent implementations, labels, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.stats import rankdata, spearmanr
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.stats import borda, select_panel
from neuroenc.stats._panel import left_out


def table_of(n_models=20, n_tasks=12, noise=0.3, n_factors=3, seed=0):
    rng = np.random.default_rng(seed)
    ability = rng.standard_normal((n_models, n_factors))
    values = ability[:, np.arange(n_tasks) % n_factors] + noise * rng.standard_normal((n_models, n_tasks))
    return pd.DataFrame(values, [f"m{n}" for n in range(n_models)], [f"t{n}" for n in range(n_tasks)])


@pytest.mark.parametrize("p", [3, 12, 17, 18, 19, 25, 40])
def test_models_left_out_are_predicted_as_sklearn_does(p):
    rng = np.random.default_rng(p)
    X, y = rng.standard_normal((20, p)), rng.standard_normal(20)
    expected = cross_val_predict(LinearRegression(), X, y, cv=LeaveOneOut())
    assert left_out(X, y, 0.0) == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("p", [3, 19, 40])
def test_penalised_models_left_out_are_predicted_as_sklearn_does(p):
    rng = np.random.default_rng(p)
    X, y = rng.standard_normal((20, p)), rng.standard_normal(20)
    expected = cross_val_predict(Ridge(0.3 * (X**2).sum() / 20), X, y, cv=LeaveOneOut())
    assert left_out(X, y, 0.3) == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_borda_is_the_classical_count():
    table = table_of().round(1)  # with ties
    found = borda(table).set_index("model").loc[table.index]
    count = (len(table) - rankdata(-table.to_numpy(), axis=0)).sum(axis=1)
    assert found["points"].to_numpy() == pytest.approx(count / (len(table) - 1) / table.shape[1])
    assert found["rank"].to_numpy() == pytest.approx(rankdata(-count.round(9)))
    assert (found["low"] <= found["points"]).all()
    assert (found["points"] <= found["high"]).all()
    assert (found["rank_low"] <= found["rank"]).all()
    assert (found["rank"] <= found["rank_high"]).all()


def test_borda_does_not_depend_on_scale_or_order():
    table = table_of()
    other = (table * np.exp(np.arange(12)) + 5).sample(frac=1, random_state=0)
    first, second = borda(table), borda(other)
    pd.testing.assert_frame_equal(first, second)
    labelled = xr.DataArray(table.to_numpy().T, dims=("task", "model"), coords={"model": table.index})
    pd.testing.assert_frame_equal(first, borda(labelled.assign_coords(task=list(table.columns))))


def test_rank_intervals_hold_equal_models_together_and_tell_others_apart():
    rng = np.random.default_rng(3)
    level = np.repeat([0.0, 3.0], 4)[:, None]
    found = borda(pd.DataFrame(level + rng.standard_normal((8, 30)), list("abcdefgh")).rename(columns=str))
    best = found[found["model"].isin(list("efgh"))]
    assert best[["rank_low", "rank_high"]].to_numpy().tolist() == [[1, 4]] * 4
    assert (found[~found["model"].isin(list("efgh"))]["rank_low"] == 5).all()
    equal = borda(pd.DataFrame(rng.standard_normal((8, 30)), list("abcdefgh")).rename(columns=str))
    assert equal[["rank_low", "rank_high"]].to_numpy().tolist() == [[1, 8]] * 8


def test_missing_cells_are_refused_or_passed_over():
    table = table_of(5, 6)
    table.iloc[1, 2] = np.nan
    with pytest.raises(DataError, match="model 'm1' in task 't2'"):
        borda(table)
    found = borda(table, missing="skip").set_index("model")
    assert found.loc["m1", "n_tasks"] == 5
    rest = table["t2"].dropna().rank() - 1
    others = (table.drop(columns="t2").rank() - 1).loc["m0"] / 4
    assert found.loc["m0", "points"] == pytest.approx((others.sum() + rest["m0"] / 3) / 6)
    with pytest.raises(DataError, match="no score"):
        select_panel(table_of().where(lambda t: t > -2))


def test_grouped_tasks_are_resampled_together():
    table = pd.concat([table_of(6, 4).add_suffix(f"-{k}") for k in range(8)], axis=1)  # each task eight times
    alone = borda(table)
    whole = borda(table, groups={t: t.split("-")[0] for t in table.columns})
    assert ((whole["high"] - whole["low"]) > 1.3 * (alone["high"] - alone["low"])).mean() > 0.7
    with pytest.raises(DataError, match="unknown task 't0-0'"):
        borda(table, groups={t: t for t in table.columns if t != "t0-0"})


def test_selection_drops_the_most_predictable_first():
    table = table_of()
    found = select_panel(table, penalty=0.0, threshold=0.5)
    Z = ((table - table.mean()) / table.std(ddof=0)).to_numpy()
    r = [
        spearmanr(cross_val_predict(LinearRegression(), np.delete(Z, t, 1), Z[:, t], cv=LeaveOneOut()), Z[:, t])[0]
        for t in range(12)
    ]
    assert found.order["task"][0] == f"t{int(np.argmax(r))}"
    assert found.order["value"][0] == pytest.approx(max(r))
    assert (found.order["value"] >= 0.5).all()
    assert sorted([*found.order["task"], *found.tasks]) == sorted(table.columns)


def test_agreement_is_that_of_borda_points():
    table = table_of(30, 12)
    found = select_panel(table, held_out=[f"m{n}" for n in range(20, 30)])
    rest = table.iloc[20:]
    points = [(t.rank() - 1).mean(axis=1) for t in (rest, rest[found.tasks])]
    assert found.agreement == pytest.approx(spearmanr(*points)[0])
    assert found.low <= found.agreement <= found.high
    assert found.held_out
    assert "10 models held out" in found.statement


def test_last_task_of_a_kind_stays():
    table = table_of(noise=0.05)
    kinds = {t: ("rare" if t == "t0" else f"kind{n % 3}") for n, t in enumerate(table.columns)}
    assert "t0" in select_panel(table, factors=kinds).tasks
    both = pd.DataFrame({"kind": kinds, "half": {t: str(n // 6) for n, t in enumerate(table.columns)}})
    found = select_panel(table, factors=both)
    assert found.coverage["kept"].tolist() == found.coverage["n"].tolist() == [4, 2]


def test_unreliable_tasks_go_first_and_are_told():
    table = table_of()
    r = pd.Series(0.9, table.columns)
    r["t4"], r["t7"] = 0.5, 0.2
    found = select_panel(table, reliability=r, factors={t: "only" if t == "t4" else "others" for t in table.columns})
    assert found.order["task"][:2].tolist() == ["t7", "t4"]
    assert found.order["reason"][:2].tolist() == ["unreliable"] * 2
    assert found.coverage.iloc[0].tolist() == ["factor", 2, 1, "only"]
    rng = np.random.default_rng(0)
    halves = [table + 0.05 * rng.standard_normal(table.shape) for _ in range(2)]
    for half in halves:
        half["t3"] = rng.standard_normal(len(half))
    order = [half.sample(frac=1, random_state=1) for half in halves]
    again = select_panel(table, reliability=tuple(order)).order
    assert again["task"][again["reason"] == "unreliable"].tolist() == ["t3"]


def test_results_are_those_of_the_seed():
    table = table_of()
    assert select_panel(table, seed=1).statement == select_panel(table, seed=1).statement
    assert (select_panel(table, seed=1).random != select_panel(table, seed=2).random).any()


def test_what_is_no_table_is_refused():
    table = table_of()
    with pytest.raises(DataError, match="legal: a DataFrame"):
        borda([[1, 2], [3, 4]])
    with pytest.raises(DataError, match="task 't0' more than once"):
        borda(pd.concat([table, table], axis=1))
    with pytest.raises(ConfigError, match="did you mean 'm1'"):
        select_panel(table, held_out=["M1"])
    with pytest.raises(DataError, match="needs six"):
        select_panel(table.iloc[:5])
    with pytest.raises(ConfigError, match="threshold"):
        select_panel(table, threshold=2)
    with pytest.raises(ConfigError, match="penalty"):
        select_panel(table, penalty="none")
    with pytest.raises(DataError, match="have a reliability"):
        select_panel(table, reliability=dict.fromkeys(table.columns, 0.1))
    with pytest.raises(DataError, match="other models"):
        select_panel(table, reliability=(table, table.iloc[1:]))


@pytest.mark.slow
@pytest.mark.parametrize(("n_tasks", "gap"), [(5, 0.5), (12, 0.2), (30, 0.1)])
def test_rank_intervals_hold_the_rank_that_more_tasks_would_give(n_tasks, gap):
    """Of six models ``gap`` s.d. apart: at least 95 % of intervals, whose rule is on the safe side."""
    rng = np.random.default_rng(n_tasks)
    level = gap * np.arange(6.0)[:, None]
    inside = []
    for _ in range(150):
        table = pd.DataFrame(level + rng.standard_normal((6, n_tasks)), list("abcdef")).rename(columns=str)
        found = borda(table, n_bootstraps=500).set_index("model").loc[list("abcdef")]
        true = np.arange(6, 0, -1)
        inside.append((found["rank_low"] <= true) & (true <= found["rank_high"]))
    assert np.mean(inside) >= 0.95
