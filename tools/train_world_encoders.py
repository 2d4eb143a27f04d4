"""Fit the shipped encoders of three simulated subjects: ``python tools/train_world_encoders.py --out DIR``.

Three subjects see 1200 scenes once and 150 scenes three times, as ``neuroenc run`` on the world would have it; ridge
from the world's CLIP to their vertices, fitted on all rows, is saved in half precision in ``DIR/world-s1`` to
``world-s3`` with held-out scores of the 150. A voxel's signal lies by 0.6 along a direction of its own: their fitted
weights are as alike as people's (see `neuroenc.data.simulate_cortex`). Half a minute on one core, and as much to
render. ``DIR/metrics.json`` says how good they are. The defaults are those that they were made with.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from neuroenc._core.files import write_json
from neuroenc.encoders import load_encoder
from neuroenc.study import Study, StudyConfig

__all__ = ["train_world_encoders"]


def train_world_encoders(
    out: Path, *, n_train: int = 1200, n_test: int = 150, n_voxels: int = 850, seed: int = 90, progress: bool = True
) -> dict[str, Any]:
    """Fit, save, and measure.

    Parameters
    ----------
    out : path
    n_train, n_test : int
        Scenes shown once, and scenes shown three times, which are held out for the scores.
    n_voxels : int
        Of a subject, about.
    seed : int
        Of the subjects; the scenes are of another one.
    progress : bool

    Returns
    -------
    dict
        What ``out/metrics.json`` holds: for each encoder ``n_voxels``, ``bytes`` of its folder, and held-out
        ``median_r`` and ``median_noise_ceiling_r`` (correlations) over voxels and of each region.
    """
    config = StudyConfig(
        title="Simulated subject",
        seed=seed,
        data={
            "name": "world",
            "options": {
                "n_subjects": 3,
                "n_train": n_train,
                "n_test": n_test,
                "n_voxels": n_voxels,
                "n_bank": 0,
                "world_seed": 90_001,
                "own": 0.6,
            },
        },
        features={"world": {"model": "world", "normalise": True, "standardise": False}},
        evaluation={"scheme": "test", "permutations": 0},
    )
    metrics: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        fitted = Study(config, folder, progress=progress).until("encode").encoders
        for number, path in enumerate(fitted.values(), 1):
            name, encoder = f"world-s{number}", load_encoder(path)
            # Of every penalty that was tried: nothing that predictions need.
            del encoder.cv_scores_
            kept = encoder.card.scores[["r", "r2", "ncsnr", "noise_ceiling_r"]]
            limits = (*encoder.card.limits, "Photographs: its backbone has seen drawn scenes alone.")
            card = replace(encoder.card, title=name, scores=kept, limits=limits)
            target = encoder.save(Path(out) / name, card, dtype="float16")
            regions = card.regions().set_index("roi")
            metrics[name] = {
                "n_voxels": kept.sizes["voxel"],
                "bytes": sum(p.stat().st_size for p in target.iterdir()),
                "median_r": regions["median_r"].round(4).to_dict(),
                "median_noise_ceiling_r": regions["ceiling"].round(4).to_dict(),
            }
    write_json(Path(out) / "metrics.json", metrics)
    return metrics


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder to write, of world-s1 to world-s3")
    parser.add_argument("--n-train", type=int, default=1200, help="scenes shown once")
    parser.add_argument("--n-test", type=int, default=150, help="scenes shown three times, and held out")
    parser.add_argument("--n-voxels", type=int, default=850, help="of a subject, about")
    parser.add_argument("--seed", type=int, default=90)
    print(json.dumps(train_world_encoders(**vars(parser.parse_args(argv))), indent=2))


if __name__ == "__main__":
    main()
