"""Images from captions, by a text-to-image pipeline of the user's."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.optional import require
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.provenance import provenance
from neuroenc.data import Stimuli, read_picture

__all__ = ["diffusion_pipeline", "synthesise"]


def diffusion_pipeline(
    model: str | os.PathLike[str] = "stabilityai/stable-diffusion-2-1-base",
    *,
    device: str = "cpu",
    allow_download: bool = False,
    **options: Any,
) -> Any:
    """A diffusers text-to-image pipeline with the paper's sampler (DPM-Solver++, second order, multistep).

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
            f"the pipeline gave an image of dtype {values.dtype} for {caption[:60]!r}; legal are uint8, floats from 0 "
            "to 1, and PIL images."
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
    """Images for captions, by a text-to-image pipeline of the user's.

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
            f"pipeline is {type(pipeline).__name__}; it must be a text-to-image callable. Next step: "
            "diffusion_pipeline(folder) with diffusers installed, or retrieve_images(captions, bank, embed_text)."
        )
    if n < 1 or batch_size < 1:
        raise ConfigError(f"n={n} and batch_size={batch_size} must be at least 1.")
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
