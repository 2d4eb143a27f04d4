"""The bootstrap: uncertainty of scores, their differences, ceilings, and summaries over voxels and subjects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from neuroenc._core.checks import check_fraction, check_whole, make_rng, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.memory import parse_memory, voxel_blocks
from neuroenc.stats import _intervals as intervals, _resampling as draws
from neuroenc.stats._blocks import MAX_MEMORY, Floats, as_pair, check_metric
from neuroenc.stats._ceilings import CeilingSampler
from neuroenc.stats._intervals import BootstrapResult, Expansion
from neuroenc.stats._labels import match_rows, match_voxels
from neuroenc.stats._parallel import check_jobs, run
from neuroenc.stats._resampling import UNBOUNDED, Bounds, Counts, Indices, Sampler, Summary
from neuroenc.stats._rsa import resample_rdms

#: Estimate, resamples and units of a block of voxels.
Draw = Callable[[slice], tuple[Floats, Floats, Any]]


@dataclass(frozen=True, eq=False)
class Resampler:
    r"""Bootstrap over stimuli, with intervals that hold their level for few stimuli.

    Each resample draws as many stimuli as there are, with replacement, the same ones for all voxels and predictions,
    and weights the sums that make up the score: with counts W, :math:`\sum_i w_i y_i \hat y_i` for all resamples and
    voxels is one matrix product. Predictions stay fixed, so this is the uncertainty from the choice of test stimuli
    (and their noise), not from training. The resamples depend on ``seed`` and the number of stimuli alone.

    Parameters
    ----------
    n_bootstraps : int
        Resamples.
    groups : array (n_samples,), optional
        Resample whole groups instead of rows: stimulus ids when rows are presentations, sessions or runs when noise is
        shared within them. For `score`, `difference`, `regions`, `samples` and `units`.
    confidence : float
        Coverage of the intervals.
    interval : {"expanded", "percentile"}
        ``"percentile"``: quantiles of the resamples, which are too narrow for few stimuli (7 % of intervals miss the
        truth with 60, nominal 5 %). ``"expanded"``: centred, and quantiles further out; see `sample_interval`.
    seed : int
        Same seed, same resamples.
    max_memory : int or str
        Bytes ("1GB") that the working copies may take, beside 4 bytes per resample and unit, and the result.
    n_jobs : int
        Threads; -1 is all cores.
    progress : bool
        Show a bar.

    Raises
    ------
    ValueError
        A setting is not legal, or ``groups`` is given to a method that does not resample by them. Methods refuse an
        unknown metric, shapes and labels that differ, fewer than 2 units, an empty region, and one subject only where
        subjects are resampled.

    References
    ----------
    Efron & Tibshirani (1993), An Introduction to the Bootstrap. Hesterberg (2015), Am. Stat. 69:371.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = rng.standard_normal((400, 1))
    >>> yhat = y + rng.standard_normal((400, 1))
    >>> result = Resampler(seed=1).score(y, yhat)
    >>> bool(result.low[0] < 0.5**0.5 < result.high[0])
    True
    """

    n_bootstraps: int = 1000
    _: KW_ONLY
    groups: Any = None
    confidence: float = 0.95
    interval: str = "expanded"
    seed: int = 0
    max_memory: int | str = MAX_MEMORY
    n_jobs: int = 1
    progress: bool = False

    def __post_init__(self) -> None:
        check_whole("n_bootstraps", self.n_bootstraps, 2)
        check_fraction("confidence", self.confidence)
        intervals.check_interval(self.interval)
        make_rng(self.seed)
        check_jobs(self.n_jobs)
        object.__setattr__(self, "max_memory", parse_memory(self.max_memory))

    def score(self, y: Any, yhat: Any, *, metric: str = "r") -> BootstrapResult:
        """Score per voxel.

        Parameters
        ----------
        y, yhat : array (n_samples, n_voxels) or (n_samples,)
            Measured and predicted responses; a NaN in either drops that sample for that voxel.
        metric : {"r", "r2", "ev"}

        Returns
        -------
        BootstrapResult
            Arrays (n_voxels,); NaN where the score is undefined.
        """
        return self._scores(y, [yhat], metric)

    def difference(self, y: Any, yhat_a: Any, yhat_b: Any, *, metric: str = "r") -> BootstrapResult:
        """Paired difference ``score(y, yhat_a) - score(y, yhat_b)`` per voxel: both see the same resampled stimuli.

        Parameters
        ----------
        y, yhat_a, yhat_b : array (n_samples, n_voxels) or (n_samples,)
            Measured responses and two predictions of them. A NaN in one prediction drops that sample for that
            prediction only.
        metric : {"r", "r2", "ev"}

        Returns
        -------
        BootstrapResult
            Arrays (n_voxels,).

        Examples
        --------
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> y = rng.standard_normal((300, 1))
        >>> noise = rng.standard_normal((300, 1))
        >>> result = Resampler(200).difference(y, y + noise, y + 3 * noise)
        >>> bool(result.low[0] > 0), bool(result.p[0] < 0.02)
        (True, True)
        """
        return self._scores(y, [yhat_a, yhat_b], metric)

    def regions(
        self, y: Any, yhat: Any, rois: Mapping[str, Any], *, metric: str = "r", statistic: str = "median"
    ) -> dict[str, BootstrapResult]:
        """Median or mean score over the voxels of each region.

        Voxels are not resampled: they share stimuli and noise, so a mean over voxels varies far more than independent
        voxels would suggest, and resampling stimuli keeps that.

        Parameters
        ----------
        y, yhat : array (n_samples, n_voxels)
            Measured and predicted responses.
        rois : mapping {name: bool array (n_voxels,) or voxel positions}
            Regions may overlap. Labelled masks are matched to the voxels of ``y``.
        metric : {"r", "r2", "ev"}
        statistic : {"median", "mean"}
            Over the voxels of a region whose score is not NaN; resamples of a median as in `median_samples`.

        Returns
        -------
        dict {name: BootstrapResult}
            With scalars (0-d arrays). One resample of all voxels' scores must fit in memory.

        Examples
        --------
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> y = rng.standard_normal((200, 6))
        >>> yhat = y + rng.standard_normal((200, 6))
        >>> out = Resampler(100).regions(y, yhat, {"V1": [0, 1, 2], "all": np.ones(6, bool)})
        >>> bool(out["all"].low < out["all"].estimate < out["all"].high)
        True
        """
        statistic = one_of("statistic", statistic, ("median", "mean"))
        metric = check_metric(metric)
        y2, p2, _ = as_pair(y, yhat)
        members = draws.region_members(rois, y2.shape[1], y)
        counts, unit, n_units = self._draw(y, y2)
        how: dict[str, Any] = {"metric": metric, "statistic": statistic}
        how |= {"max_memory": self._budget, "jobs": check_jobs(self.n_jobs), "progress": self.progress}
        estimate, samples = draws.resample_summaries([(y2, p2)], list(members.values()), counts, unit, **how)
        scale, columns = intervals.expansion(n_units), samples.T[..., None]
        found = [Summary(x, drawn, scale, n_units, metric) for x, drawn in zip(estimate, columns, strict=True)]
        return {roi: self._result(x) for roi, x in zip(members, found, strict=True)}

    def samples(self, y: Any, yhat: Any, *, metric: str = "r", dtype: Any = np.float64) -> tuple[Floats, Any]:
        """Score of every voxel in every resample, for statistics that compare many predictions of the same responses.

        Samples of two predictions are paired, so that every comparison of K predictions costs K bootstraps and not
        K (K - 1).

        Parameters
        ----------
        y, yhat : array (n_samples, n_voxels)
            Measured and predicted responses; a NaN in either drops that sample for that voxel. Rows that none of some
            voxels saw cost nothing for these.
        metric : {"r", "r2", "ev"}
        dtype : dtype
            Of the samples.

        Returns
        -------
        estimate : array (n_voxels,), float64
        samples : array (n_bootstraps, n_voxels)
            For `sample_interval` with `units`; NaN where the score is undefined.

        Examples
        --------
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> y = rng.standard_normal((200, 2))
        >>> a, b = (y + k * rng.standard_normal((200, 2)) for k in (1, 3))
        >>> resampler = Resampler(seed=1)
        >>> difference = resampler.samples(y, a)[1] - resampler.samples(y, b)[1]
        >>> np.allclose(difference.std(axis=0, ddof=1), resampler.difference(y, a, b).standard_error)
        True
        """
        metric = check_metric(metric)
        y2, p2, _ = as_pair(y, yhat)
        counts, unit, _ = self._draw(y, y2)
        return draws.resample_scores(y2, p2, counts, unit, metric=metric, max_memory=self._budget, dtype=dtype)

    def means(self, values: Any) -> tuple[Floats, Floats]:
        """Mean of every column over the samples, and in every resample: shares of right answers, say.

        Resamples are those of `samples` for as many stimuli, so that both can stand in one comparison.

        Parameters
        ----------
        values : array (n_samples, n_columns)
            Without NaN.

        Returns
        -------
        estimate : array (n_columns,), float64
        samples : array (n_bootstraps, n_columns), float64

        Examples
        --------
        >>> import numpy as np
        >>> right = np.random.default_rng(0).random((200, 2)) < [0.5, 0.9]
        >>> share, drawn = Resampler(100).means(right)
        >>> drawn.shape, bool(abs(drawn.mean(axis=0) - share).max() < 0.02)
        ((100, 2), True)
        """
        columns, _, _ = as_pair(values, values)
        columns = np.asarray(columns, dtype=np.float64)
        counts, unit, _ = self._draw(values, columns)
        samples = np.empty((self.n_bootstraps, columns.shape[1]))
        for rows, weights in draws.weight_chunks(counts, unit, self._step(len(columns))):
            samples[rows] = weights @ columns / weights.sum(axis=1)[:, None]
        return columns.mean(axis=0), samples

    def units(self, y: Any, yhat: Any) -> Floats:
        """Count the stimuli (groups) that every voxel has seen: the ``n_units`` of `sample_interval`.

        Parameters
        ----------
        y, yhat : array (n_samples, n_voxels)

        Returns
        -------
        array (n_voxels,), float64

        Examples
        --------
        >>> import numpy as np
        >>> y = np.array([[1.0, np.nan], [2.0, 5.0], [3.0, 6.0], [4.0, np.nan]])
        >>> Resampler().units(y, y), Resampler(groups=["a", "a", "b", "b"]).units(y, y)
        (array([4., 2.]), array([2., 2.]))
        """
        y2, p2, _ = as_pair(y, yhat)
        units = draws.unit_of(len(y2), match_rows(y, self.groups, ("y", "groups")))
        return draws.units_seen(y2, p2, *units, self._budget)

    def ceiling(self, responses: Any, stimulus: Any, *, unit: str, **how: Any) -> BootstrapResult:
        """Noise ceiling per voxel; stimuli are resampled with all their repeats.

        Parameters
        ----------
        responses : array (n_presentations, n_voxels)
        stimulus : array (n_presentations,)
        unit : {"r2", "r"}
            Share of variance or correlation.
        n_repeats : int, array or mapping, optional
            As in `noise_ceiling`; by default the counts in ``stimulus``.
        total, weighting : str
            As in `ncsnr`.

        Returns
        -------
        BootstrapResult
            ``estimate`` is `noise_ceiling` of the `ncsnr`; ``metric`` names the unit. Where the estimate is cut off
            at 0 the interval begins at 0.

        Examples
        --------
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> stimulus = np.repeat(np.arange(500), 3)
        >>> y = rng.standard_normal((500, 1))[stimulus] + rng.standard_normal((1500, 1))   # planted: 3 / 4
        >>> found = Resampler(200).ceiling(y, stimulus, unit="r2", total="empirical")
        >>> bool(found.low[0] < 0.75 < found.high[0])
        True
        """
        self._refuse_groups("ceiling")
        source = CeilingSampler(responses, stimulus, unit=unit, max_memory=self._budget, **how)
        n_units, n_voxels = len(source.counts), len(source.estimate)
        drawn = draws.draw_counts(n_units, self.n_bootstraps, self.seed).astype(np.float64)

        def draw(columns: slice) -> tuple[Floats, Floats, Any]:
            own, samples = source.estimate[columns], source.ceilings(columns, drawn)
            samples[:, np.isnan(own)] = np.nan
            return own, samples, n_units

        held = source.rows_held + 8 * self.n_bootstraps
        return self._voxelwise(draw, (n_voxels,), held, n_units, source.unit, (0.0, 1.0))

    def normalised(
        self,
        y: Any,
        yhat: Any,
        responses: Any,
        stimulus: Any,
        *,
        y_stimulus: Any = None,
        metric: str = "r",
        floor: float | None = None,
        **how: Any,
    ) -> BootstrapResult:
        r"""Score as a share of the noise ceiling per voxel, with the uncertainty of both.

        In every resample the score and the ceiling are computed anew and divided. The ceiling's unit follows the
        metric: correlations are divided by a correlation ceiling, shares of variance by a variance ceiling.

        Parameters
        ----------
        y, yhat : array (n_stimuli, n_voxels)
            Responses averaged over repeats, and predictions of them.
        responses, stimulus
            Single presentations and their stimuli, as in `ncsnr`: of the same stimuli, or of others.
        y_stimulus : array (n_stimuli,), optional
            Stimuli of the rows of ``y``. Given, a resample holds the same stimuli in score and ceiling, whose errors
            are then correlated as they are; without, the two are resampled independently.
        metric : {"r", "r2", "ev"}
        floor : float, optional
            Voxels whose ceiling is below it become NaN; default 0.1 in unit "r" and 0.01 in unit "r2". In a resample a
            ceiling below the floor is the floor, which keeps intervals of weak voxels wide but finite.
        n_repeats, total, weighting
            As in `ceiling`. The default of ``n_repeats`` is right where ``y`` holds the means of these presentations.

        Returns
        -------
        BootstrapResult
            Values above 1 occur by chance and are kept.

        Examples
        --------
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> stimulus = np.repeat(np.arange(400), 3)
        >>> signal = rng.standard_normal((400, 1))
        >>> single = signal[stimulus] + rng.standard_normal((1200, 1))
        >>> y = single.reshape(400, 3, 1).mean(axis=1)
        >>> found = Resampler(200).normalised(y, signal, single, stimulus, total="empirical")
        >>> bool(found.low[0] < 1 < found.high[0])                        # the true model reaches the ceiling
        True
        """
        self._refuse_groups("normalised")
        metric = check_metric(metric)
        unit = "r" if metric == "r" else "r2"
        y2, p2, shape = as_pair(y, yhat)
        responses = match_voxels(y, responses, ("y", "responses"))
        least = (0.1 if unit == "r" else 0.01) if floor is None else float(floor)
        if not 0 < least <= 1:
            raise ConfigError(f"floor={floor!r} is not legal; give a fraction in (0, 1].")
        source = CeilingSampler(responses, stimulus, unit=unit, max_memory=self._budget, **how)
        ceiling, (n, n_voxels) = source.estimate, y2.shape
        if len(ceiling) != n_voxels:
            raise DataError(f"y has {n_voxels} voxels and responses {len(ceiling)}; both must hold the same ones.")
        ids = np.unique(np.asarray(stimulus))
        y_stimulus = match_rows(y, y_stimulus, ("y", "y_stimulus"))
        drawn_y, drawn_c, n_units = draws.joint_draws(y_stimulus, n, ids, self.n_bootstraps, self.seed)

        def draw(columns: slice) -> tuple[Floats, Floats, Any]:
            sampler, limit = Sampler(y2, p2, columns, metric), source.ceilings(columns, drawn_c)
            samples = sampler.scores(drawn_y) / np.where(np.isnan(limit), np.nan, np.maximum(limit, least))
            usable = ceiling[columns] >= least
            samples[:, ~usable] = np.nan
            # Where score and ceiling have stimuli of their own, the fewer decide how far the tails reach.
            own = np.where(usable, ceiling[columns], np.nan)
            return sampler.estimate / own, samples, min(n_units, len(ids))

        held = source.rows_held + 20 * n + 12 * self.n_bootstraps
        return self._voxelwise(draw, shape, held, n_units, f"{metric}/ceiling")

    def subjects(
        self,
        data: Mapping[str, Any],
        *,
        stimulus: Any = None,
        over: str = "both",
        metric: str = "r",
        statistic: str | None = "median",
    ) -> BootstrapResult:
        r"""Mean over subjects of a score, or of a difference of two encoders.

        Stimuli are resampled (the same draw for all subjects who saw them), subjects, or both crossed. The crossed
        bootstrap counts the noise of single entries more than once, and ``variance["corrected"]``, of which the
        standard error is the root, is

        .. math:: \sigma^2 = \min(\max(2 (\sigma^2_{stimuli} + \sigma^2_{subjects}) - \sigma^2_{both},
                  \sigma^2_{stimuli}, \sigma^2_{subjects}), \sigma^2_{both})

        The expanded interval of both has the corrected variance, and the degrees of freedom of a sum of the variances
        over stimuli and over subjects (Satterthwaite): those of the subjects where subjects differ, and those of the
        stimuli where they do not.

        Parameters
        ----------
        data : mapping {subject: (y, yhat) or (y, yhat_a, yhat_b)}
            Arrays (n_stimuli, n_voxels), test stimuli and voxels of that subject; three arrays ask for the difference
            score(y, yhat_a) - score(y, yhat_b).
        stimulus : array (n_stimuli,) or mapping {subject: array}, optional
            Ids of the rows; equal ids are drawn together. Default the labels "stimulus" of labelled responses; without
            any, row n is the same stimulus in all subjects.
        over : {"both", "stimuli", "subjects"}
            To what the interval generalises. With fewer than 6 subjects the mean over them takes too few values for
            percentiles, which leave out 0 in 25 % of cases with 3 subjects; the expanded interval is then Student's.
        metric : {"r", "r2", "ev"}
        statistic : {"median", "mean"} or None
            Over the voxels of a subject (voxels differ between subjects; give those of one region). None keeps them:
            corresponding voxels (parcels, vertices), one result for each.

        Returns
        -------
        BootstrapResult
            With ``variance``, ``subjects`` and ``samples``.

        References
        ----------
        Owen (2007), Ann. Appl. Stat. 1:386. Schütt et al. (2023), eLife 12:e82566 (the correction). Satterthwaite
        (1946), Biometrics Bulletin 2:110.

        Examples
        --------
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> data = {}
        >>> for subject in ("s1", "s2", "s3"):
        ...     y = rng.standard_normal((100, 20))
        ...     data[subject] = y, y + rng.standard_normal((100, 20)), y + 2 * rng.standard_normal((100, 20))
        >>> found = Resampler(200).subjects(data)
        >>> bool(found.low > 0)
        True
        """
        self._refuse_groups("subjects")
        settings = self.n_bootstraps, self._budget
        return self._result(
            draws.resample_subjects(data, stimulus, over, check_metric(metric), statistic, *settings, **self._loop)
        )

    def rdms(self, models: Any, data: Any, *, over: str = "both", method: str = "spearman") -> BootstrapResult:
        """Comparison of every model RDM with those of subjects, from the choice of stimuli, of subjects, or of both.

        A resample of stimuli repeats some; pairs of a stimulus with itself have no dissimilarity and are left out. All
        models see the same resamples, so that differences of columns of the samples are paired.

        Parameters
        ----------
        models : array (n_models, n_pairs) or squares
        data : array (n_subjects, n_pairs) or squares
        over : {"both", "stimuli", "subjects"}
            To what a conclusion is to generalise. Crossed resamples (``"both"``) count the noise of single entries
            several times; the standard error and the expanded interval are corrected as in `subjects`, and too wide
            where subjects differ by noise alone (8 subjects: 98 to 99 % of 95 % intervals held the truth).
        method : str
            As in `compare_rdms`.

        Returns
        -------
        BootstrapResult
            Arrays (n_models,): mean comparison over subjects, with ``samples`` (n_bootstraps, n_models).

        References: Nili et al. (2014), PLoS Comput. Biol. 10:e1003553; Schütt et al. (2023), eLife 12:e82566.

        Examples
        --------
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> truth = rng.random(190)
        >>> data = truth + 0.5 * rng.standard_normal((6, 190))
        >>> found = Resampler(200).rdms(np.stack([truth, rng.random(190)]), data)
        >>> bool(found.low[0] > 0), bool(np.quantile(found.samples[:, 0] - found.samples[:, 1], 0.025) > 0)
        (True, True)
        """
        self._refuse_groups("rdms")
        return self._result(resample_rdms(models, data, over, method, self.n_bootstraps, **self._loop))

    @property
    def _loop(self) -> dict[str, Any]:
        return {"seed": self.seed, "n_jobs": self.n_jobs, "progress": self.progress}

    @property
    def _budget(self) -> int:
        return parse_memory(self.max_memory)

    def _step(self, n: int) -> int:
        """Resamples whose weights are held at once."""
        return int(max(1, min(self.n_bootstraps, self._budget // 4 // (8 * n))))

    def _refuse_groups(self, method: str) -> None:
        if self.groups is not None:
            raise ConfigError(f"groups is given, but {method} resamples stimuli as they are. Next step: leave it out.")

    def _draw(self, y: Any, y2: Any) -> tuple[Counts, Indices, int]:
        """Counts of units, the unit of every sample, and how many there are."""
        if self.groups is None and "time" in getattr(y, "coords", ()):
            raise DataError(
                f"the {len(y2)} samples are volumes of a time series, which are not independent: intervals would be "
                "too narrow. Next step: Resampler(groups=RUNS), or numbers of blocks of a minute or so."
            )
        unit, n_units = draws.unit_of(len(y2), match_rows(y, self.groups, ("y", "groups")))
        return draws.draw_counts(n_units, self.n_bootstraps, self.seed), unit, n_units

    def _scores(self, y: Any, predictions: list[Any], metric: str) -> BootstrapResult:
        metric = check_metric(metric)
        y2, first, shape = as_pair(y, predictions[0])
        predicted = [first, *(as_pair(y, x, ("y", "yhat_b"))[1] for x in predictions[1:])]
        n = len(y2)
        counts, unit, n_units = self._draw(y, y2)
        step = self._step(n)

        def draw(columns: slice) -> tuple[Floats, Floats, Any]:
            samplers = [Sampler(y2, x, columns, metric) for x in predicted]
            own = draws.difference([s.estimate for s in samplers])
            samples = np.empty((self.n_bootstraps, len(own)))
            for rows, weights in draws.weight_chunks(counts, unit, step):
                samples[rows] = draws.difference([s.scores(weights) for s in samplers])
            seen = [draws.count_units(s.pair.valid, unit, n_units, len(own)) for s in samplers]
            return own, samples, np.max(seen, axis=0)

        # What a score cannot exceed: Student's limits, where few units need them, know nothing of it.
        bounds = {"r": (-1.0, 1.0), "r2": (-np.inf, 1.0), "ev": (-np.inf, 1.0)}[metric]
        if len(predicted) == 2:
            bounds = (-2.0, 2.0) if metric == "r" else UNBOUNDED
        held = 9 * n * len(predicted) + 4 * self.n_bootstraps + 8 * step
        return self._voxelwise(draw, shape, held, n_units, metric, bounds)

    def _voxelwise(
        self, draw: Draw, shape: tuple[int, ...], held: int, n_units: int, name: str, bounds: Bounds = UNBOUNDED
    ) -> BootstrapResult:
        """Of every voxel, from blocks of voxels that ``draw`` gives, for which ``held`` rows are kept."""
        out = np.full((5, int(np.prod(shape))), np.nan)

        def work(columns: slice) -> None:
            own, samples, units = draw(columns)
            out[:, columns] = self._limits(own, samples, intervals.expansion(units), bounds)

        jobs = check_jobs(self.n_jobs)
        blocks = voxel_blocks(out.shape[1], 8 * held, self._budget // 2 + 1, jobs)
        for _ in run(work, blocks, n_jobs=jobs, progress=self.progress, desc="bootstrap"):
            pass
        return self._told(out, shape, n_units, name)

    def _result(self, found: Summary) -> BootstrapResult:
        """Of a few summaries, with their resamples."""
        limits = list(self._limits(np.atleast_1d(found.estimate), found.samples, found.scale, found.bounds))
        if found.error is not None:
            limits[1] = found.error
        shape = np.shape(found.estimate)
        more = found.samples.reshape(-1, *shape), found.variance, found.subjects
        return self._told(limits, shape, found.n_units, found.name, *more)

    def _limits(self, estimate: Floats, samples: Floats, scale: Expansion, bounds: Bounds) -> tuple[Floats, ...]:
        """Estimate, standard error, limits and p-value of every column."""
        error, used = intervals.standard_deviation(samples), scale if self.interval == "expanded" else None
        low, high, p = intervals.interval_and_p(samples, estimate, error, self.confidence, used)
        return estimate, error, np.clip(low, *bounds), np.clip(high, *bounds), p

    def _told(self, limits: Any, shape: tuple[int, ...], n_units: int, name: str, *more: Any) -> BootstrapResult:
        settings = self.confidence, self.n_bootstraps, self.interval
        estimate, error, low, high, p = (np.reshape(x, shape) for x in limits)
        return BootstrapResult(estimate, error, low, high, p, n_units, name, *settings, *more)
