"""The result of a comparison and its files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc import stats
from neuroenc._core import tables
from neuroenc._core.checks import one_of
from neuroenc._core.errors import ConfigError, DataError, unknown_name
from neuroenc._core.files import write_json
from neuroenc._core.store import Store
from neuroenc.data import save
from neuroenc.encoders._width import sweep_dataset
from neuroenc.encoders.comparison import _statistics as statistics
from neuroenc.encoders.comparison._grid import JOINT, Cell, Fitted, Job
from neuroenc.encoders.comparison._joint import structured_partition
from neuroenc.encoders.comparison._layer_dims import KIND as WIDTHS
from neuroenc.encoders.comparison._profiles import (
    REGIONS,
    classify,
    layer_curves,
    layer_positions,
    layer_table,
    region_shares,
)
from neuroenc.encoders.comparison._unique import KIND, unique_variance
from neuroenc.encoders.readout._retinotopy import retinotopy


class Comparison:
    """Result of a comparison: scores of all cells, with paired statistics.

    Made by `compare`. Every statistic uses the predictions of test rows alone, and the same resamples of the
    stimuli for every cell, so that all differences are paired. Predictions are fixed in the bootstrap: it measures
    the uncertainty from the choice of stimuli and from noise, not from training anew.

    Attributes
    ----------
    cells : list of str
        ``features/readout`` or ``features/core/readout``.
    scores : Dataset (cell, voxel)
        ``r``, ``r2`` over the test rows of all folds; ``validation_r``, mean over folds, on which settings were
        chosen; ``r_normalised`` with ceilings. Voxel labels are kept.
    responses : DataArray (row, voxel)
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        jobs: Sequence[Job],
        store: Store,
        responses: xr.DataArray,
        *,
        noise_ceiling: np.ndarray | None,
        n_bootstraps: int,
        seed: int,
        features: Mapping[str, tuple[Any, np.ndarray]] | None = None,
        keep: Any = None,
    ) -> None:
        self._cells = list(cells)
        self.cells = [cell.name for cell in cells]
        self._jobs = {name: [job for job in jobs if job.cell.name == name] for name in [*self.cells, KIND]}
        self._widths = list(dict.fromkeys(job.cell.features for job in jobs if job.cell.kind == WIDTHS))
        self._jobs |= {name: [job for job in jobs if job.cell.name == name] for name in self._width_cells()}
        self._store, self._keep = store, keep
        self._features = dict(features or {})
        self.responses = responses
        self.noise_ceiling = noise_ceiling
        self.n_bootstraps, self.seed = n_bootstraps, seed
        self.groups = statistics.find_groups(responses)
        self._pairs: dict[float, pd.DataFrame] = {}

    def __repr__(self) -> str:
        rows, voxels = self.responses.shape
        return f"Comparison({len(self.cells)} cells, {voxels} voxels, {rows} rows: {', '.join(self.cells)})"

    def _fits(self, cell: str) -> list[tuple[Job, Fitted]]:
        if not self._jobs.get(cell):
            raise ConfigError(unknown_name("cell", cell, self.cells))
        found = [(job, self._store.read(job.name, job.key)) for job in self._jobs[cell]]
        lost = [job.name for job, parts in found if parts is None]
        if lost:
            raise DataError(f"fits are gone from {self._store.folder}: {', '.join(lost)}. Next step: compare again.")
        return [(job, Fitted(**parts)) for job, parts in found if parts is not None]

    def _voxels(self) -> dict[str, Any]:
        return {str(k): c for k, c in self.responses.coords.items() if c.dims == ("voxel",)}

    def features(self, space: str) -> xr.DataArray:
        """Features of one space (stimulus, ...) for every row of the responses; of one that no fold has anew."""
        values, index = self._features[one_of("feature space", space, self._features)]
        ids, first = np.unique(self.responses["stimulus"].values.astype(str), return_index=True)
        dims = {4: ("channel", "y", "x"), 3: ("token", "feature"), 2: ("feature",)}[values.ndim]
        return xr.DataArray(values[index[first]], {"stimulus": ids}, ("stimulus", *dims), name="features")

    def predictions(self, cell: str) -> xr.DataArray:
        """Test predictions of one cell (row, voxel), from the disk; NaN where none was made or could be scored."""
        total = np.full(self.responses.shape, np.nan, dtype=np.float32)
        for job, fitted in self._fits(cell):
            total[np.ix_(job.rows.test, job.voxels)] = fitted.predicted
        total[np.isnan(self.responses.values)] = np.nan
        return self.responses.copy(data=total).rename("predicted")

    @cached_property
    def _tested(self) -> np.ndarray:
        rows = np.zeros(len(self.responses), dtype=bool)
        for job in self._jobs[self.cells[0]]:
            rows[job.rows.test] = True
        return np.flatnonzero(rows)

    @cached_property
    def _drawn(self) -> statistics.Samples:
        y = self.responses.values[self._tested]
        stimuli = self.responses["stimulus"].values[self._tested]
        predicted = [self.predictions(cell).values[self._tested] for cell in self.cells]
        return statistics.draw_samples(y, predicted, n_bootstraps=self.n_bootstraps, groups=stimuli, seed=self.seed)

    def _part(self, cells: Sequence[str]) -> statistics.Samples:
        for cell in cells:
            one_of("cell", cell, self.cells)
        at = [self.cells.index(cell) for cell in cells]
        return self._drawn.of(at)

    def _per_voxel(self, prefix: str) -> xr.Dataset:
        """Mean over folds of what fits kept for every voxel."""
        shape = len(self.cells), self.responses.shape[1]
        total: dict[str, np.ndarray] = {}
        count: dict[str, np.ndarray] = {}
        for k, cell in enumerate(self.cells):
            for job, fitted in self._fits(cell):
                for name, values in fitted.arrays.items():
                    if name.startswith(prefix):
                        total.setdefault(name, np.zeros(shape))[k, job.voxels] += values
                        count.setdefault(name, np.zeros(shape))[k, job.voxels] += 1
        with np.errstate(invalid="ignore"):
            data = {name: (("cell", "voxel"), total[name] / count[name]) for name in sorted(total)}
        return xr.Dataset(data, coords={"cell": self.cells, **self._voxels()})

    @cached_property
    def scores(self) -> xr.Dataset:
        """Scores of every cell and voxel."""
        y = self.responses.values[self._tested]
        r, r2, inner = (np.full((len(self.cells), y.shape[1]), np.nan) for _ in range(3))
        for k, cell in enumerate(self.cells):
            predicted = self.predictions(cell).values[self._tested]
            r[k], r2[k] = stats.score(y, predicted, "r"), stats.score(y, predicted, "r2")
            folds = self.validation_r(cell)
            with np.errstate(invalid="ignore"):
                known = np.isfinite(folds)
                inner[k] = np.where(known, folds, 0.0).sum(axis=0) / known.sum(axis=0)
        note = {"split": f"{1 + max(j.fold for j in self._jobs[self.cells[0]])} folds by stimulus", "n_rows": len(y)}
        inside = {"metric": "r", "split": "inner validation rows, mean over folds"}
        data = {
            "r": (("cell", "voxel"), r, {"metric": "r", **note}),
            "r2": (("cell", "voxel"), r2, {"metric": "r2", **note}),
            "validation_r": (("cell", "voxel"), inner, inside),
        }
        if self.noise_ceiling is not None:
            values = stats.normalise(r, self.noise_ceiling, score_unit="r", ceiling_unit="r")
            data["r_normalised"] = (("cell", "voxel"), values, {"metric": "r / noise ceiling", "ceiling": "r"})
        return xr.Dataset(data, coords={"cell": self.cells, **self._voxels()})

    def validation_r(self, cell: str) -> np.ndarray:
        """Correlation on the inner validation rows (fold, voxel), of the settings that were chosen by it."""
        fits = self._fits(cell)
        values = np.full((1 + max(job.fold for job, _ in fits), self.responses.shape[1]), np.nan)
        for job, fitted in fits:
            values[job.fold, job.voxels] = fitted.validation_r
        return values

    def records(self) -> pd.DataFrame:
        """One row a fit: rows, parameters, settings chosen, seconds."""
        return pd.DataFrame([f.record for cell in self.cells for _, f in self._fits(cell)])

    def curves(self) -> pd.DataFrame:
        """Learning curves: cell, fold, group, candidate, epoch, loss, validation_r; empty for closed forms."""
        rows = [
            {"cell": cell, "fold": job.fold, "group": job.group, **row}
            for cell in self.cells
            for job, fitted in self._fits(cell)
            for row in fitted.curves
        ]
        return pd.DataFrame(rows)

    def table(self) -> pd.DataFrame:
        """One row a cell and voxel group: median r with interval, rows that voxels saw, and what the cell cost.

        ``n_train``, ``n_validation`` (part of it) and ``n_test`` are medians over voxels and folds of the rows that
        the voxel saw; parameters, candidates and seconds are the cell's.
        """
        medians = statistics.group_medians(self.cells, self._drawn, self.groups, self.noise_ceiling)
        return medians.merge(self._costs(), on=["cell", "kind", "group"], how="left", validate="one_to_one")

    def _costs(self) -> pd.DataFrame:
        """Rows that the voxels of each group saw, and parameters, budget and seconds of each cell."""
        seen = ~np.isnan(self.responses.values)
        rows: list[dict[str, Any]] = []
        for cell in self._cells:
            n_folds = 1 + max(job.fold for job in self._jobs[cell.name])
            counts = np.zeros((3, n_folds, seen.shape[1]))
            for job in self._jobs[cell.name]:
                for part, index in enumerate((job.rows.train, job.rows.validation, job.rows.test)):
                    counts[part, job.fold, job.voxels] = seen[:, job.voxels][index].sum(axis=0)
            records = pd.DataFrame([fitted.record for _, fitted in self._fits(cell.name)])
            epochs = records["best_epoch"].dropna()
            cost = {
                "features": cell.features,
                "core": cell.core,
                "readout": cell.readout,
                "n_candidates": int(records["n_candidates"].iloc[0]),
                "n_parameters": round(records.groupby("fold")["n_parameters"].sum().mean()),
                "best_epoch": float(epochs.astype(float).median()) if len(epochs) else np.nan,
                "seconds": float(records["seconds"].sum()),
                "seconds_per_fit": float(records["seconds_per_fit"].mean()),
            }
            for group in self.groups:
                n = [int(np.median(part[:, group.voxels])) for part in counts]
                place = {"cell": cell.name, "kind": group.kind, "group": group.name}
                rows.append({**place, **dict(zip(("n_train", "n_validation", "n_test"), n)), **cost})
        return pd.DataFrame(rows)

    def pairwise(self, q: float = 0.05) -> pd.DataFrame:
        """Any two cells in each group: difference of r with interval and p, and shares of voxels after FDR."""
        if q not in self._pairs:
            self._pairs[q] = statistics.pair_table(self.cells, self._drawn, self.groups, q)
        return self._pairs[q].copy()

    def winner(self, q: float = 0.05, cells: Sequence[str] | None = None) -> xr.Dataset:
        """Best cell of every voxel: ``best`` as measured, ``winner`` or "tie" after FDR, ``lead``, ``p``, ``q``."""
        names = list(cells) if cells is not None else self.cells
        if len(names) < 2:
            raise ConfigError(f"a winner needs at least two cells; found {names}.")
        return statistics.voxel_winner(names, self._part(names), q).assign_coords(self._voxels())

    def best_cell(self) -> str:
        """The cell with the highest median validation r: chosen without looking at test rows."""
        inner = self.scores["validation_r"].values
        return self.cells[int(np.argmax([statistics.median_or_low(row) for row in inner]))]

    def selected(self) -> xr.Dataset:
        """Scores of the nested choice: in each fold the cell that was best on its validation rows.

        No test row takes part in the choice that it scores, so ``r`` has no selection bias, which the largest
        test score of many cells has. ``cell`` (fold) names the choices.
        """
        folds = np.stack([self.validation_r(cell) for cell in self.cells])
        medians = np.array([[statistics.median_or_low(row) for row in cell] for cell in folds])
        chosen = medians.argmax(axis=0)
        total = np.full(self.responses.shape, np.nan, dtype=np.float32)
        for fold, k in enumerate(chosen):
            predicted = self.predictions(self.cells[k]).values
            for job in self._jobs[self.cells[k]]:
                if job.fold == fold:
                    at = np.ix_(job.rows.test, job.voxels)
                    total[at] = predicted[at]
        r = stats.score(self.responses.values[self._tested], total[self._tested], "r")
        names = [self.cells[k] for k in chosen]
        return xr.Dataset({"r": ("voxel", r), "cell": ("fold", names)}, coords=self._voxels())

    def regions(
        self, *, vision: str, dense: str, single: str, readout: str | Sequence[str] | None = None, q: float = 0.05
    ) -> xr.Dataset:
        """Three regions: is a voxel best predicted by vision, by dense captions or by single captions?

        Always through one and the same readout: a map made with one readout can change with another.

        Parameters
        ----------
        vision, dense, single : str
            Feature spaces, or ``features/core`` for maps behind a trained core.
        readout : str or sequence of str, optional
            Default: every readout that reads all three.
        q : float
            FDR level over voxels.

        Returns
        -------
        Dataset (readout, space, voxel)
            ``region`` ("vision", "dense", "single", "not separable"), ``candidates`` (what is left, such as
            "vision or dense"), ``r``, ``support``, ``q``; ``agreement`` (voxel) whether all readouts give one region.

        Raises
        ------
        ConfigError
            A space or readout that was not compared.
        """
        spaces = {"vision": vision, "dense": dense, "single": single}
        ways = sorted({c.readout for c in self._cells}, key=[c.readout for c in self._cells].index)
        asked = ways if readout is None else [readout] if isinstance(readout, str) else list(readout)
        for name in asked:
            one_of("readout", name, ways)
        found = {way: [f"{spaces[s]}/{way}" for s in REGIONS] for way in asked}
        if readout is None:
            found = {way: cells for way, cells in found.items() if all(c in self.cells for c in cells)}
        for cells in found.values():
            self._part(cells)
        if not found:
            known = sorted({c.name.rsplit("/", 1)[0] for c in self._cells})
            raise ConfigError(f"no readout reads {vision!r}, {dense!r} and {single!r}. Compared: {', '.join(known)}.")
        parts = [classify(self._part(cells), q) for cells in found.values()]
        out = xr.concat(parts, dim=xr.DataArray(list(found), dims="readout", name="readout"))
        labels = out["region"].values
        out["agreement"] = ("voxel", (labels == labels[:1]).all(axis=0))
        return out.assign_coords(self._voxels()).assign_attrs(**spaces, q_level=q)

    def region_table(self, regions: xr.Dataset) -> pd.DataFrame:
        """Share of each class of `regions` in every group and readout."""
        return region_shares(regions, self.groups)

    def layer_map(self, layers: Sequence[str], readout: str, q: float = 0.05) -> tuple[xr.Dataset, pd.DataFrame]:
        """Best of some feature spaces, from early to late, for every voxel and group.

        Returns
        -------
        Dataset (voxel)
            ``layer``, ``winner`` (or "tie"), ``position`` from 0 (first) to 1, ``position_se``, ``r`` (layers, voxel).
            By group, median ``score`` (layers, group) with interval, ``jump_point``, ``convergence_point``, ``flat``
            and what else `neuroenc.encoders.concept_depth` tells.
        DataFrame
            One row a group.
        """
        if len(layers) < 2:
            raise ConfigError(f"layer_map needs at least two layers; found {list(layers)}.")
        drawn = self._part([f"{layer}/{readout}" for layer in layers])
        found = layer_positions(list(layers), drawn, q).assign_coords(self._voxels())
        curves = layer_curves(list(layers), drawn, self.groups)
        return found.merge(curves, join="exact"), layer_table(list(layers), drawn, self.groups, curves)

    def _width_cells(self) -> list[str]:
        return [f"{layer}/{WIDTHS}" for layer in self._widths]

    def layer_dims(self) -> xr.Dataset | None:
        """Score of ridge by layer, number of dimensions, voxel and region; None where no ``dims`` were asked for.

        Returns
        -------
        Dataset
            As `neuroenc.encoders.layer_dim_sweep` gives it, for `neuroenc.encoders.cheapest`; ``inner_score`` is r on
            the validation rows of each fold.
        """
        if not self._widths:
            return None
        dims = self._jobs[self._width_cells()[0]][0].cell.options["dims"]
        measured = self.responses.values
        n_folds = 1 + max(job.fold for job in self._jobs[self._width_cells()[0]])
        shape = len(self._widths), len(dims)
        total = np.full((shape[0] * shape[1], *measured.shape), np.nan, dtype=np.float32)
        inner, outer = (np.full((n_folds, *shape, measured.shape[1]), np.nan) for _ in range(2))
        for k, cell in enumerate(self._width_cells()):
            for job, fitted in self._fits(cell):
                for d, width in enumerate(dims):
                    predicted = fitted.arrays[f"predicted{width}"]
                    at = np.ix_(job.rows.test, job.voxels)
                    total[k * len(dims) + d][at] = np.where(np.isnan(measured[at]), np.nan, predicted)
                    inner[job.fold, k, d, job.voxels] = fitted.arrays[f"inner{width}"]
                    outer[job.fold, k, d, job.voxels] = stats.score(measured[at], predicted, "r")
        how: dict[str, Any] = {"groups": self.responses["stimulus"].values[self._tested], "seed": self.seed}
        drawn = statistics.draw_samples(
            measured[self._tested], list(total[:, self._tested]), n_bootstraps=self.n_bootstraps, **how
        )
        names, voxels = (self._widths, dims), ("voxel", self._voxels())
        made = sweep_dataset(names, drawn.estimate, drawn.samples, inner, outer, voxels, self.groups, drawn.n_stimuli)
        reduce = self._jobs[self._width_cells()[0]][0].cell.options["reduce"]
        return made.assign_attrs(
            metric="r", probe="ridge", reduce=reduce, n_bootstraps=self.n_bootstraps, seed=self.seed
        )

    def unique_variance(self, q: float = 0.05) -> tuple[xr.Dataset, pd.DataFrame] | None:
        """Unique variance of each feature space, and of two or three what they share; None where not asked for.

        Parts of R2 on the test rows, not clipped: a part below zero is a joint model that predicts worse than without
        the space. Predictions are fixed in the bootstrap, as in all statistics of the comparison.

        Parameters
        ----------
        q : float
            FDR level over voxels.

        Returns
        -------
        Dataset (part, voxel)
            ``share``, ``low``, ``high``, ``p``, ``q``; ``total`` (voxel), R2 of all spaces together. Parts are named
            by a space (unique) or by several joined by " & " (shared by exactly these).
        DataFrame
            One row a group and part: ``median_share`` with interval, ``share_voxels`` above zero after FDR.
        """
        if not self._jobs[KIND]:
            return None
        fits = self._fits(KIND)
        total = {name: np.full(self.responses.shape, np.nan, dtype=np.float32) for name in fits[0][1].arrays}
        for job, fitted in fits:
            for name, values in fitted.arrays.items():
                total[name][np.ix_(job.rows.test, job.voxels)] = values
        measured = self.responses.values[self._tested]
        found, table = unique_variance(
            measured,
            {k: np.where(np.isnan(measured), np.nan, v[self._tested]) for k, v in total.items()},
            fits[0][0].cell.options["spaces"],
            self.groups,
            stimuli=self.responses["stimulus"].values[self._tested],
            n_bootstraps=self.n_bootstraps,
            seed=self.seed,
            level=q,
        )
        return found.assign_coords(self._voxels()), table

    def joint_weights(self) -> xr.DataArray | None:
        """Weight (cell, space, voxel) of each feature space in a joint model, mean over folds; None without one.

        Weights of a stack; of banded ridge the share of each band in the prior.
        """
        several = [cell.name for cell in self._cells if cell.kind in JOINT]
        return self._by_space("weight").sel(cell=several) if several else None

    def _by_space(self, name: str) -> xr.DataArray:
        """What fits kept for every feature space and voxel, under ``NAME_SPACE``."""
        found = self._per_voxel(f"{name}_")
        found = found.rename({k: str(k).removeprefix(f"{name}_") for k in found})
        return found.to_dataarray("space", name).transpose("cell", "space", "voxel")

    def structured_partition(self, share: float = 0.95) -> tuple[xr.Dataset, pd.DataFrame] | None:
        """Which of an ordered series of spaces a voxel needs, on the test rows; None where no stack has an order.

        Returns
        -------
        Dataset
            As `neuroenc.encoders.StackedEncoder.structured_partition`.
        DataFrame
            A row a group: mean positions of the first and last layer needed (0 to 1) over voxels that are predicted,
            with intervals over resampled stimuli; ``share_redundant``, mean weights.
        """
        cell = next((c for c in self._cells if c.options.get("ordered")), None)
        if cell is None:
            return None
        how: dict[str, Any] = {"share": share, "n_bootstraps": self.n_bootstraps, "seed": self.seed}
        found, table = structured_partition(self._fits(cell.name), self.responses, self._tested, self.groups, **how)
        return found.assign_coords(self._voxels()), table

    def similarity(self) -> pd.DataFrame:
        """Representational similarity beside encoding: one row a group and model, Spearman r of their RDMs.

        ``of`` "prediction": the RDM of a cell's held-out predictions, whose features are weighted by the fit; ``of``
        "features": that of a feature space as it is, unless each fold has its own of it. Groups of five voxels or more
        count, over the stimuli that all of their voxels saw (at most 120, the same for all models); intervals are over
        stimuli.

        References: Kriegeskorte, Mur & Bandettini (2008), Front. Syst. Neurosci. 2:4; Khaligh-Razavi & Kriegeskorte
        (2014), PLoS Comput. Biol. 10:e1003915 (weighted features).
        """
        at, read = self._tested, {cell.features for cell in self._cells if not cell.core}
        models: list[tuple[str, str, Any]] = [
            ("features", name, lambda rows, space=space, index=index: np.asarray(space[index[at[rows]]]))
            for name, (space, index) in self._features.items()
            if name in read
        ]
        models += [("prediction", cell, self.predictions(cell).values[at]) for cell in self.cells]
        how = {"stimuli": self.responses["stimulus"].values[at], "n_bootstraps": self.n_bootstraps, "seed": self.seed}
        return statistics.similarity_table(self.responses.values[at], models, self.groups, **how)

    def warp_spread(self) -> xr.Dataset | None:
        """How far content moves receptive fields (cell, voxel), mean over folds; None where no readout does."""
        found = self._per_voxel("warp_")
        return found if found.data_vars else None

    def gates(self) -> xr.DataArray | None:
        """Gates of conditioned trunks (cell, space, voxel), mean over folds: the weight of a space in a voxel's task.

        None where no core has gates.
        """
        return self._by_space("gate") if self._per_voxel("gate_").data_vars else None

    def gradient_conflict(self) -> xr.DataArray | None:
        """Cosines (cell, task, other) of the gradients that tasks ask of a shared core, mean over folds.

        At the weights that predicted, over training rows; see `ReadoutEncoder.gradient_conflict`. None where no cell
        trains a core for several tasks.
        """
        found = []
        for cell in self.cells:
            parts = [fitted.record["conflict"] for _, fitted in self._fits(cell) if "conflict" in fitted.record]
            if parts:
                names = parts[0]["tasks"]
                mean = np.mean([part["cosines"] for part in parts], axis=0)
                found.append(xr.DataArray(mean, dims=("task", "other"), coords={"task": names, "other": names}))
                found[-1] = found[-1].assign_coords(cell=cell)
        return xr.concat(found, "cell", join="outer").rename("cosine") if found else None

    def receptive_fields(self) -> xr.Dataset | None:
        """Centre and size of receptive fields (cell, voxel), mean over folds; None where no readout has them."""
        found = self._per_voxel("rf_")
        return found if found.data_vars else None

    def retinotopy(self, width: float = 1.0, cell: str | None = None) -> xr.Dataset | None:
        """Polar angle, eccentricity and size of every voxel's receptive field, mean over folds.

        Parameters
        ----------
        width : float
            Width of the pictures in degrees of visual angle; 1 gives shares of it.
        cell : str, optional
            Default: of the cells whose readout has receptive fields, the one of highest median validation r.

        Returns
        -------
        Dataset (voxel) or None
            ``polar_angle, eccentricity, size``; the attribute ``cell`` names the cell. None without receptive fields.
        """
        found = self.receptive_fields()
        if found is None:
            return None
        known = np.isfinite(found["rf_x"].values).any(axis=1)
        if cell is None:
            inner = [statistics.median_or_low(row) for row in self.scores["validation_r"].values]
            cell = self.cells[int(np.argmax(np.where(known, inner, -np.inf)))]
        one_of("cell with receptive fields", cell, [c for c, k in zip(self.cells, known) if k])
        one = found.sel(cell=cell, drop=True).rename({f"rf_{k}": k for k in ("x", "y", "size")})
        return retinotopy(one, width).assign_attrs(cell=cell)

    def summary(self, q: float = 0.05) -> dict[str, Any]:
        """Flat summary, its numbers those of `Comparison.table` and `Comparison.pairwise`.

        ``best_cell`` has the highest median validation r, ``best_median_r`` is its test r; ``selected_median_r`` is
        that of the choice nested in the folds; ``highest_cell`` has the highest median test r. ``rival`` is the cell
        that the best leads by least (or that leads it by most), with the paired difference ``best_difference``, its
        interval, p and q, and ``best_verdict`` in words. ``median_r:CELL`` for each cell, ``share_tie`` the share of
        voxels without a separable winner, and numbers of voxels, stimuli and resamples. ``q`` is the FDR level.
        """
        scores, cells = self.scores, self.cells
        table = self.table()
        table = table[table["kind"] == "all"].set_index("cell")
        medians = {c: float(table["median_r"][c]) for c in cells}
        inner = {c: float(np.nanmedian(scores["validation_r"].sel(cell=c).values)) for c in cells}
        best = self.best_cell()
        summary: dict[str, Any] = {
            "n_cells": len(cells),
            "n_voxels": self.responses.shape[1],
            "n_stimuli": len(np.unique(self.responses["stimulus"].values)),
            "n_bootstraps": self.n_bootstraps,
            "seed": self.seed,
            "q_level": q,
            "best_cell": best,
            "best_median_r": medians[best],
            "best_validation_r": inner[best],
            "selected_median_r": float(np.nanmedian(self.selected()["r"].values)),
            "highest_cell": max(cells, key=lambda c: np.nan_to_num(medians[c], nan=-np.inf)),
        }
        if "median_r_normalised" in table:
            summary["best_median_r_normalised"] = float(table["median_r_normalised"][best])
        if len(cells) > 1:
            found = statistics.closest_rival(best, self.pairwise(q), q)
            summary |= {"rival": found["rival"], "rival_median_r": medians[found["rival"]]}
            summary["best_difference"] = found["difference"]
            summary |= {f"best_difference_{k}": found[k] for k in ("low", "high", "p", "q")}
            summary["best_verdict"] = found["verdict"]
            winner = self.winner(q)["winner"].values
            summary["share_tie"] = float((winner == "tie").mean())
            summary.update({f"share_winner:{c}": float((winner == c).mean()) for c in cells})
        summary.update({f"median_r:{c}": medians[c] for c in cells})
        summary.update({f"validation_r:{c}": inner[c] for c in cells})
        records = self.records()
        summary["seconds_fits"] = round(float(records["seconds"].sum()), 1)
        summary["n_fits"] = len(records)
        return summary

    def write(self, folder: str | os.PathLike[str], q: float = 0.05) -> dict[str, Any]:
        """Write comparison.csv, pairwise.csv (of two cells or more), voxels.nc and summary.json; the summary.

        voxels.nc holds scores of every cell and voxel with the winner, receptive fields and spreads; ``q`` is the FDR
        level.
        """
        folder, several = Path(folder), len(self.cells) > 1
        folder.mkdir(parents=True, exist_ok=True)
        tables.write_table(self.table(), folder / "comparison.csv", float_format="%.8g")
        if several:
            tables.write_table(self.pairwise(q), folder / "pairwise.csv", float_format="%.8g")
        found = self.scores
        for part in (self.winner(q) if several else None, self.receptive_fields(), self.warp_spread()):
            if part is not None:
                found = found.merge(part, join="exact", compat="override")
        places = ("affine", "volume_shape", "space", "source")
        save(found.assign_attrs({k: v for k, v in self.responses.attrs.items() if k in places}), folder / "voxels.nc")
        summary = self.summary(q)
        write_json(folder / "summary.json", summary)
        return summary
