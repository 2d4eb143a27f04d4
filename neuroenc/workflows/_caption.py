"""``neuroenc caption``: from responses to captions of voxels, checked, scored, and exported as a report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neuroenc._core.files import output_folder, write_json
from neuroenc.captions import gate_voxels
from neuroenc.workflows._caption_config import CaptionConfig
from neuroenc.workflows._caption_contents import contents_of
from neuroenc.workflows._caption_decoders import make_decoder, make_text_embedder
from neuroenc.workflows._caption_fit import fit_subjects
from neuroenc.workflows._caption_inputs import load_bank_of, load_subjects, load_texts
from neuroenc.workflows._caption_readings import Readings
from neuroenc.workflows._caption_stages import analysed, captioned, checked, grounded
from neuroenc.workflows._caption_summary import closing_lines, summary_of
from neuroenc.workflows._captioner import Captioner
from neuroenc.workflows._preflight import check_caption
from neuroenc.workflows._steps import Steps

__all__ = ["caption"]


def caption(
    config: CaptionConfig,
    out: str | os.PathLike[str],
    *,
    mirror: str | os.PathLike[str] | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Caption the voxels of one or several subjects, check the captions, and write the report.

    The encoder never sees the held-out rows of ``[held_out]``: accuracy, the gate and the sentence-level score are of
    those. The bank is hashed, and read once for all stages (again only for voxels that do not fit a quarter of the
    memory). Steps that are done are kept in ``out/.steps`` by the content of all they read (bank, captioner, encoder,
    captions, word lists, settings), so that what has changed is done again; the same call after a kill goes on and ends
    with the same files (``seconds`` apart).

    Parameters
    ----------
    config : CaptionConfig
        From `read_caption_config` or `example_caption_config`.
    out : path
        Folder for ``report/``, ``study/`` and ``summary.json``.
    mirror : path, optional
        Folder with data sets, tried before any download.
    progress : bool
    say : callable
        Gets the lines that the command prints.

    Returns
    -------
    dict
        What ``summary.json`` holds: ``n_voxels, n_captioned, median_r, captioned_median_r``,
        ``sentence_mean`` with its interval, ``round_trip``, ``agreement:KIND`` with its interval, measured on
        ``stability_n_voxels`` of ``stability_of_voxels``, ``hallucination_rate``, for simulated subjects
        ``planted_...``, ``seconds``.

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
    >>> from neuroenc.workflows import example_caption_config
    >>> example_caption_config("world").decoder.kind      # caption(config, "captions-of-the-world") takes two minutes
    'prefix'
    """
    start = time.perf_counter()
    check_caption(config, mirror)
    out, folder = output_folder(out), None if mirror is None else os.fspath(mirror)
    steps = Steps(out / ".steps", say)
    say(f"1/6 data: {config.data.name or Path(config.data.responses).name}")
    subjects, shown, unseen = load_subjects(config, folder, progress)
    for one in subjects:
        say(f"    {one.name}: {len(one.Y)} rows to fit on, {len(one.Y_test)} held out, {one.Y.shape[1]} voxels")
    say(f"2/6 encoder: ridge on unit-norm embeddings of {config.space.model}")
    fitted = fit_subjects(config, subjects, steps)
    gate = gate_voxels(
        fitted.scores,
        config.gate.kind,
        q=config.gate.q,
        rois=config.gate.rois,
        min_ceiling_r=config.gate.min_ceiling_r,
    )
    say(f"    {int(gate['captioned'].sum())} of {len(gate)} voxels pass the gate")
    say(f"3/6 captions: {config.projection.method} projection, {config.decoder.kind} decoder")
    texts = load_texts(config, subjects, shown, unseen, folder, progress)
    bank = load_bank_of(config, subjects, shown, unseen, texts, folder, progress)
    embed_text = make_text_embedder(config)
    decoder = make_decoder(config, texts, embed_text)
    p = config.projection
    captioner = Captioner(
        bank.embeddings,
        decoder,
        stimuli=bank.stimuli,
        embed_text=embed_text,
        method=p.method,
        top=config.decoder.top,
        n_evidence=config.grounding.images,
        temperature=p.temperature,
        renormalise=p.renormalise,
        decouple=p.decouple,
        progress=progress,
    )
    passed = gate["captioned"].to_numpy(dtype=bool)
    contents = contents_of(config, captioner, fitted, subjects, texts, embed_text)
    readings = Readings(config, captioner, fitted, passed, subjects, contents, steps)
    study = captioned(config, captioner, fitted, gate, bank, contents, readings, steps)
    study = grounded(config, captioner, fitted, study, texts, contents, readings, steps, say)
    study = checked(config, captioner, fitted, study, subjects, shown, texts, contents, readings, steps, progress, say)
    study = analysed(config, captioner, fitted, study, texts, contents, readings, steps, say)
    summary = summary_of(study, len(subjects))
    say("6/6 report")
    study.save(out / "study")
    page = captioner.report(study, out / "report", progress=progress)
    summary["seconds"] = round(time.perf_counter() - start, 1)
    write_json(out / "summary.json", summary)
    for line in closing_lines(summary):
        say(line)
    say(f"report: {page}   ({summary['seconds']:.0f} s)")
    return summary
