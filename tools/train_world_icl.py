"""Train the shipped in-context model: ``python tools/train_world_icl.py --out DIR``.

Sixteen simulated subjects of four worlds (see `neuroenc.study.incontext.tasks.world_tasks`) say what voxels are like: a
mixture of priors over weights in the feature space of the world's CLIP. An anchored model learns to read supports of
200 trials of synthetic voxels, then of 10 to 1000, then half of its episodes are responses of fifteen of the subjects,
the last of whom says which weights are kept (half an hour on one core with AMX).

The network did not beat its own closed form, so it is silent in what ships, in ``DIR/world``: the closed form under a
mixture of subjects with and without directions of their own (`world_prior`, some minutes; ``--prior-only`` makes that
alone, around the network that is installed). The defaults are those that it was made with.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuroenc._core.files import write_json
from neuroenc.encoders.incontext import InContextModel, PriorMixture, load_model, save_model
from neuroenc.study import StudyConfig, incontext_train
from neuroenc.study.config.incontext import IncontextConfig, ModelConfig, StageConfig, TaskConfig
from neuroenc.study.incontext.tasks import world_tasks

__all__ = ["train_world_icl", "world_icl_config"]

# Of the time limit.
_SHARES = {"pretrain": 0.3, "extend": 0.4, "finetune": 0.3}


def world_icl_config(
    *,
    minutes: float = 60.0,
    steps: tuple[int, int, int] = (400, 600, 500),
    seed: int = 0,
    precision: str = "bf16",
    device: str = "cpu",
    seeds: tuple[int, ...] = (100, 101, 102, 103),
    n_voxels: int = 400,
) -> StudyConfig:
    """Settings of the shipped model.

    Examples
    --------
    >>> world_icl_config().incontext.finetune.real
    0.5
    """
    common: dict[str, Any] = {
        "query": 100,
        "voxels": 48,
        "evaluate_every": 100,
        "precision": precision,
        "device": device,
        "validation_sizes": [20, 50, 100, 300],
    }
    limit = {name: minutes * share for name, share in _SHARES.items()}
    tables = IncontextConfig(
        task=TaskConfig(seeds=list(seeds), options={"n_voxels": n_voxels, "own": 0.0}),
        model=ModelConfig(dim=128, depth=4, clusters=10, seed=seed),
        pretrain=StageConfig(
            **common, support=[200, 200], lr=1e-3, max_steps=steps[0], seed=seed + 1, minutes=limit["pretrain"]
        ),
        extend=StageConfig(
            **common,
            support=[10, 1000],
            sizes="log",
            lr=3e-4,
            max_steps=steps[1],
            seed=seed + 2,
            minutes=limit["extend"],
        ),
        finetune=StageConfig(
            **common,
            support=[10, 900],
            sizes="log",
            lr=1e-4,
            real=0.5,
            max_steps=steps[2],
            seed=seed + 3,
            minutes=limit["finetune"],
        ),
    )
    return StudyConfig(title="The simulated world's in-context model", seed=seed, incontext=tables)


def world_prior(seeds: tuple[int, ...] = (100, 101), own: tuple[float, ...] = (0.6, 0.0)) -> PriorMixture:
    """Mixture of priors from three subjects of each world, once for each share of a direction of their own."""
    subjects = [
        (s.X.values, s.Y.values)
        for share in own
        for seed in seeds
        for s in world_tasks(seed, n_voxels=400, n_pool=100, n_query=50, own=share).train
    ]
    return PriorMixture.from_responses(subjects, n_clusters=10, seed=0)


def save_silent(model: InContextModel, out: Path) -> Path:
    """Save the model's closed form under `world_prior`, its network silent."""
    prior = world_prior()
    assert model.anchor is not None
    means, covs, share, center = (
        torch.as_tensor(part) for part in (prior.means, prior.covs, np.log(prior.share), prior.center)
    )
    model.anchor.set_prior(
        means, covs, share, center, (torch.as_tensor(prior.level_mean), torch.as_tensor(prior.level_cov))
    )
    return save_model(model.silence(), out, stage="prior", settings={"seeds": [100, 101], "own": [0.6, 0.0]})


def train_world_icl(out: Path, *, progress: bool = True, **settings: Any) -> dict[str, Any]:
    """Train, and leave the model in ``out/world``; killed, it goes on from ``out``.

    Parameters
    ----------
    out : path
        Stages and their curves are kept there as well.
    progress : bool
    **settings
        Of `world_icl_config`.

    Returns
    -------
    dict
        What ``out/metrics.json`` holds: validation loss and explained variance of each stage, steps, seconds.
    """
    begin = time.perf_counter()
    out = Path(out)
    config = world_icl_config(**settings)
    metrics: dict[str, Any] = {}
    for name in _SHARES:
        found = incontext_train(config, out, name, progress=progress)
        metrics |= {f"{name}_{k}": found[k] for k in ("validation_loss", "validation_ev", "best_step", "steps")}
    save_silent(load_model(out / "finetune" / config.incontext.model.form), out / "world")
    metrics |= {
        "n_parameters": found["n_parameters"],
        "n_train_voxels": found["n_train_voxels"],
        "bytes": (out / "world" / "model.safetensors").stat().st_size,
        "settings": config.incontext.model.model_dump(),
        "seconds": round(time.perf_counter() - begin, 1),
    }
    write_json(out / "metrics.json", metrics)
    return metrics


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder to write; the model is in its folder world")
    parser.add_argument("--minutes", type=float, default=60.0, help="time limit of the training, all stages")
    parser.add_argument("--steps", type=int, nargs=3, default=(400, 600, 500), help="of the three stages")
    parser.add_argument("--seeds", type=int, nargs="+", default=(100, 101, 102, 103), help="of the training worlds")
    parser.add_argument("--n-voxels", type=int, default=400, help="of a training subject, about")
    parser.add_argument("--precision", choices=("bf16", "32"), default="bf16", help="of the transformer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prior-only", action="store_true", help="another prior around the network that is installed")
    found = vars(parser.parse_args(argv))
    if found.pop("prior_only"):
        print(save_silent(load_model("world"), found["out"] / "world"))
        return
    settings = {**found, "steps": tuple(found["steps"]), "seeds": tuple(found["seeds"])}
    print(json.dumps(train_world_icl(**settings), indent=2))


if __name__ == "__main__":
    main()
