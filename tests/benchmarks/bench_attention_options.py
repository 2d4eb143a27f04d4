"""Options of attention in small in-context models, each on its own case: tables of R2 of noiseless responses.

    PYTHONPATH=tests/support python tests/benchmarks/bench_attention_options.py [normalisers positions ...]

About 20 minutes on one core in all. What is claimed of the figures stands in tests/claims/test_attention_options.py.
"""

from __future__ import annotations

import sys
import time

import pandas as pd
import torch

import attention_options as options

CASES = ("normalisers", "positions", "contexts", "memories", "sinks", "retrieval", "regions", "hints")

if __name__ == "__main__":
    torch.set_num_threads(1)
    train = options.trained

    def timed(*args, **settings):
        begin = time.perf_counter()
        model = train(*args, **settings)
        print(f"  trained in {time.perf_counter() - begin:.0f} s: {model!r}", file=sys.stderr, flush=True)
        return model

    options.trained = timed
    for name in sys.argv[1:] or CASES:
        begin = time.perf_counter()
        found = getattr(options, name)()
        nested = isinstance(next(iter(found.values())), dict)
        table = pd.DataFrame(found).T if nested else pd.Series(found).to_frame("R2").T
        print(f"{name} ({time.perf_counter() - begin:.0f} s)", table.round(3).to_string(), sep="\n", flush=True)
