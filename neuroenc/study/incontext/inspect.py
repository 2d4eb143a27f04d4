"""``neuroenc icl inspect``: heads of in-context models, circuits of regions, attention sinks, leaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.provenance import provenance
from neuroenc._core.tables import write_table
from neuroenc.attention import mask_curve, path_patch, repeat_probe, retrieval_score, select_calibration_heads
from neuroenc.encoders.incontext import InContextModel, circuit_overlap, head_importance, sink_report, support_attention
from neuroenc.report import Block, Page, Section, plot_heads
from neuroenc.study.incontext.evaluate import named_models
from neuroenc.study.incontext.tasks import TaskSubject
from neuroenc.study.study import Study, stage
from neuroenc.study.text import rendered

_MOST = 200  # voxels that are looked at


@stage("inspect", reads=("parts", "config.incontext", "config.seed"), writes=("inspection",))
def inspect(study: Study) -> dict[str, Any]:
    """Heads, circuits, sinks and repeats of the models that ``icl evaluate`` compares, on the first new subject."""
    wanted, found = study.table("incontext"), {}
    for part in study.parts:
        if not part.tasks.test:
            raise ConfigError(
                "inspect needs a new subject. Next step: [[incontext.task.test]], test_seeds or held_out."
            )
        subject = part.tasks.test[0]
        sizes = (wanted.predict.n_support, wanted.evaluate.n_query, study.config.seed)
        support, queries = _support(subject, *sizes)
        # What is to be chosen for new subjects is not chosen on them.
        try:
            known = _support(part.tasks.train[-1], *sizes)
        except DataError:  # Every one of its voxels misses responses.
            known = None
        for name, model in named_models(study, part).items():
            label = f"{part.name}: {name}" if part.name else name
            if not model.has_heads or model.config.experts:
                why = "no heads that attend to trials"
                study.say(f"  {label}: {'experts, of which model.expert(name) is one' if model.has_heads else why}")
                continue
            study.say(f"  {label}: {len(support[0])} support trials, {len(queries[0])} queries of {subject.name}")
            found[label] = _inspected(study, model, support, queries, wanted.evaluate.groups, known)
    if not found:
        raise ConfigError("no in-context model to inspect. Next step: neuroenc icl pretrain, or [evaluate] models.")
    return {"inspection": found}


def _support(subject: TaskSubject, n: int, n_query: int, seed: int) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Support and queries of a subject, of at most `_MOST` voxels without missing responses."""
    order = np.random.default_rng(seed).permutation(len(subject.X))
    if subject.X_query is not None and subject.Y_query is not None:
        Xq, Yq = subject.X_query[:n_query], subject.Y_query[:n_query]
    else:
        n = min(n, len(order) // 2)
        asked = np.sort(order[n : n + n_query])
        Xq, Yq = subject.X[asked], subject.Y[asked]
    rows = np.sort(order[:n])
    X, Y = subject.X[rows], subject.Y[rows]
    whole = np.flatnonzero(np.isfinite(Y.values).all(axis=0) & np.isfinite(Yq.values).all(axis=0))
    if not len(whole):
        raise DataError(f"every voxel of {subject.name} misses responses. Next step: a smaller [predict] n_support.")
    kept = whole[np.unique(np.linspace(0, len(whole) - 1, min(_MOST, len(whole))).astype(int))]
    return (X, Y[:, kept]), (Xq, Yq[:, kept])


def _inspected(
    study: Study,
    model: InContextModel,
    support: tuple[Any, Any],
    queries: tuple[Any, Any],
    groups: str,
    known: tuple[tuple[Any, Any], tuple[Any, Any]] | None,
) -> dict[str, Any]:
    """Tables of one model, calibration by support and queries of a ``known`` subject; a silent network speaks."""
    silent = model.config.silent
    model = model.silence(False).eval()
    importance = head_importance(model, *support, *queries, progress=study.progress)
    sinks = sink_report(model, *support)
    x, y, xq, yq, *held = (
        torch.as_tensor(np.asarray(a.values), dtype=torch.float32)
        for a in (*support, *queries, *(a for pair in known or () for a in pair))
    )
    mixed = y.T[:, torch.randperm(len(x), generator=torch.Generator().manual_seed(study.config.seed))]

    def error(responses: torch.Tensor) -> Any:
        return lambda net: _error(net, x, responses.T, xq, yq)

    with torch.no_grad():
        effect = path_patch(model, error(y.T), error(mixed))
        repeats = _repeats(model, x, y, xq, yq)
        retrieval = _retrieval(model, support, model(x, y.T).predict(x))
        few = max(1, min(2, retrieval.size // 2))
        masked = mask_curve(model, error(y.T), retrieval, [few], draws=10, seed=study.config.seed)
        # Sinks are those of all weights.
        gain = xr.full_like(retrieval, np.nan)
        if held and model.config.context is None:
            gain = select_calibration_heads(model, lambda net: _error(net, *held), keep_first=model.config.registers)
    clean = float(importance["clean"].mean())
    heads = xr.Dataset(
        {
            "importance": importance.mean("voxel").drop_vars("clean", errors="ignore"),
            "path_effect": (("layer", "head"), effect.values),
            "retrieval": (("layer", "head"), retrieval.values),
            "calibration_gain": (("layer", "head"), gain.values),
            **{k: sinks[k] for k in ("registers", "largest", "sinks", "effective", "common")},
        }
    )
    overlap = None
    if groups and groups in importance.coords and len(np.unique(importance[groups].values)) > 1:
        overlap = circuit_overlap(importance, groups, top=min(4, importance.sizes["layer"] * importance.sizes["head"]))
    rounded = {tuple(row) for row in np.round(x.double().numpy(), 6).tolist()}
    leaks = sum(tuple(row) in rounded for row in np.round(xq.double().numpy(), 6).tolist())
    summary = {
        "silent": silent,
        "clean_error": clean,
        "corrupt_error": float(effect.attrs["corrupt"]),
        "masked_heads": few,
        "retrieval_masked_error": float(masked["top"][0]),
        "random_masked_error": float(masked["random"].mean()),
        "leaks": leaks,
    }
    return {"heads": heads, "overlap": overlap, "repeats": repeats, "summary": summary}


def _error(model: InContextModel, x: Any, y: Any, xq: Any, yq: Any) -> float:
    return float((model(x, y.T).predict(xq) - yq.T).square().mean())


def _retrieval(model: InContextModel, support: tuple[Any, Any], predicted: torch.Tensor) -> xr.DataArray:
    """Share of voxels whose most attended trial is of the tenth with the largest predicted responses."""
    attention = support_attention(model, *support, per_head=True).transpose("layer", "voxel", "head", "support").values
    few = max(1, predicted.shape[1] // 10)
    preferred = torch.zeros_like(predicted, dtype=torch.bool).scatter_(1, predicted.topk(few, dim=1).indices, True)
    return retrieval_score([torch.as_tensor(a)[:, :, None] for a in attention], preferred)


def _repeats(model: InContextModel, x: Any, y: Any, xq: Any, yq: Any) -> pd.DataFrame:
    """Errors on trials that stand in the support, by how far back, over those on new ones."""
    n = len(x)
    lags = sorted({1, max(1, n // 4), max(1, n // 2), n})
    turned = torch.arange(n).flip(0)
    new = (model(x, y.T).predict(xq) - yq.T).square().mean(1)

    def run(condition: str, lag: int) -> Any:
        if condition == "novel":
            return new
        order = turned if condition == "permuted" else torch.arange(n)
        seen = slice(n - lag, n - lag + 1)
        return (model(x[order], y[order].T).predict(x[seen]) - y[seen].T).square().mean(1)

    probe = repeat_probe(run, lags)
    return probe.to_dataframe().reset_index()


def write_inspection(study: Study) -> Path:
    """heads.csv, overlap.csv, repeats.csv and the page of what `inspect` found."""
    assert study.out is not None
    # Beside summary and report of ``icl evaluate``, not in their place.
    folder = study.out / "inspect"
    folder.mkdir(parents=True, exist_ok=True)
    page = Page(
        study.config.title,
        kicker="In-context encoders: heads",
        summary=inspection_summary(study),
        notes=[
            "A head's importance is by how much the squared error on new stimuli grows when its output is set to 0; "
            "its path effect is the share of the error with permuted responses that its output alone brings about; its "
            "retrieval score the share of voxels whose most attended trial is of the tenth with the largest predicted "
            "responses (.1 by chance); its calibration gain by how much a training subject's error falls when its "
            "attention sinks are down-weighted, for InContextEncoder(calibrate=)."
        ],
        provenance=provenance(inspect=study.config.seed, subjects=[p.digest for p in study.parts]),
        files=["../heads.csv", "../repeats.csv", "../summary.json"],
    )
    many = len(study.inspection) > 1
    for name, found in study.inspection.items():
        page.add(*_sections(found), tab=name if many else "")
    tables = {
        "heads": {n: f["heads"].to_dataframe().reset_index() for n, f in study.inspection.items()},
        "repeats": {n: f["repeats"] for n, f in study.inspection.items()},
        "overlap": {
            n: f["overlap"]["overlap"].to_dataframe().reset_index()
            for n, f in study.inspection.items()
            if f["overlap"] is not None
        },
    }
    for file, parts in tables.items():
        if parts:
            write_table(pd.concat(parts, names=["model"]).reset_index("model"), folder / f"{file}.csv")
    return page.write(folder / "report")


def _sections(found: dict[str, Any]) -> list[Section | None]:
    heads, overlap, said = found["heads"], found["overlap"], found["summary"]
    state = (
        "The network is silent in use: these are the heads of a network that did not help." if said["silent"] else ""
    )
    best = heads["importance"].argmax(...)
    layer, head = (int(best[d]) for d in ("layer", "head"))
    most = float(heads["importance"].max())
    first = Section(
        "heads",
        "Which heads matter",
        f"Squared error on new stimuli: {said['clean_error']:.3f} with all heads, {said['corrupt_error']:.3f} with "
        f"permuted responses. Head {head} of layer {layer} matters most: without it {most:+.4f}. Without the "
        f"{said['masked_heads']} heads of highest retrieval score the error is {said['retrieval_masked_error']:.3f}, "
        f"without as many random ones {said['random_masked_error']:.3f}.",
        [
            Block(plot_heads(heads[name], label=label), f"{label} of every head", table=None, heading=label)
            for name, label in (
                ("importance", "Rise of the error without the head"),
                ("path_effect", "Path effect"),
                ("retrieval", "Share of voxels whose most attended trial is a preferred one"),
            )
        ]
        + [Block(table=heads.to_dataframe().reset_index(), about="heads")],
        nav="Heads",
        remarks=[state],
    )
    circuits = None
    if overlap is not None:
        table = overlap["overlap"].to_pandas().reset_index(names="group")
        circuits = Section(
            "circuits",
            "Circuits shared by regions",
            f"Overlap of the {overlap.attrs['top']} most important heads of two groups; two random choices share "
            f"{float(overlap['chance']):.2f}.",
            [
                Block(plot_heads(overlap["importance"], label="importance"), "Importance of every head by group"),
                Block(table=table, about="overlap"),
            ],
            nav="Circuits",
        )
    sinks = Section(
        "sinks",
        "Attention sinks",
        "Share of the output register's attention on registers, and on the one image that draws most of it.",
        [
            Block(plot_heads(heads[name], label=label), label, heading=label)
            for name, label in (("registers", "Share on registers"), ("largest", "Largest share on an image"))
        ],
        nav="Sinks",
    )
    leaks = "No query stands in the support." if not said["leaks"] else f"{said['leaks']} queries stand in the support."
    repeats = Section(
        "repeats",
        "Repeats and leaks",
        f"{leaks} A ratio far below 1 for repeats is memory of the very trial, which any fit has of its support; "
        "other orders of the trials (permuted) change it only where the model knows their order.",
        [Block(table=found["repeats"], about="repeat probe", opened=True)],
        nav="Repeats",
    )
    return [first, circuits, sinks, repeats]


def inspection_summary(study: Study) -> dict[str, Any]:
    """Figures of every model, by its name."""
    return {f"{key}:{name}": v for name, found in study.inspection.items() for key, v in found["summary"].items()}


def inspection_lines(study: Study) -> list[str]:
    """A line a model."""
    return rendered("inspect.txt.j2", found=study.inspection).splitlines()
