"""Image synthesis from captions, and evaluation of images by a second encoder."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from PIL import Image

from neuroenc import stats
from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import check_whole, make_rng
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.optional import require
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.provenance import provenance
from neuroenc.captions.analysis._words import region_masks
from neuroenc.captions.checks._grounding_bank import read_images
from neuroenc.captions.projection._stream import IdCollector
from neuroenc.captions.text._vectors import embed
from neuroenc.data import Stimuli, read_picture
from neuroenc.retrieval import as_bank, top_k


def diffusion_pipeline(
    model: str | os.PathLike[str] = "stabilityai/stable-diffusion-2-1-base",
    *,
    device: str = "cpu",
    allow_download: bool = False,
    **options: Any,
) -> Any:
    """Load a diffusers text-to-image pipeline with a DPM-Solver++ multistep sampler.

    Parameters
    ----------
    model : str or path
        A folder, or a name whose files are already in the local cache.
    device : str
    allow_download : bool
        Only then are several gigabytes fetched.
    **options
        Of ``diffusers.DiffusionPipeline.from_pretrained``.

    Returns
    -------
    diffusers.DiffusionPipeline
        On ``device``, for :func:`synthesise`.

    Raises
    ------
    ModuleNotFoundError
        diffusers is not installed.
    ConfigError
        The model is not on this machine and ``allow_download`` is False.

    References
    ----------
    Lu et al. (2022), DPM-Solver++. Rombach et al. (2022), CVPR.
    """
    try:
        diffusers = require("diffusers", "language")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "diffusers is needed to synthesise images and is not installed. Next step: pip install diffusers, or pass "
            "your own pipeline, or use retrieve_images(captions, bank, embed_text), which needs no generator.",
            name="diffusers",
        ) from None
    try:
        found = diffusers.DiffusionPipeline.from_pretrained(
            os.fspath(model), local_files_only=not allow_download, **options
        )
    except OSError as error:
        raise ConfigError(
            f"model {os.fspath(model)!r} is not on this machine: {error} Next step: a folder with its files, or "
            "allow_download=True."
        ) from error
    found.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        found.scheduler.config, algorithm_type="dpmsolver++", solver_order=2
    )
    return found.to(device)


def _as_array(picture: Any, caption: str) -> np.ndarray:
    if isinstance(picture, Image.Image):
        return np.asarray(read_picture(picture)[0])
    values = np.asarray(picture)
    if values.ndim != 3 or values.shape[-1] != 3:
        raise DataError(f"the pipeline gave an image of shape {values.shape} for {caption[:60]!r}; legal is (y, x, 3).")
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f" or not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise DataError(
            f"the pipeline gave an image of dtype {values.dtype} for {caption[:60]!r}; legal: uint8, floats from 0 "
            "to 1, PIL images."
        )
    return np.rint(255 * values).astype(np.uint8)


def _generators(pipeline: Any, seeds: list[int]) -> list[Any]:
    """One generator an image, so that an image does not depend on its batch; on the pipeline's device or the CPU."""
    torch = require("torch", "clip")
    device = getattr(getattr(pipeline, "device", None), "type", "cpu")
    return [torch.Generator("cpu" if device == "mps" else device).manual_seed(s) for s in seeds]


def synthesise(
    captions: Sequence[str] | pd.DataFrame,
    pipeline: Any,
    *,
    n: int = 1,
    seed: int = 0,
    steps: int = 50,
    guidance_scale: float = 7.5,
    batch_size: int = 4,
    progress: bool = True,
    **options: Any,
) -> Stimuli:
    """Synthesise images for captions with the user's text-to-image pipeline.

    Parameters
    ----------
    captions : sequence of str, or DataFrame with ``caption`` (and ``voxel, rank, roi``)
        Different captions are synthesised once; columns of the first row with each are kept in the table.
    pipeline : callable
        With the call signature of diffusers: ``pipeline(prompt=[...], num_inference_steps=..., guidance_scale=...,
        generator=[...])`` giving ``.images`` (or the list itself). Only those keywords are passed that it accepts. See
        :func:`diffusion_pipeline` for a model on this machine. Nothing is downloaded.
    n : int
        Images a caption.
    seed : int
        Image ``i`` of caption ``c`` has a generator of its own, of (seed, c, i).
    steps : int
        50, as in the paper.
    guidance_scale : float
    batch_size : int
        Images a call; results do not depend on it where the pipeline heeds its generators.
    progress : bool
    **options
        Passed on to the pipeline (``height, width, negative_prompt``, ...).

    Returns
    -------
    Stimuli
        Ids "synthesised-00000-0" (caption, image); table: ``caption, seed`` and the columns of the captions.

    Raises
    ------
    ConfigError
        No pipeline; n or batch_size below 1.
    DataError
        No captions, or the pipeline gives something else than one image a prompt.

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (figure 5).

    Examples
    --------
    >>> import numpy as np
    >>> def grey(prompt):
    ...     return [np.full((8, 8, 3), len(p), np.uint8) for p in prompt]
    >>> made = synthesise(["a dog", "a house"], grey, progress=False)
    >>> made.ids.tolist(), made.table["caption"].tolist()
    (['synthesised-00000-0', 'synthesised-00001-0'], ['a dog', 'a house'])
    """
    if pipeline is None or not callable(pipeline):
        raise ConfigError(
            f"pipeline is {type(pipeline).__name__}; legal: a text-to-image callable. "
            "Next step: diffusion_pipeline(folder), or retrieve_images(captions, bank, embed_text)."
        )
    check_whole("n", n)
    check_whole("batch_size", batch_size)
    table = captions if isinstance(captions, pd.DataFrame) else pd.DataFrame({"caption": list(captions)})
    if "caption" not in table or len(table) == 0:
        raise DataError(f"captions have {len(table)} rows and columns {list(table.columns)}; 'caption' is needed.")
    table = table.drop_duplicates("caption").reset_index(drop=True)
    jobs = [(c, i) for c in range(len(table)) for i in range(n)]
    seeds = [int(np.random.SeedSequence([seed, c, i]).generate_state(1)[0]) for c, i in jobs]
    asked = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    # An instance's own call is not its class' signature, so the bound one is read.
    accepted = inspect.signature(pipeline).parameters
    every = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
    pictures: list[np.ndarray] = []
    with progress_bar(desc="synthesise", total=len(jobs), show=progress, unit="image") as bar:
        for start in range(0, len(jobs), batch_size):
            part = jobs[start : start + batch_size]
            prompts = [str(table["caption"][c]) for c, _ in part]
            settings: dict[str, Any] = {k: v for k, v in asked.items() if every or k in accepted}
            if every or "generator" in accepted:
                settings["generator"] = _generators(pipeline, seeds[start : start + batch_size])
            out = pipeline(prompt=prompts, **settings, **options)
            images = list(getattr(out, "images", out))
            if len(images) != len(prompts):
                raise DataError(f"the pipeline gave {len(images)} images for {len(prompts)} prompts.")
            pictures += [_as_array(x, p) for x, p in zip(images, prompts)]
            bar.update(len(part))
    shapes = {x.shape for x in pictures}
    if len(shapes) > 1:
        raise DataError(f"the pipeline gave images of {len(shapes)} sizes, {sorted(shapes)}; one is needed.")
    ids = np.array([f"synthesised-{c:05d}-{i}" for c, i in jobs])
    rows = table.iloc[[c for c, _ in jobs]].reset_index(drop=True)
    rows = rows.assign(seed=seeds).set_index(pd.Index(ids, name="stimulus"))
    made = provenance(step="synthesise", pipeline=type(pipeline).__name__, n=n, seed=seed, **asked)
    rows.attrs["provenance"] = made
    texts = tuple((str(table["caption"][c]),) for c, _ in jobs)
    source = f"synthesised by {type(pipeline).__name__}, seed {seed}"
    return Stimuli(ids, np.stack(pictures), texts, rows, source=source)


def retrieve_images(
    captions: Sequence[str] | pd.DataFrame,
    bank: Any,
    embed_text: Any,
    *,
    k: int = 1,
    centre: bool = True,
    text_direction: Any = None,
    image_direction: Any = None,
    max_memory: str | int | None = None,
) -> pd.DataFrame:
    r"""Retrieve the nearest bank images of each caption, in place of synthesis.

    .. math:: s_{tk} = \cos(t - \bar t,\; m_k - \bar m)

    with unit-norm texts t and images m; their means are taken away as in
    :class:`neuroenc.captions.RetrievalDecoder`.

    Parameters
    ----------
    captions : sequence of str, or DataFrame with ``caption``
    bank : array (n, feature), DataArray (stimulus, feature), path or list of shards
    embed_text : callable or TextEmbedder
    k : int
        Images a caption.
    centre : bool
    text_direction : array (feature,), optional
        Mean unit-norm text; default the mean of these captions, which must then be varied.
    image_direction : array (feature,), optional
        Default the mean of the bank.
    max_memory : str, int or None

    Returns
    -------
    DataFrame
        ``caption, rank, stimulus, score``; different captions once, in order.

    Raises
    ------
    DataError
        No captions, k above the bank's size, widths that differ, or a single caption without ``text_direction``.

    Examples
    --------
    >>> import numpy as np
    >>> bank = np.array([[2.0, 0.1], [0.1, 1.0]])
    >>> found = retrieve_images(["a dog", "a house"], bank, lambda t: np.eye(2)[[int("house" in x) for x in t]])
    >>> found[["caption", "stimulus"]].values.tolist()
    [['a dog', '0'], ['a house', '1']]
    """
    texts = captions["caption"] if isinstance(captions, pd.DataFrame) else captions
    names = list(dict.fromkeys(str(t) for t in texts))
    if not names:
        raise DataError("there are 0 captions; at least one is needed.")
    images = as_bank(bank).again("the bank is read twice")
    query = embed(embed_text, names)
    mean = np.zeros(query.shape[1])
    if centre:
        if text_direction is None and len(names) < 2:
            raise DataError("one caption has no mean to be centred on. Next step: text_direction=, or centre=False.")
        query = unit_rows(query - (query.mean(axis=0) if text_direction is None else np.asarray(text_direction)))
        mean = (
            read_images(images, (), 0, 0, max_memory).mean if image_direction is None else np.asarray(image_direction)
        )
    ids = IdCollector()
    moved = as_bank(_centred(images, query.shape[1], mean))
    score, at = top_k(query, moved, k, normalise=False, max_memory=max_memory, seen=ids)
    return pd.DataFrame(
        {
            "caption": np.repeat(np.array(names, dtype=object), k),
            "rank": np.tile(np.arange(1, k + 1), len(names)),
            "stimulus": ids.names(at).ravel().astype(object),
            "score": score.ravel().astype(np.float64),
        }
    )


def _centred(bank: Any, width: int, mean: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Unit rows less the mean, at unit norm, a chunk at a time."""
    for chunk in bank.chunks(16384, width):
        names = chunk.names(np.arange(chunk.start, chunk.start + len(chunk.rows)))
        yield unit_rows(unit_rows(np.asarray(chunk.rows, dtype=np.float64)) - mean), names


def _roi_masks(rois: Any, n: int) -> dict[str, np.ndarray]:
    if isinstance(rois, (xr.DataArray, xr.Dataset)):
        rois = rois["roi"].values
    if isinstance(rois, Mapping):
        masks = {str(k): np.asarray(v, dtype=bool) for k, v in rois.items()}
    else:
        masks = region_masks(rois)
    for name, mask in masks.items():
        if mask.shape != (n,) or not mask.any():
            raise DataError(f"roi {name!r} has a mask of shape {mask.shape} with {mask.sum()} of {n} voxels.")
    return masks


def evaluate_images(
    images: Stimuli | Mapping[str, Stimuli],
    encoder: Any,
    embedder: Any,
    rois: Any,
    *,
    natural: Stimuli,
    top: Mapping[str, Sequence[str]] | None = None,
    n_top: int = 100,
    n_bootstraps: int = 1000,
    confidence: float = 0.95,
    source: str = "synthesised",
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Evaluate images by a second encoder: predicted activation beside the best natural and random images.

    The encoder must stand on another backbone than the one that captions and images came from: what is optimised in
    one feature space is not thereby good in another. Values are means over the voxels of a region.

    Parameters
    ----------
    images : Stimuli, or mapping of region to the Stimuli made for it
    encoder : fitted encoder
        ``predict`` gives (stimulus, voxel).
    embedder : callable or ImageEmbedder
        Stimuli to features as ``encoder`` was fitted on.
    rois : sequence (voxel,) of names (";" joins several), DataArray with a roi coordinate, or mapping of masks
    natural : Stimuli
        Natural images; best not those that the encoder was fitted on.
    top : mapping of region to stimulus ids, optional
        A region's best natural images by an independent measure: measured responses, or evidence of the first
        encoder. Without it they are picked by this very encoder, which favours them (``selection`` says "same
        encoder").
    n_top : int
        Their number, where they are picked here.
    n_bootstraps, confidence, seed
        Intervals over images.
    source : str
        Name of ``images`` in the tables.

    Returns
    -------
    summary : DataFrame
        ``roi, made_for, source`` (``source``, "natural top", "natural")``, selection, n_images, mean, low, high,
        above_natural`` (mean less that of all natural images, in their standard deviations)``, percentile`` (of the
        images among all natural ones, mean). ``made_for`` names the region that images were made or picked for ("" for
        all), so that activation of other regions stands beside the intended one.
    images : DataFrame
        ``roi, made_for, source, stimulus, predicted``: what figure 6 draws.

    Raises
    ------
    DataError
        Shapes do not fit, or an id or region is unknown.

    References
    ----------
    Luo et al. (2024), BrainSCUBA, ICLR (figure 6).

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.data import Stimuli
    >>> class Encoder:
    ...     def predict(self, X):
    ...         return np.asarray(X)
    >>> def brightness(stimuli):
    ...     return stimuli.images.mean((1, 2, 3))[:, None]
    >>> grey = np.arange(0, 200, 10)[:, None, None, None] * np.ones((1, 4, 4, 3))
    >>> natural = Stimuli([f"n{i}" for i in range(20)], grey.astype("uint8"))
    >>> made = Stimuli(["m"], np.full((1, 4, 4, 3), 250, "uint8"))
    >>> summary, _ = evaluate_images(made, Encoder(), brightness, ["V1"], natural=natural, n_top=2)
    >>> summary[["source", "mean"]].values.tolist()
    [['synthesised', 250.0], ['natural top', 185.0], ['natural', 95.0]]
    """
    sets = images if isinstance(images, Mapping) else {"": images}
    level = _predict(encoder, embedder, natural)
    masks = _roi_masks(rois, level.shape[1])
    for name in [*(s for s in sets if s), *(top or {})]:
        if name not in masks:
            raise DataError(f"images are for region {name!r}; the rois are {', '.join(masks)}.")
    if top is None and n_top > len(natural):
        raise DataError(f"n_top={n_top} of {len(natural)} natural images. Next step: a smaller n_top.")
    own = {name: _predict(encoder, embedder, one) for name, one in sets.items()}
    rng = make_rng(seed)
    summary, each = [], []
    for roi, mask in masks.items():
        base = level[:, mask].mean(axis=1)
        ordered, spread = np.sort(base), float(base.std()) or 1.0
        best = np.argsort(-base, kind="stable")[:n_top] if top is None else None
        rows = [(name, source, "", one.ids, own[name][:, mask].mean(axis=1)) for name, one in sets.items()]
        picks = {roi: best} if best is not None else {r: natural.index_of(list(ids)) for r, ids in (top or {}).items()}
        selection = "same encoder" if top is None else "given"
        rows += [(r, "natural top", selection, natural.ids[at], base[at]) for r, at in picks.items() if at is not None]
        rows.append(("", "natural", "", natural.ids, base))
        for made_for, kind, how, ids, values in rows:
            drawn = values[rng.integers(0, len(values), (n_bootstraps, len(values)))].mean(axis=1)
            percentile = float((np.searchsorted(ordered, values) / len(ordered)).mean())
            mean = float(values.mean())
            low, high, _ = stats.sample_interval(drawn, mean, n_units=len(values), confidence=confidence)
            above = (mean - float(base.mean())) / spread
            summary.append((roi, made_for, kind, how, len(values), mean, float(low), float(high), above, percentile))
            each.append(
                pd.DataFrame({"roi": roi, "made_for": made_for, "source": kind, "stimulus": ids, "predicted": values})
            )
    columns = ["roi", "made_for", "source", "selection", "n_images"]
    columns += ["mean", "low", "high", "above_natural", "percentile"]
    return pd.DataFrame(summary, columns=columns), pd.concat(each, ignore_index=True)


def _predict(encoder: Any, embedder: Callable[[Stimuli], Any] | Any, stimuli: Stimuli) -> np.ndarray:
    features = getattr(embedder, "embed", embedder)(stimuli)
    values = np.asarray(encoder.predict(features), dtype=np.float64)
    if values.ndim == 1:
        values = values[:, None]
    if values.shape[0] != len(stimuli):
        raise DataError(f"the encoder predicted shape {values.shape} for {len(stimuli)} images.")
    if not np.isfinite(values).all():
        raise DataError("the encoder predicted NaN. Next step: leave voxels out that it was not fitted for.")
    return values
