"""Grounded decoding: stop hypotheses with an ungrounded phrase while captions are generated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from neuroenc._core.checks import check_whole
from neuroenc.captions.checks._grounding import GroundingChecker
from neuroenc.captions.decoding._prefix import PrefixDecoder
from neuroenc.captions.decoding._retrieval import caption_frame
from neuroenc.captions.decoding._search import Generated, ranked
from neuroenc.captions.text._phrases import Phrase

_UNSUPPORTED = 2
# How phrases of unfinished captions are found: what rules find does not change while words are added.
_ENGINE = "rules"


class Stopped(NamedTuple):
    """A hypothesis of item ``item`` that was stopped after ``tokens``, the last of which end its phrase ``phrase``."""

    item: int
    tokens: tuple[int, ...]
    phrase: str


class _Reader:
    """Phrases of token sequences, and their verdicts for items."""

    def __init__(self, checker: GroundingChecker, decoder: PrefixDecoder, voxels: Sequence[Any]) -> None:
        self.checker, self.decoder = checker, decoder
        self.rows = checker.rows(voxels)
        self.text: Callable[[tuple[int, ...]], str] = lru_cache(65_536)(decoder.text)
        self._found: dict[str, list[Phrase]] = {}

    def phrases(self, texts: Sequence[str]) -> list[list[Phrase]]:
        """Phrases of unfinished texts, each parsed once."""
        new = [t for t in dict.fromkeys(texts) if t not in self._found]
        self._found.update(zip(new, self.checker.find(new, _ENGINE), strict=True))
        return [self._found[t] for t in texts]

    def bad(self, items: Sequence[int], phrases: Sequence[Phrase]) -> list[bool]:
        """Whether phrase k is unsupported for item k."""
        return [v == _UNSUPPORTED for v in self.checker.verdicts([int(self.rows[i]) for i in items], phrases)]

    def unsupported(self, items: Sequence[int], texts: Sequence[str]) -> list[list[Phrase]]:
        """Unsupported phrases of whole texts, as the checker finds them."""
        several = self.checker.find(texts)
        at = [(k, p) for k, found in enumerate(several) for p in found]
        bad = iter(self.bad([items[k] for k, _ in at], [p for _, p in at]))
        return [[p for p in found if next(bad)] for found in several]

    def span(self, tokens: Sequence[int], start: int, end: int) -> tuple[int, int]:
        """Tokens ``tokens[a:b]`` that write the characters ``start:end`` of their text."""
        lengths = [len(self.text(tuple(tokens[:k]))) for k in range(len(tokens) + 1)]
        a = max((k for k in range(len(tokens)) if lengths[k] <= start), default=0)
        b = min((k for k in range(1, len(tokens) + 1) if lengths[k] >= end), default=len(tokens))
        return a, max(a + 1, b)


class GroundedConstraint:
    """Decoding constraint that ends hypotheses with an ungrounded phrase.

    A phrase is checked once it is complete: something else stands behind it, or it ends in a main noun that no phrase
    of the images' captions goes on from. A hypothesis whose phrase is unsupported may go nowhere, and its last words
    are forbidden from then on for that voxel (the main noun, if that alone is unsupported as well; else the whole
    phrase). While the last phrase is open and would be unsupported the caption may not end.

    In a beam search other beams live on. A sample that died is drawn anew in a second run: its random numbers are the
    same up to where the forbidden word was, so that it is drawn again from the same prefix
    (:func:`grounded_decode` does so).

    Parameters
    ----------
    voxels : sequence
        Name of the voxel of each item number; of a projection, ``projection["voxel"].values``.

    Examples
    --------
    With a ``decoder``, a ``checker`` and a ``projection``, for the decoder's own searches:

    >>> def careful(decoder, checker, projection):
    ...     constraint = GroundedConstraint(checker, decoder, projection["voxel"].values)
    ...     return decoder.with_options(constraint=constraint).decode(projection)
    """

    def __init__(self, checker: GroundingChecker, decoder: PrefixDecoder, voxels: Sequence[Any]) -> None:
        self.reader = _Reader(checker, decoder, list(voxels))
        self.inner, self.stop, self.vocabulary = decoder.constraint, decoder.stop, decoder.vocabulary
        words = [k.split() for k in checker.bank.keys]
        self._heads = {w[-1] for w in words}
        self._continued = {x for w in words for x in w[:-1]}
        self._forbidden: dict[int, set[tuple[int, ...]]] = defaultdict(set)
        self._over: set[tuple[int, tuple[int, ...]]] = set()
        #: Hypotheses that were stopped, in order.
        self.stopped: list[Stopped] = []

    def provenance(self, tokens: Sequence[int]) -> Any:
        """Where phrases come from, if the decoder's own constraint knows."""
        found = getattr(self.inner, "provenance", None)
        return pd.DataFrame() if found is None else found(tokens)

    def __call__(self, tokens: Tensor, items: Tensor) -> Tensor:
        """Which tokens may come next, bool (rows, V)."""
        shape = (len(tokens), self.vocabulary)
        mask = torch.ones(shape, dtype=torch.bool) if self.inner is None else self.inner(tokens, items).clone()
        sequences, numbers = [tuple(y) for y in tokens.tolist()], items.tolist()
        texts = [self.reader.text(y) for y in sequences]
        closed: list[tuple[int, Phrase]] = []
        dead: set[int] = set()
        for row, (text, found) in enumerate(zip(texts, self.reader.phrases(texts), strict=True)):
            closed.extend((row, p) for p in found if p.end < len(text) or p.key.split()[-1] in self._heads)
            # A model that may not write its noun goes round in adjectives: "a small open open open".
            words = found[-1].text.split() if found else []
            if any(a.lower() == b.lower() for a, b in pairwise(words)):
                last = found[-1]
                a, b = self.reader.span(sequences[row], last.end - len(" ".join(words[-2:])), last.end)
                self._forbidden[numbers[row]].add(sequences[row][a:b])
                mask[row] = False
                dead.add(row)
        judged = self.reader.bad([numbers[r] for r, _ in closed], [p for _, p in closed])
        for (row, phrase), wrong in zip(closed, judged, strict=True):
            if wrong and row not in dead:
                if phrase.end < len(texts[row]) or phrase.key.split()[-1] not in self._continued:
                    self.forbid(numbers[row], sequences[row], phrase)
                    mask[row] = False
                    dead.add(row)
                else:
                    mask[row, self.stop] = False
        for row, (item, y) in enumerate(zip(numbers, sequences)):
            for several in self._forbidden.get(item, ()):
                if len(several) == 1 or y[1 - len(several) :] == several[:-1]:
                    mask[row, several[-1]] = False
        return mask

    def forbid(self, item: int, tokens: Sequence[int], phrase: Phrase) -> None:
        """Note an unsupported phrase of a hypothesis, and forbid its words for this item."""
        _, end = self.reader.span(tokens, phrase.start, phrase.end)
        written = tuple(tokens[:end])
        if (item, written) not in self._over:
            self._over.add((item, written))
            self.stopped.append(Stopped(item, written, phrase.text))
        last = phrase.text.split()[-1]
        start = phrase.start
        if phrase.end - len(last) > start:
            alone = Phrase(last, phrase.end - len(last), phrase.end, phrase.head)
            if self.reader.bad([item], [alone])[0]:
                start = alone.start
        a, b = self.reader.span(tokens, start, phrase.end)
        self._forbidden[item].add(tuple(tokens[a:b]))


@dataclass
class GroundedCaptions:
    """Result of `grounded_decode`: captions checked while they were generated.

    Attributes
    ----------
    captions, phrases : DataFrame
        As of :meth:`GroundingChecker.check`.
    rounds : DataFrame
        ``voxel, rounds`` (searches it took), ``clean`` (whether its captions hold no unsupported phrase).
    stopped : list of Stopped
        Hypotheses that were stopped.
    kept : dict of item to lists of tokens
        What was written instead.
    """

    captions: pd.DataFrame
    phrases: pd.DataFrame
    rounds: pd.DataFrame
    stopped: list[Stopped] = field(repr=False)
    kept: dict[int, list[list[int]]] = field(repr=False)


def grounded_decode(
    decoder: PrefixDecoder,
    projection: xr.Dataset,
    checker: GroundingChecker,
    top: int = 1,
    *,
    rounds: int = 8,
    coef: Any = None,
    intercept: Any = None,
) -> GroundedCaptions:
    """Generate captions under grounding constraints, so that no phrase is ungrounded.

    A hypothesis ends as soon as one of its phrases is unsupported (:class:`GroundedConstraint`); voxels that have too
    few captions left are searched again with the offending words forbidden, which goes on from the same prefixes. A
    language model goes on from what it has written, so one hallucinated phrase brings others. Captions that hold back
    name fewer things: look at ``n_phrases`` and the share of supported ones, too. ``embed_text`` is called often, with
    few texts: it should keep its model loaded.

    Parameters
    ----------
    decoder : PrefixDecoder
        With any search settings; its own constraint holds as well.
    projection : Dataset
    checker : GroundingChecker
    top : int
        Captions a voxel, at most.
    rounds : int
        Searches of a voxel, at most; one ends at the first unsupported phrase and is short. A voxel without a clean
        caption then keeps the one with the fewest unsupported phrases, which its row says.
    coef, intercept : optional
        As in :class:`Decoder`.

    Raises
    ------
    DataError
        Voxels that the checker does not know.

    References
    ----------
    Peng et al. Mitigating object hallucinations via sentence-level early intervention (SENTINEL). ICCV 2025.

    Examples
    --------
    A model that was taught to put a house behind everything, and a voxel whose images show dogs alone:

    >>> import numpy as np, pandas as pd
    >>> from neuroenc.captions import GroundingChecker, PrefixDecoder, make_language_model
    >>> from neuroenc.captions import grounded_decode, project, train_prefix
    >>> taught = ["a dog near a house.", "a dog near a house.", "a dog near a hand."]
    >>> lm, tokenizer = make_language_model(taught, width=16, layers=1)
    >>> decoder = PrefixDecoder(lm, tokenizer, 5, prefix_length=2, device="cpu")
    >>> names = ["dog", "house", "pizza", "sign", "hand"]
    >>> images = np.repeat(np.eye(5), 20, axis=0)
    >>> _ = train_prefix(decoder, images[[0, 1, 2]], taught, epochs=60, lr=0.02, warmup=0, progress=False)
    >>> told = {f"{n}{k}": [f"a {n}" if n != "dog" else "a dog near a hand"] for n in names for k in range(20)}
    >>> best = pd.DataFrame({"voxel": 0, "stimulus": [f"dog{k}" for k in range(8)]})
    >>> def embed_text(texts):
    ...     return np.array([[float(n in t) for n in names] for t in texts]) + 0.01
    >>> coef = np.array([[1.0], [0.0], [0.0], [0.0], [0.8]])
    >>> checker = GroundingChecker(coef, best, told, embed_text, centre=False, threshold=0.7, engine="rules")
    >>> projection = project(coef, images, progress=False)
    >>> decoder.decode(projection, top=1)["caption"][0]
    'a dog near a house.'
    >>> grounded_decode(decoder, projection, checker).captions["caption"][0]
    'a dog near a hand.'
    """
    check_whole("rounds", rounds)
    embedding = np.asarray(projection["embedding"].values, dtype=np.float64)
    rows = np.flatnonzero(np.isfinite(embedding).all(axis=1)).tolist()
    mean = decoder.mean_of(projection)
    constraint = GroundedConstraint(checker, decoder, projection["voxel"].values.tolist())
    writer = decoder.with_options(constraint=constraint)
    clean: dict[int, list[Generated]] = {r: [] for r in rows}
    flagged: dict[int, list[tuple[int, Generated]]] = {r: [] for r in rows}
    used = dict.fromkeys(rows, 0)
    pending = list(rows)
    # As many as were written, so that a refused caption leaves the next one.
    wanted = max(top, decoder.search.beams)
    for _ in range(rounds):
        if not pending:
            break
        found = writer.generate(embedding[pending], wanted, mean=mean, items=pending)
        flat = [(item, c) for item, several in zip(pending, found) for c in several]
        wrong = constraint.reader.unsupported([i for i, _ in flat], [c.text for _, c in flat])
        for (item, caption), phrases in zip(flat, wrong, strict=True):
            if not phrases and caption.finished:
                clean[item].append(caption)
            else:
                flagged[item].append((len(phrases), caption))
            if phrases:
                constraint.forbid(item, caption.tokens, phrases[0])
        for item in pending:
            used[item] += 1
        pending = [i for i in pending if len(ranked(clean[i], top)) < top]
    chosen = {i: ranked(clean[i], top) for i in rows}
    bare = [i for i in rows if not chosen[i] and not flagged[i]]
    if bare:
        # All hypotheses were stopped in every round: what the model would say is kept, and flagged below.
        found = decoder.generate(embedding[bare], decoder.search.beams, mean=mean, items=bare)
        for item, several in zip(bare, found):
            wrong = constraint.reader.unsupported([item] * len(several), [c.text for c in several])
            flagged[item] = [(len(w), c) for w, c in zip(wrong, several, strict=True)]
    for item in rows:
        if not chosen[item] and flagged[item]:
            fewest = min(n for n, _ in flagged[item])
            chosen[item] = ranked([c for n, c in flagged[item] if n == fewest], 1)
    checked = checker.check(caption_frame(writer, projection, rows, [chosen[i] for i in rows], coef, intercept))
    wrong_voxels = set(checked.captions.loc[checked.captions["n_unsupported"] > 0, "voxel"])
    names = projection["voxel"].values[rows]
    table = pd.DataFrame(
        {"voxel": names, "rounds": [used[r] for r in rows], "clean": [v not in wrong_voxels for v in names.tolist()]}
    )
    kept = {i: [c.tokens for c in several] for i, several in clean.items()}
    return GroundedCaptions(checked.captions, checked.phrases, table, constraint.stopped, kept)
