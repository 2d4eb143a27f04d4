"""What the stages of a captioning need of the bank, found in one reading of it and kept beside the run's steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.errors import DataError
from neuroenc._core.files import read_sealed_json, sha256_file, write_sealed_json
from neuroenc.captions import bank_folds, shuffled_control
from neuroenc.captions._bank_pass import BankPass
from neuroenc.captions._study import read_table, write_table
from neuroenc.captions.checks._gate import sample_voxels
from neuroenc.captions.checks._grounding_bank import BankImages
from neuroenc.captions.checks._stability import StabilityJob, stability_jobs
from neuroenc.data import load, save
from neuroenc.encoders import resampled_rows, ridge_weights
from neuroenc.workflows._caption_config import CaptionConfig
from neuroenc.workflows._caption_contents import Contents
from neuroenc.workflows._caption_fit import Fitted
from neuroenc.workflows._caption_inputs import Subject
from neuroenc.workflows._captioner import Captioner
from neuroenc.workflows._steps import Steps

__all__ = ["Readings", "sampled_voxels"]


def sampled_voxels(config: CaptionConfig, fitted: Fitted, passed: np.ndarray) -> np.ndarray:
    """Voxels (bool) on which stability is measured, a stratified sample of those that passed the gate."""
    scores, at = fitted.scores, np.flatnonzero(passed)
    rois = scores["roi"].values[at] if "roi" in scores.coords else np.full(len(at), "")
    names = scores["subject"].values[at] if "subject" in scores.coords else np.full(len(at), "")
    strata = [f"{subject} {str(roi).split(';')[0]}" for subject, roi in zip(names, rois)]
    out = np.zeros(len(passed), dtype=bool)
    out[at[sample_voxels(strata, config.stability.max_voxels or None, config.seed)]] = True
    return out


def _resampled(subjects: list[Subject], fitted: Fitted, chosen: np.ndarray, kind: str, n: int, seed: int) -> Iterator:
    """Weights of chosen voxels on resampled stimuli, one variant after another."""
    streams = []
    for s, (subject, alpha, voxels) in enumerate(zip(subjects, fitted.alphas, fitted.voxels)):
        groups = subject.Y.coords["stimulus"].values
        if len(np.unique(groups)) < 20 and "run" in subject.Y.coords:
            # Few stimuli, each shown in every run: runs are what was sampled.
            groups = subject.Y.coords["run"].values
        mine = np.flatnonzero(chosen[voxels])
        rows = resampled_rows(groups, kind, n, seed=seed + 1000 * s)
        streams.append((subject.X.values, subject.Y.values[:, mine], np.asarray(alpha)[mine], rows))
    coef = fitted.coef.isel(voxel=np.flatnonzero(chosen))
    for _ in range(2 * n if kind == "halves" else n):
        parts = []
        for x, y, alpha, rows in streams:
            at = next(rows)
            if y.shape[1]:
                parts.append(ridge_weights(x[at], y[at], alpha)[0])
        yield coef.copy(data=np.concatenate(parts, axis=1).astype(coef.dtype))


class Readings:
    """Projections, best images, and images at random: read once, when the first of them is asked for.

    What was read lies in ``out/.steps/bank-...``: a run that goes on does not read the bank again.

    Parameters
    ----------
    passed : bool array (voxel,)
        Voxels that the gate lets through.
    contents : Contents
        What is read, by content.
    """

    def __init__(
        self,
        config: CaptionConfig,
        captioner: Captioner,
        fitted: Fitted,
        passed: np.ndarray,
        subjects: list[Subject],
        contents: Contents,
        steps: Steps,
    ) -> None:
        self._config, self._captioner, self._fitted, self._steps = config, captioner, fitted, steps
        self._passed, self._subjects = passed, subjects
        self.n_passed = int(passed.sum())
        #: Voxels (bool) on which stability is measured.
        self.sampled = sampled_voxels(config, fitted, passed)
        inputs = {
            "contents": [contents.weights, contents.rows, contents.scores, contents.bank],
            "passed": passed,
            "projection": config.projection,
            "seed": config.seed,
            "n_evidence": captioner.n_evidence,
            "stability": config.stability,
            "grounding": config.grounding.enabled,
        }
        self._folder = steps.path("bank", inputs)

    @property
    def key(self) -> str:
        """A name for all that was read."""
        return self._folder.name

    @cached_property
    def _there(self) -> Path:
        if self._whole():
            self._steps.say(f"  bank: read before, taken from {self._folder.parent.name}/")
        else:
            began = time.perf_counter()
            times = self._read()
            self._steps.say(f"  bank: {time.perf_counter() - began:.1f} s, read {times}")
        return self._folder

    def _whole(self) -> bool:
        """Whether the bank was read, and every file of that is as it was written."""
        if not self._folder.is_dir():
            return False
        try:
            record = read_sealed_json(self._folder / "readings.json", needed=("files", "evidence", "stability"))
            return all(sha256_file(self._folder / name) == seal for name, seal in record["files"].items())
        except (DataError, OSError):
            return False

    @cached_property
    def fitted(self) -> xr.Dataset:
        """Projection of voxels that passed."""
        return self._load("fitted")

    @cached_property
    def evidence(self) -> pd.DataFrame:
        """Their best images."""
        return read_table(self._there, self._record["evidence"])

    @property
    def shuffled(self) -> xr.Dataset:
        """Projection of their weights with features shuffled."""
        return self._load("shuffled")

    @property
    def images(self) -> BankImages | None:
        """What phrases are compared with; None where they are not checked."""
        if "random" not in self._record:
            return None
        found = self._load("images")
        vectors = dict(zip(found["stimulus"].values.astype(str).tolist(), found["vectors"].values))
        return BankImages(found["mean"].values, float(found["norm"]), vectors, self._record["random"])

    def stability(self) -> Iterator[tuple[str, bool, xr.Dataset]]:
        """Kind, whether it is the null, and projection of each captioning that stability rests on."""
        for number, (kind, null) in enumerate(self._record["stability"]):
            yield kind, null, self._load(f"stability-{number:03d}")

    @property
    def n_stability(self) -> int:
        """Captionings that stability rests on."""
        return len(self._record["stability"])

    @cached_property
    def _record(self) -> dict[str, Any]:
        found: dict[str, Any] = read_sealed_json(self._there / "readings.json")
        return found

    def _load(self, name: str) -> xr.Dataset:
        found = load(self._there / f"{name}.nc")
        assert isinstance(found, xr.Dataset)
        return found

    def _jobs(self) -> list[StabilityJob]:
        s, seed = self._config.stability, self._config.seed
        kept = self._fitted.coef.isel(voxel=np.flatnonzero(self.sampled))
        variants: dict[str, list[Any]] = {}
        if s.folds:
            size = self._captioner.bank.n
            if size is None or size < s.folds:
                raise DataError(
                    f"a bank of {size} images cannot be dealt into {s.folds} folds. Next step: [stability] folds = 0."
                )
            variants["folds"] = [(kept, part) for part in bank_folds(size, s.folds, seed=seed)]
        for name, kind, n in (("bootstrap", "bootstrap", s.bootstraps), ("halves", "halves", s.halves)):
            if n:
                drawn = _resampled(self._subjects, self._fitted, self.sampled, kind, n, seed)
                variants[name] = [(w, None) for w in drawn]
        return stability_jobs(variants, null_voxels=s.null_voxels, seed=seed)

    def _read(self) -> str:
        """Read the bank for all stages and keep what they need; how often it was read, in words."""
        captioner, at = self._captioner, np.flatnonzero(self._passed)
        coef, bias = self._fitted.coef.isel(voxel=at), self._fitted.intercept.values[at]
        mixed = shuffled_control(self._fitted.coef, self._config.seed).isel(voxel=at)
        jobs = self._jobs()
        reading = BankPass(captioner.bank, max_memory=captioner.max_memory, progress=captioner.progress)
        ask = captioner.asking(reading)
        fitted, shuffled = ask(coef, intercept=bias), ask(mixed)
        variants = [ask(job.weights, job.bank) for job in jobs]
        told = captioner.stimuli is not None and captioner.stimuli.captions is not None
        told = told and all(captioner.stimuli.captions)  # type: ignore[union-attr, arg-type]
        grounding = self._config.grounding.enabled
        best = reading.evidence(
            coef,
            intercept=bias,
            k=max(1, min(captioner.n_evidence, int(captioner.bank.n or 0))),
            features_normalised=captioner.features_normalised,
            keep_rows=grounding and not told,
        )
        # As many as `GroundingChecker` draws by itself.
        images = reading.images(1000, self._config.seed) if grounding else None
        reading.read()
        self._folder.mkdir(parents=True, exist_ok=True)
        save(fitted(), self._folder / "fitted.nc")
        save(shuffled(), self._folder / "shuffled.nc")
        for number, variant in enumerate(variants):
            save(variant(), self._folder / f"stability-{number:03d}.nc")
        found = best()
        table = found.table if captioner.n_evidence else found.table.iloc[:0]
        record: dict[str, Any] = {
            "evidence": write_table(table, self._folder / "evidence"),
            "stability": [[job.kind, job.null] for job in jobs],
        }
        if images is not None:
            seen = images()
            vectors = {**found.rows, **seen.vectors}
            rows = np.stack([np.asarray(v, np.float64) for v in vectors.values()])
            parts = {"mean": ("feature", seen.mean), "norm": seen.norm, "vectors": (("stimulus", "feature"), rows)}
            save(xr.Dataset(parts, coords={"stimulus": list(vectors)}), self._folder / "images.nc")
            record["random"] = seen.random
        kept = sorted(p for p in self._folder.glob("[!.]*") if p.is_file() and p.name != "readings.json")
        write_sealed_json(self._folder / "readings.json", {**record, "files": {p.name: sha256_file(p) for p in kept}})
        times = {1: "once", 2: "twice"}.get(reading.n_passes, f"{reading.n_passes} times")
        return times if captioner.method == "softmax" else f"{times} beside the projections"
