"""``neuroenc compare``: feature spaces, cores and readouts side by side, from one config to a report."""

from __future__ import annotations

import dataclasses
import inspect
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from neuroenc import data
from neuroenc._core.errors import ConfigError
from neuroenc._core.files import hash_array, output_folder, write_json
from neuroenc._core.provenance import provenance
from neuroenc.encoders.comparison import Comparison, build_cells, compare
from neuroenc.encoders.comparison._grid import make_folds
from neuroenc.encoders.comparison._result import write_table
from neuroenc.workflows._compare_config import CompareConfig
from neuroenc.workflows._compare_inputs import load_comparison, make_space
from neuroenc.workflows._preflight import check_compare

__all__ = ["run_comparison"]

_NOTES = (
    "Every cell saw the same rows, folds and validation split and tried the same number of settings; ridge tries all "
    "its penalties as one.",
    "Intervals and p-values resample stimuli, predictions fixed: they are about these fits, not about training anew.",
    "The best cell is the one that was best on validation rows; the largest test score of many would be too high.",
    "How long fits took is in comparison.csv and fits.csv; this page holds no times, so that the same run gives the "
    "same page.",
)


def run_comparison(
    config: CompareConfig,
    out: str | os.PathLike[str],
    *,
    mirror: str | os.PathLike[str] | None = None,
    workers: int = 1,
    client: Any = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compare feature spaces and readouts, and report.

    Finished fits are kept in ``out/.steps``; the same call after a kill goes on and ends with the same files
    (seconds apart).

    Parameters
    ----------
    config : CompareConfig
        From `read_compare_config` or `example_compare_config`.
    out : path
        Folder for comparison.csv, pairwise.csv, voxels.nc, fits.csv, summary.json and ``report/``; curves.csv,
        regions.csv, regions.nc, layers.csv and layers.nc where there are any.
    mirror : path, optional
        Folder with data sets, tried before any download.
    workers : int
        Processes; the numbers do not depend on it.
    client : dask.distributed.Client, optional
        A cluster whose workers see ``out``.
    progress : bool
    say : callable
        Gets the lines that the command prints.

    Returns
    -------
    dict
        What ``summary.json`` holds: ``best_cell``, ``best_median_r``, ``selected_median_r``, ``median_r:CELL`` and
        more (see `Comparison.summary`), ``seconds_features``, ``seconds_statistics`` and ``seconds``.

    Examples
    --------
    >>> from neuroenc.workflows import example_compare_config
    >>> example_compare_config("world").regions.dense
    'dense'
    """
    start = time.perf_counter()
    # Names that do not exist are found before anything is written or computed.
    check_compare(config, mirror)
    cells = build_cells(
        list(config.features), config.readouts, config.cores or None, config.grid.cells or None, config.training
    )
    _check_analyses(config, {cell.name for cell in cells})
    out = output_folder(out)
    used = {name for cell in cells for name in (cell.features, cell.context) if name}
    responses, spaces, ceiling = _inputs(config, used, mirror, progress, say)
    seconds = {"features": time.perf_counter() - start}
    grid = config.grid
    say(f"3/4 fits: {grid.cv} outer folds, {grid.n_candidates} settings a cell")
    begin = time.perf_counter()
    found = compare(
        spaces,
        config.readouts,
        responses,
        cores=config.cores or None,
        cells=grid.cells or None,
        cv=grid.cv,
        validation=grid.validation,
        n_candidates=grid.n_candidates,
        training=config.training or None,
        noise_ceiling=ceiling,
        n_bootstraps=grid.n_bootstraps,
        seed=config.seed,
        out=out / ".steps",
        client=client,
        workers=workers,
        threads=grid.threads,
        progress=progress,
        say=say,
    )
    say(f"  {time.perf_counter() - begin:.1f} s")
    say("4/4 statistics and report")
    begin = time.perf_counter()
    extra = _analyses(config, found, out)
    summary = found.write(out, grid.q) | extra.pop("summary")
    seconds["statistics"] = time.perf_counter() - begin
    page = _report(config, found, summary, extra, out, progress, say)
    summary.update({f"seconds_{k}": round(v, 1) for k, v in seconds.items()})
    summary["seconds"] = round(time.perf_counter() - start, 1)
    write_json(out / "summary.json", summary)
    say(_closing(found, summary, page))
    return summary


def _check_analyses(config: CompareConfig, cells: set[str]) -> None:
    """Regions and layers need cells that the grid has; better said before the fits than after."""
    step = "Next step: more grid.cells, or enabled = false."
    if config.layers:
        for name in config.layers.order:
            if f"{name}/{config.layers.readout}" not in cells:
                raise ConfigError(f"[layers] needs the cell {name}/{config.layers.readout}, not in the grid. {step}")
    if config.regions:
        spaces = (config.regions.vision, config.regions.dense, config.regions.single)
        ways = config.regions.readouts or list(config.readouts)
        whole = [way for way in ways if all(f"{space}/{way}" in cells for space in spaces)]
        if not whole or (config.regions.readouts and len(whole) < len(ways)):
            raise ConfigError(f"[regions] needs {', '.join(spaces)} through one readout; found {whole or 0}. {step}")


def _inputs(
    config: CompareConfig, used: set[str], mirror: Any, progress: bool, say: Callable[[str], None]
) -> tuple[xr.DataArray, dict[str, xr.DataArray], np.ndarray | None]:
    where = config.data.name or Path(config.data.responses).name or "simulated world"
    say(f"1/4 data: {where}")
    responses, stimuli, ceiling = load_comparison(config.data, None if mirror is None else os.fspath(mirror), progress)
    missing = float(np.isnan(responses.values).mean())
    unseen = f", {missing:.0%} not seen" if missing else ""
    say(f"    {responses.shape[0]} stimuli, {responses.shape[1]} voxels{unseen}")
    make_folds(responses, config.grid.cv, config.grid.validation, config.seed)
    say("2/4 features")
    spaces = {}
    for name, settings in config.features.items():
        if name in used:
            spaces[name] = make_space(name, settings, stimuli, responses, progress)
            say(f"    {name}: {' x '.join(map(str, spaces[name].shape[1:]))}")
        else:
            # Kept by name, so that cells are named as in the config; no cell reads it.
            spaces[name] = xr.DataArray(np.zeros((0, 0), np.float32), dims=("stimulus", "feature"))
    return responses, spaces, ceiling


def _analyses(config: CompareConfig, found: Comparison, out: Path) -> dict[str, Any]:
    """Regions and layers where the config asks for them, written and returned for the report."""
    parts: dict[str, Any] = {"summary": {}}
    write_table(found.records().drop(columns=["chosen", "candidate_r"], errors="ignore"), _made(out) / "fits.csv")
    curves = found.curves().drop(columns="seconds", errors="ignore")
    if len(curves):
        write_table(curves, out / "curves.csv")
        parts["curves"] = curves
    warp = found.warp_spread()
    if warp is not None:
        parts["warp"] = warp
    if config.regions:
        spaces = {k: getattr(config.regions, k) for k in ("vision", "dense", "single")}
        regions = found.regions(**spaces, readout=config.regions.readouts or None, q=config.grid.q)
        data.save(regions, out / "regions.nc")
        write_table(found.region_table(regions), out / "regions.csv")
        parts["regions"] = regions
        for readout in regions["readout"].values.tolist():
            labels = regions["region"].sel(readout=readout).values
            for name in ("vision", "dense", "single", "not separable"):
                parts["summary"][f"share_region:{readout}:{name}"] = float((labels == name).mean())
        parts["summary"]["share_regions_agree"] = float(regions["agreement"].values.mean())
    if config.layers:
        layers, table = found.layer_map(config.layers.order, config.layers.readout, config.grid.q)
        data.save(layers, out / "layers.nc")
        write_table(table, out / "layers.csv")
        parts["layers"] = {config.layers.readout: (layers, table)}
        parts["summary"]["best_layer"] = str(table.iloc[0]["best_layer"])
    return parts


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _report(
    config: CompareConfig,
    found: Comparison,
    summary: dict[str, Any],
    parts: dict[str, Any],
    out: Path,
    progress: bool,
    say: Callable[[str], None],
) -> Path | None:
    try:
        from neuroenc.report import comparison_sections, write_comparison_report
    except ImportError:
        say("    no report page: this installation has none; the tables are complete")
        return None
    settings = _settings(config)
    notes = [*_NOTES, *config.notes]
    if found.noise_ceiling is None:
        notes.append("No noise ceiling: no stimulus was repeated, so accuracies are not normalised.")
    legal = inspect.signature(comparison_sections).parameters
    # No two runs take the same time, and the page is to be the same.
    table = found.table().drop(columns=["seconds", "seconds_per_fit"], errors="ignore")
    told = {k: v for k, v in summary.items() if not k.startswith("seconds")}
    return write_comparison_report(
        out / "report",
        title=config.title,
        scores=found.scores,
        table=table,
        pairs=found.pairwise(config.grid.q) if len(found.cells) > 1 else None,
        winner=found.winner(config.grid.q) if len(found.cells) > 1 else None,
        summary=told,
        settings=settings,
        notes=notes,
        provenance=provenance(run=settings, responses=hash_array(found.responses.values), seed=config.seed),
        **{k: v for k, v in {**parts, "progress": progress}.items() if k in legal},
    )


def _settings(config: CompareConfig) -> dict[str, Any]:
    """Settings without the folders of this machine."""
    record = dataclasses.asdict(config)
    for key in ("responses", "samples", "mask", "images", "captions"):
        record["data"][key] = Path(record["data"][key]).name
    record["data"]["rois"] = {k: Path(v).name for k, v in record["data"]["rois"].items()}
    for space in record["features"].values():
        for key in ("file", "samples", "table"):
            space[key] = Path(space[key]).name
    return record


def _closing(found: Comparison, summary: dict[str, Any], page: Path | None) -> str:
    table = found.table().query("kind == 'all'")
    shown = table[["cell", "median_r", "low", "high", "n_parameters", "seconds"]]
    shown = shown.sort_values("median_r", ascending=False)
    lines = ["", shown.to_string(index=False, float_format=lambda x: f"{x:.3f}"), ""]
    lines.append(
        f"best on validation rows: {summary['best_cell']}, median r {summary['best_median_r']:.4f} over "
        f"{summary['n_voxels']} voxels (choice nested in folds: {summary['selected_median_r']:.4f})"
    )
    if "rival" in summary:
        lines.append(
            f"{summary['best_verdict']}; against {summary['rival']}: {summary['best_difference']:+.4f} "
            f"[{summary['best_difference_low']:+.4f}, {summary['best_difference_high']:+.4f}], "
            f"q = {summary['best_difference_q']:.3g}; {summary['share_tie']:.0%} of voxels without a separable winner"
        )
    if page is not None:
        lines.append(f"report: {page}")
    return "\n".join(lines)
