"""The commands that work on a study: each is a list of stages and a summary."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from neuroenc._core.files import write_json
from neuroenc.study.config import StudyConfig
from neuroenc.study.preflight import preflight
from neuroenc.study.stages.analyse import analyse
from neuroenc.study.stages.caption import bank, caption as write_captions, read, space, weights
from neuroenc.study.stages.check import check, ground
from neuroenc.study.stages.compare import compare as compare_cells, tabulate
from neuroenc.study.stages.fit import encode, fit, split
from neuroenc.study.stages.load import embed, load
from neuroenc.study.stages.report import closing_lines, summarise, write_study
from neuroenc.study.stages.score import score
from neuroenc.study.study import PIPELINES, WRITERS, Stage, Study

_PREPARE = (load, split)
_SCORE = (embed, fit, score, encode)
_CAPTION = (space, weights, bank, read, write_captions, ground, check, analyse)
#: Stages of ``neuroenc run``.
RUN = (*_PREPARE, *_SCORE)
#: Stages of ``neuroenc caption``.
CAPTION = (*_PREPARE, *_CAPTION)
#: Stages of ``neuroenc compare``.
COMPARE = (load, compare_cells, tabulate)
PIPELINES[:] = [(RUN, ""), (CAPTION, "captions"), (COMPARE, "compare")]
WRITERS[:] = [write_study]


def _work(
    command: str,
    stages: Sequence[Stage],
    config: StudyConfig,
    out: str | os.PathLike[str],
    mirror: str | os.PathLike[str] | None,
    workers: int | None,
    client: Any,
    progress: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    start = time.perf_counter()
    preflight(config, command, mirror)
    study = Study(config, out, mirror=mirror, workers=workers, client=client, progress=progress, say=say)
    try:
        for number, one in enumerate(stages, 1):
            say(f"{number}/{len(stages) + 1} {one.name}")
            study = study.through([one])
    finally:
        study.executor.close()
    say(f"{len(stages) + 1}/{len(stages) + 1} report")
    study = study.with_parts({"summary": summarise(study)})
    page = write_study(study)
    summary: dict[str, Any] = dict(study.summary)
    assert study.out is not None
    summary["seconds"] = round(time.perf_counter() - start, 1)
    write_json(study.out / "summary.json", summary)
    for line in closing_lines(study, summary):
        say(line)
    say(f"report: {page}   ({summary['seconds']:.0f} s)")
    return summary


def run(
    config: StudyConfig,
    out: str | os.PathLike[str],
    *,
    mirror: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    client: Any = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Fit voxelwise encoders to a data set, score them against noise ceilings, and report.

    Parameters
    ----------
    config : StudyConfig
        From `read_config` or `example_config`.
    out : path
        Folder for ``report/``, ``encoder/`` and ``summary.json``. Results are kept in ``out/.steps`` by the content of
        what they were made from; the same call after a kill goes on and ends with the same files (``seconds`` in
        ``summary.json`` apart), and other commands on the same folder find what they share.
    mirror : path, optional
        Folder with data sets, tried before any download.
    workers, client
        Processes of this machine, or a Dask client, for the fits; default ``[compute]``.
    progress : bool
    say : callable
        Callback for progress messages.

    Returns
    -------
    dict
        What ``summary.json`` holds: ``n_voxels``, ``n_stimuli``, ``median_r``, ``median_r2``,
        ``median_noise_ceiling_r`` and ``median_r_normalised`` (null without repeats), ``n_significant`` (q below the
        level), with several feature spaces ``median_r:SPACE``, ``seconds`` and more.

    Examples
    --------
    >>> from neuroenc.study import example_config
    >>> example_config("v4").evaluation.n_splits
    4
    """
    return _work("run", RUN, config, out, mirror, workers, client, progress, say)


def caption(
    config: StudyConfig,
    out: str | os.PathLike[str],
    *,
    mirror: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    client: Any = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Caption the voxels of one or several subjects, check the captions, and write the report.

    The encoder never sees the held-out rows of the first fold of ``[evaluation]``: accuracy, the gate and the
    sentence-level score are of those. The bank is hashed, and read once for all stages (again only for voxels that do
    not fit a quarter of the memory).

    Parameters
    ----------
    config : StudyConfig
        From `read_config` or `example_config`, with ``[captions]``.
    out : path
        Folder for ``report/``, ``study/`` and ``summary.json``; see `run`.
    mirror, workers, client, progress, say
        See `run`.

    Returns
    -------
    dict
        What ``summary.json`` holds: ``n_voxels, n_captioned, median_r, captioned_median_r``, ``sentence_mean`` with its
        interval, ``round_trip``, ``agreement:KIND`` with its interval, measured on ``stability_n_voxels`` of
        ``stability_of_voxels``, ``hallucination_rate``, for simulated subjects ``planted_...``, ``seconds``.

    Raises
    ------
    ConfigError, DataError
        A caption bank without captions, a captioner of another space, responses that are not as the data set says.

    References
    ----------
    Luo, Henderson, Tarr, Wehbe. BrainSCUBA: Fine-grained natural language captions of visual cortex selectivity.
    ICLR 2024.

    Examples
    --------
    >>> from neuroenc.study import example_config
    >>> example_config("world", command="caption").captions.decoder.kind  # caption(config, "out") takes two minutes
    'prefix'
    """
    return _work("caption", CAPTION, config, out, mirror, workers, client, progress, say)


def compare(
    config: StudyConfig,
    out: str | os.PathLike[str],
    *,
    mirror: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    client: Any = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compare feature spaces, cores and readouts on the same rows, folds and budget, and report.

    Parameters
    ----------
    config : StudyConfig
        From `read_config` or `example_config`, with ``[compare]``.
    out : path
        Folder for comparison.csv, pairwise.csv, voxels.nc, fits.csv, summary.json and ``report/``; curves.csv,
        regions.csv, regions.nc, layers.csv and layers.nc where there are any; see `run`.
    mirror, workers, client, progress, say
        See `run`. A client's workers must see ``out``; numbers do not depend on how many there are.

    Returns
    -------
    dict
        What ``summary.json`` holds: ``best_cell``, ``best_median_r``, ``selected_median_r``, ``median_r:CELL`` and
        more (see `Comparison.summary`), and ``seconds``.

    References
    ----------
    Saha, Chadha, Khosla. Modeling the human visual system: comparative insights from response-optimized and
    task-optimized vision models, language models, and different readout mechanisms. 2024.

    Examples
    --------
    >>> from neuroenc.study import example_config
    >>> example_config("world", command="compare").compare.regions.dense
    'dense'
    """
    return _work("compare", COMPARE, config, out, mirror, workers, client, progress, say)
