"""The commands that work on a study: each is a list of stages and a summary."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc._core.files import write_json
from neuroenc._core.optional import require
from neuroenc.study.config import StudyConfig
from neuroenc.study.incontext.evaluate import check_models, curve
from neuroenc.study.incontext.inspect import inspect, inspection_lines, inspection_summary, write_inspection
from neuroenc.study.incontext.predict import predict
from neuroenc.study.incontext.subjects import learners, subjects
from neuroenc.study.incontext.train import TRAINING, check_start
from neuroenc.study.preflight import preflight
from neuroenc.study.stages.analyse import analyse
from neuroenc.study.stages.bank import bank, space
from neuroenc.study.stages.caption import caption as write_captions, read, weights
from neuroenc.study.stages.check import check, ground
from neuroenc.study.stages.compare import compare as compare_cells, tabulate
from neuroenc.study.stages.decode import decode
from neuroenc.study.stages.fit import encode, fit, split
from neuroenc.study.stages.leakage import leakage
from neuroenc.study.stages.learning import learn
from neuroenc.study.stages.load import embed, load
from neuroenc.study.stages.plan import candidates, choose
from neuroenc.study.stages.report import closing_lines, summarise, write_study
from neuroenc.study.stages.score import score
from neuroenc.study.stages.teach import teach
from neuroenc.study.study import HOOKS, PIPELINES, Stage, Study as Study

#: Stages of ``neuroenc run``.
RUN = (load, split, embed, fit, score, leakage, learn, encode, decode)
#: Stages of ``neuroenc caption``.
CAPTION = (load, split, space, weights, bank, teach, read, write_captions, ground, check, analyse)
#: Stages of ``neuroenc compare``.
COMPARE = (load, compare_cells, tabulate)
#: Stages of ``neuroenc icl evaluate``; training and prediction are one stage behind the subjects.
CURVE = (subjects, curve)
#: Stages of ``neuroenc plan``.
PLAN = (candidates, choose)
PIPELINES.update(
    {
        "run": RUN,
        "caption": CAPTION,
        "compare": COMPARE,
        "icl evaluate": CURVE,
        **{f"icl {name}": (learners, stage) for name, stage in TRAINING.items()},
        "icl inspect": (subjects, inspect),
        "icl predict": (predict,),
        "plan": PLAN,
    }
)
HOOKS.update(check=preflight, summary=summarise, report=write_study)


def perform(
    study: Study,
    stages: Sequence[Stage],
    summarise: Callable[[Study], dict[str, Any]] = summarise,
    write: Callable[[Study], Path] = write_study,
    closing: Callable[[Study], list[str]] = closing_lines,
    folder: str = "",
) -> dict[str, Any]:
    """Run stages one after another, write report and ``summary.json`` (into ``folder`` below OUT); what that holds."""
    start, n, out = time.perf_counter(), len(stages) + 1, study.out
    assert out is not None
    try:
        for number, one in enumerate(stages, 1):
            study.say(f"{number}/{n} {one.name}")
            study = study.through([one])
    finally:
        study.executor.close()
    study.say(f"{n}/{n} report")
    study = study.with_parts({"summary": summarise(study)})
    page = write(study)
    # Times come after the page: the same run gives the same page.
    summary = {**study.summary, "seconds": round(time.perf_counter() - start, 1)}
    write_json(out / folder / "summary.json", summary)
    for line in closing(study):
        study.say(line)
    study.say(f"report: {page}   ({summary['seconds']:.0f} s)")
    return summary


def _study(command: str, config: StudyConfig, out: str | os.PathLike[str], options: dict[str, Any]) -> Study:
    require("matplotlib", "brain")
    preflight(config, command, options.get("mirror"))
    return Study(config, out, **{"say": print, **options})


def run(config: StudyConfig, out: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Fit voxelwise encoders to a data set, score them against noise ceilings, and report.

    Parameters
    ----------
    config : StudyConfig
        From `read_config` or `example_config`.
    out : path
        Folder for ``report/``, ``encoder/``, ``leakage.csv`` (the nearest training stimulus of every test stimulus) and
        ``summary.json``. Results are kept in ``out/.steps`` by the content of what they were made from; the same
        call after a kill goes on and ends with the same files (``seconds`` in ``summary.json`` apart), and other
        commands on the same folder find what they share.
    **options
        Of `Study`: ``mirror`` (folder with data sets, tried before any download), ``workers`` or ``client`` (processes
        of this machine, or a Dask client; default ``[compute]``), ``progress``, ``say`` (callback for progress
        messages; default: they are printed).

    Returns
    -------
    dict
        What ``summary.json`` holds: ``n_voxels``, ``n_stimuli``, ``median_r``, ``median_r2``,
        ``median_noise_ceiling_r`` and ``median_r_normalised`` (null without repeats), ``n_significant`` (q below the
        level), with several feature spaces ``median_r:SPACE``, ``share_near_duplicates`` of the test stimuli and
        ``median_r_without_near_duplicates``, with ``learning_curve`` ``explained_variance:SPACE:SIZE``, with
        ``[decode]`` ``pairwise_accuracy:METRIC`` and ``top_1_accuracy:METRIC`` with ``_p``, ``seconds`` and more.

    Examples
    --------
    >>> from neuroenc.study import example_config
    >>> example_config("v4").evaluation.n_splits
    4
    """
    return perform(_study("run", config, out, options), RUN)


def caption(config: StudyConfig, out: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Caption the voxels of one or several subjects, check the captions, and write the report.

    The encoder never sees the held-out rows of the first fold of ``[evaluation]``: accuracy, the gate and the
    sentence-level score are of those. The bank is hashed, and read once for all stages (again only for voxels that do
    not fit a quarter of the memory).

    Parameters
    ----------
    config : StudyConfig
        From `read_config` or `example_config`, with ``[captions]``.
    out : path
        Folder for ``report/``, ``study/``, ``caption_leakage.csv`` and ``summary.json``; see `run`.
    **options
        See `run`.

    Returns
    -------
    dict
        What ``summary.json`` holds: ``n_voxels, n_captioned, median_r, captioned_median_r``, ``sentence_mean`` with its
        interval, with ``analysis.images`` also ``image_mean`` and ``five_way_accuracy:KIND``, ``round_trip``,
        ``agreement:KIND`` with its interval, measured on ``stability_n_voxels`` of ``stability_of_voxels``,
        ``hallucination_rate``, for simulated subjects ``planted_...``, ``seconds``.

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
    return perform(_study("caption", config, out, options), CAPTION)


def compare(config: StudyConfig, out: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Compare feature spaces, cores and readouts on the same rows, folds and budget, and report.

    Parameters
    ----------
    config : StudyConfig
        From `read_config` or `example_config`, with ``[compare]``.
    out : path
        Folder for comparison.csv, pairwise.csv, voxels.nc, fits.csv, summary.json and ``report/``; curves.csv,
        regions.csv, regions.nc, layers.csv and layers.nc where there are any; see `run`.
    **options
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
    return perform(_study("compare", config, out, options), COMPARE)


def incontext_train(config: StudyConfig, out: str | os.PathLike[str], stage: str, **options: Any) -> dict[str, Any]:
    """Train an in-context encoder: one of the three stages of BraInCoRL.

    "pretrain": a new model on synthetic voxels, drawn from a mixture of priors of the training subjects. "extend": the
    pretrained model learns to read supports of any size. "finetune": episodes of real responses among the synthetic
    ones; the last training subject is not trained on, its episodes say which weights are kept. (It does count for the
    mixture of priors, as it does for empirical-Bayes ridge.) With one training subject, a fifth of its voxels do.

    Parameters
    ----------
    config : StudyConfig
        With ``[incontext]``, from `read_config` or `example_config`.
    out : path
        The study's folder. A stage writes ``STAGE/FORM/`` (in ``held-out-ANIMAL/`` for V4): the model
        (``model.safetensors``, ``model.json``), ``curves.csv``, ``curves.svg`` and ``summary.json``. A stage that was
        killed goes on when it is given again, and ends with the same files; one that is done is not repeated.
    stage : {"pretrain", "extend", "finetune"}
        The latter two start from the model that an earlier stage left in ``out``.
    **options
        See `run`.

    Returns
    -------
    dict
        What ``summary.json`` of the (last) model holds: ``best_step``, ``validation_loss``, ``validation_ev``,
        ``n_parameters``, ``n_train_subjects``, ``n_train_voxels``, ``seconds``.

    Raises
    ------
    ConfigError
        Unknown stage, or there is no earlier model of this form in ``out``.

    References
    ----------
    Yu et al. Meta-learning an in-context transformer model of human higher visual cortex. NeurIPS 2025.
    """
    if stage not in TRAINING:
        raise ConfigError(unknown_name("stage", stage, TRAINING))
    study = _study(f"icl {stage}", config, out, options)
    study.say(f"{stage}: {config.title}")
    check_start(study, stage)
    found: dict[str, Any] = study.through([learners, TRAINING[stage]]).training[-1]
    return found


def incontext_evaluate(config: StudyConfig, out: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Accuracy on new subjects over the size of the support, of in-context models and baselines.

    Parameters
    ----------
    config : StudyConfig
    out : path
        The study's folder: models that its stages left there (the last stage of each form) are evaluated, beside those
        that ``[incontext.evaluate] models`` names. Receives curve.csv (``method, kind, group, size,
        explained_variance, low, high, normalised, n_voxels, n_draws``, and ``pairwise, pairwise_low, pairwise_high``,
        the share of pairs of queries that all voxels tell apart, over subjects and draws), comparisons.csv
        (in-context models against every baseline, baselines against cross-validated ridge), curve.svg, summary.json
        and ``report/``. Subjects that are done are kept in ``.steps``.
    **options
        See `run`.

    Returns
    -------
    dict
        What summary.json holds: ``explained_variance:METHOD:SIZE`` over all voxels; ``best_baseline:SIZE``, the
        baseline of the highest mean, and ``relative:METHOD:SIZE`` of in-context models against it with
        ``p:METHOD:SIZE``; ``n_subjects``, ``n_voxels``, ``seconds``.
    """
    study = _study("icl evaluate", config, out, options)
    check_models(study)
    return perform(study, CURVE)


def incontext_inspect(config: StudyConfig, out: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Look into the networks of in-context models: heads that matter, shared circuits, attention sinks, leaks.

    Parameters
    ----------
    config : StudyConfig
        Its models and groups are those of ``[incontext.evaluate]``, the support has ``[incontext.predict] n_support``
        trials of the first new subject.
    out : path
        The study's folder. Its ``inspect/`` receives heads.csv (importance, path effect and attention of every head),
        overlap.csv (circuits of two groups of voxels), repeats.csv, summary.json and ``report/``.
    **options
        See `run`.

    Returns
    -------
    dict
        What summary.json holds: by model ``clean_error``, ``corrupt_error`` (responses permuted within the support),
        ``leaks`` (queries that stand in the support), ``silent``; ``seconds``.
    """
    study = _study("icl inspect", config, out, options)
    check_models(study)
    return perform(study, (subjects, inspect), inspection_summary, write_inspection, inspection_lines, "inspect")


def incontext_predict(config: StudyConfig, out: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Predict a new subject's responses from a few of its trials.

    Parameters
    ----------
    config : StudyConfig
        Its table ``[incontext.predict]``: ``model``, and files of support ``features``, support ``responses`` and
        ``query`` features; without files the task's first new subject, whose queries have responses to compare with.
    out : path
        Folder for predictions.nc (``predicted`` and, from anchored models, ``std``, the predictive standard deviation
        of a response), ``encoder/`` and summary.json.
    **options
        See `run`.

    Returns
    -------
    dict
        What summary.json holds: ``n_support``, ``n_query``, ``n_voxels``; ``median_std``; where the queries' responses
        are known ``mean_explained_variance``.
    """
    start = time.perf_counter()
    study = _study("icl predict", config, out, options)
    assert study.out is not None
    summary = {**study.through([predict]).summary, "seconds": round(time.perf_counter() - start, 1)}
    write_json(study.out / "summary.json", summary)
    study.say(f"predictions: {study.out / 'predictions.nc'}   ({summary['seconds']:.0f} s)")
    return summary


def plan(config: StudyConfig, out: str | os.PathLike[str], **options: Any) -> dict[str, Any]:
    """Plan a session: the pictures of a pool to show to a new subject, in their order, with the expected accuracy.

    Parameters
    ----------
    config : StudyConfig
        With ``[plan]``, from `read_config` or `example_config`.
    out : path
        Folder for plan.csv (``place, stimulus, category, explained_variance, low, high``: what is expected after each
        picture, its 5 and 95 % quantiles over voxels; ``random, random_low, random_high``: of random pictures),
        contact_sheet.jpg, repeats.csv, plan.svg, summary.json and ``report/``; see `run`.
    **options
        See `run`.

    Returns
    -------
    dict
        What ``summary.json`` holds: ``n_candidates, n_seen, n_chosen, selector, prior``, ``expected`` and
        ``expected_random`` explained variance, ``ceiling``, ``whole_pool`` (all candidates shown once), with trials
        ``repeats`` that are recommended, ``seconds``.

    Raises
    ------
    ConfigError, DataError
        An unknown prior, selector, region or picture, a pool of another space, more pictures than there are.

    Examples
    --------
    >>> from neuroenc.study import example_config
    >>> example_config("world", command="plan").plan.k
    50
    """
    return perform(_study("plan", config, out, options), PLAN)
