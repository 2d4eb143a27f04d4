"""How captions are searched for, as one value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from neuroenc._core.errors import ConfigError
from neuroenc.captions.decoding._hypotheses import Hypotheses
from neuroenc.captions.decoding._sampling import sample
from neuroenc.captions.decoding._search import Constraint, Rescore, beam_search
from neuroenc.captions.decoding._steps import StepModel

__all__ = ["Generated", "SearchSettings", "generated", "numbered", "ranked"]


class Generated(NamedTuple):
    """One caption: its text, score, tokens (the stop token included), whether it ended, and its group of beams."""

    text: str
    score: float
    tokens: list[int]
    finished: bool
    group: int


@dataclass(frozen=True)
class SearchSettings:
    """Settings of :func:`beam_search` or :func:`sample`, as released by BrainSCUBA where not said otherwise.

    Parameters
    ----------
    method : {"beam", "sample"}
    beams : int
        Beams, or samples, an item; more where more captions are asked for.
    groups, diversity_penalty, diversity
        Of a diverse beam search.
    max_length, temperature, length_penalty
    top_p, top_k, seed
        Of samples.
    cache : bool
        Keep keys and values.

    Examples
    --------
    >>> SearchSettings(groups=2).beams_for(3)
    6
    """

    method: str = "beam"
    beams: int = 5
    groups: int = 1
    diversity_penalty: float = 0.5
    diversity: str = "hamming"
    max_length: int = 67
    temperature: float = 1.0
    length_penalty: float = 1.0
    top_p: float = 0.8
    top_k: int | None = None
    seed: int = 0
    cache: bool = True

    def __post_init__(self) -> None:
        if self.method not in ("beam", "sample"):
            raise ConfigError(f"method={self.method!r} is not legal; legal: beam, sample.")

    def beams_for(self, top: int) -> int:
        """Beams for ``top`` captions: enough, and a multiple of the groups."""
        return math.ceil(max(self.beams, top) / self.groups) * self.groups

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for records."""
        return asdict(self)

    def run(
        self,
        step: StepModel,
        top: int,
        stop: int,
        items: list[int],
        constraint: Constraint | None = None,
        rescore: Rescore | None = None,
        token_weights: torch.Tensor | None = None,
    ) -> Hypotheses:
        """Search with these settings; ``items`` are the numbers of the batch's rows, for random numbers."""
        if self.method == "sample":
            return sample(
                step,
                stop=stop,
                n_samples=max(self.beams, top),
                max_length=self.max_length,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                length_penalty=self.length_penalty,
                seed=self.seed,
                items=items,
                constraint=constraint,
                rescore=rescore,
            )
        return beam_search(
            step,
            stop=stop,
            beams=self.beams_for(top),
            groups=self.groups,
            diversity=self.diversity,
            diversity_penalty=self.diversity_penalty,
            max_length=self.max_length,
            temperature=self.temperature,
            length_penalty=self.length_penalty,
            token_weights=token_weights,
            constraint=constraint,
            rescore=rescore,
        )


def generated(found: Hypotheses, item: int, text: Callable[[list[int]], str]) -> list[Generated]:
    """An item's hypotheses as captions, those that died left out."""
    out = []
    for k in torch.nonzero(torch.isfinite(found.logp[item]))[:, 0].tolist():
        tokens = found.tokens[item, k, : int(found.lengths[item, k])].tolist()
        score, done, group = (x[item, k].item() for x in (found.scores, found.finished, found.group))
        out.append(Generated(text(tokens), float(score), tokens, bool(done), int(group)))
    return out


def ranked(captions: list[Generated], top: int) -> list[Generated]:
    """The best ``top`` of different texts by score, as released; of a diverse search the best of each group first.

    A caption that was cut at ``max_length`` takes the place that its score gives it.

    >>> a, b, c = (Generated(t, s, [], True, g) for t, s, g in (("a", -1.0, 0), ("b", -2.0, 0), ("c", -3.0, 1)))
    >>> [x.text for x in ranked([a, b, c, a], 2)]
    ['a', 'c']
    """
    best: dict[str, Generated] = {}
    for caption in sorted(captions, key=lambda c: -c.score):
        best.setdefault(" ".join(caption.text.split()).rstrip(". ").casefold(), caption)
    place: dict[int, int] = {}
    keyed = []
    for caption in best.values():
        place[caption.group] = place.get(caption.group, -1) + 1
        keyed.append((place[caption.group], -caption.score, caption))
    return [k[-1] for k in sorted(keyed, key=lambda k: k[:2])][:top]


def numbered(hook: Any, numbers: torch.Tensor) -> Any:
    """A hook that is told the numbers of items, not their places in the batch."""
    return None if hook is None else lambda tokens, items: hook(tokens, numbers.to(items.device)[items])
