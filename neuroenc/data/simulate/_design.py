"""Which stimulus is shown when: sessions, runs and repeats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Design", "make_design"]


@dataclass(frozen=True)
class Design:
    """One row per presentation, in the order shown; ``time`` runs from -1 to 1 within a run."""

    stimulus: np.ndarray
    session: np.ndarray
    run: np.ndarray
    repeat: np.ndarray
    time: np.ndarray


def make_design(counts: np.ndarray, n_sessions: int, runs_per_session: int, rng: np.random.Generator) -> Design:
    """Spread ``counts[i]`` presentations of stimulus ``i`` over sessions, in random order.

    Repeats of a stimulus fall into different sessions while there are enough of them. Sessions and runs are
    numbered from 1, runs anew in each session.
    """
    n = len(counts)
    stimulus = np.repeat(np.arange(n), counts)
    number = np.concatenate([np.arange(c) for c in counts])
    # Stimuli with the same number of repeats share the sessions evenly.
    first = np.empty(n, dtype=np.int64)
    for c in np.unique(counts):
        group = rng.permutation(np.flatnonzero(counts == c))
        first[group] = (np.arange(len(group)) + rng.integers(n_sessions)) % n_sessions
    step = np.maximum(1, n_sessions // np.maximum(counts, 1))
    session = (first[stimulus] + number * step[stimulus]) % n_sessions
    order = np.lexsort((rng.random(len(stimulus)), session))
    stimulus, session = stimulus[order], session[order]
    run = np.empty_like(session)
    time = np.empty(len(session))
    repeat = np.empty_like(session)
    for s in range(n_sessions):
        rows = np.flatnonzero(session == s)
        for r, block in enumerate(np.array_split(rows, min(runs_per_session, max(len(rows), 1)))):
            run[block] = r + 1
            time[block] = np.linspace(-1, 1, len(block)) if len(block) > 1 else 0.0
    by_stimulus = np.argsort(stimulus, kind="stable")
    repeat[by_stimulus] = np.concatenate([np.arange(c) for c in counts])
    return Design(stimulus, session + 1, run, repeat, time)
