"""Leakage, held-out clusters and learning curves of macaque V4, by a run of each.

python tests/benchmarks/bench_generalise.py [SESSION ...]
"""

import os
import sys
import tempfile
from pathlib import Path

from neuroenc.study import read_config, run

CONFIG = """
[data]
name = "v4-cowley2023"
options = {{ session = "{session}" }}
[features]
kind = "image"
model = "efficientnet-lite0"
layer = "block8"
pooling = {pooling}
preprocessing = {{ size = 112 }}
[evaluation]
permutations = 0
{evaluation}
"""
#: Mean features that ridge cannot learn pictures by, and a map with which it can.
POOLINGS = {"mean": '"mean"', "4 x 4": "4"}
SPLITS = {
    "stimulus, 5 folds": "learning_curve = [50, 100, 200, 400, 800]",
    "near-duplicates": 'scheme = "near-duplicates"',
    "cluster, 5": 'scheme = "cluster"\nspace = "features"',
    "matched": 'scheme = "matched"',
}


def main() -> None:
    for session in sys.argv[1:] or ["190925", "190923"]:
        for label, pooling in POOLINGS.items():
            for name, evaluation in SPLITS.items():
                with tempfile.TemporaryDirectory() as folder:
                    text = CONFIG.format(session=session, pooling=pooling, evaluation=evaluation)
                    (Path(folder) / "v4.toml").write_text(text)
                    s = run(read_config(Path(folder) / "v4.toml"), Path(folder) / "out", progress=False, say=len)
                curve = [f"{k.split(':')[2]}: {v:.3f}" for k, v in s.items() if k.startswith("explained_variance:")]
                more = [f"at {k.split(':')[2]} expected {v:.3f}" for k, v in s.items() if k.startswith("expected_")]
                print(
                    f"{session} {label:6} {name:18} median r {s['median_r']:.3f}, near duplicates "
                    f"{s['n_near_duplicates']:4d} ({s['share_near_duplicates']:.1%}), without them "
                    f"{s['median_r_without_near_duplicates']:.3f}, similarity {s['median_similarity']:.3f} (random "
                    f"{s['random_similarity']:.3f}), slope {s['accuracy_slope']:+.3f} [{s['accuracy_slope_low']:+.3f}, "
                    f"{s['accuracy_slope_high']:+.3f}] {'  '.join(curve + more)} ({s['seconds']:.0f} s)",
                    flush=True,
                )


if __name__ == "__main__":
    os.environ.setdefault("NEUROENC_PROGRESS", "0")
    main()
