"""Beam search over any step-wise language model, batched over voxels and beams."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neuroenc._core.checks import at_least, check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions.decoding._sampling import (
    PAD,
    Beams,
    Constraint,
    Hypotheses,
    StepModel,
    equal_length,
    fill,
    join,
    sample,
    seen,
    sort,
)


def beam_search(
    step: StepModel,
    *,
    stop: int,
    beams: int = 5,
    max_length: int = 67,
    temperature: float = 1.0,
    length_penalty: float = 1.0,
    groups: int = 1,
    diversity_penalty: float = 0.5,
    diversity: str = "hamming",
    token_weights: Tensor | None = None,
    constraint: Constraint | None = None,
) -> Hypotheses:
    r"""Beam search, optionally diverse, for all items and beams in one batch.

    With :math:`\ell_t = \log \mathrm{softmax}(z_t / T)` and length :math:`L` (stop token included), hypotheses are
    kept at every step by

    .. math:: s(y) = \frac{1}{L^\alpha} \sum_{t=1}^{L} \ell_t(y_t),

    ``length_penalty`` :math:`\alpha` = 1 being the average of the released ClipCap and BrainSCUBA. As there, a
    finished hypothesis stays among the beams and competes with the growing ones at its own length; an item ends
    when all its beams have.

    In a diverse search the beams are divided into ``groups``. Group g chooses by :math:`(\sum \ell - \lambda c(y_t))
    / L^\alpha`, where c counts the beams of earlier groups that have written the token: at this step ("hamming", as
    published), or anywhere in their finished captions ("words": groups are then searched one after another, so that
    a second caption cannot say the same with another opening). Scores carried on and reported hold no penalty.

    Parameters
    ----------
    stop : int
        Token that ends a hypothesis.
    beams : int
        Beams an item, over all groups.
    max_length : int
        Most tokens.
    temperature : float
        T.
    length_penalty : float
        0 for the plain sum.
    groups : int
        Divides ``beams``; 1 is plain beam search.
    diversity_penalty : float
        In nats; 0 makes all groups equal.
    diversity : {"hamming", "words"}
    token_weights : Tensor (V,), optional
        Multiplies the penalty of each token; 0 for function words leaves them free to be repeated.
    constraint : callable, optional
        ``constraint(tokens (rows, t), items (rows,)) -> bool (rows, V)``, True where a token may come next; asked
        for growing hypotheses only. Probabilities are not normalised again. One that may go nowhere dies.

    References
    ----------
    Mokady, Hertz, Bermano. ClipCap: CLIP prefix for image captioning. 2021.
    Vijayakumar et al. Diverse beam search for improved description of complex scenes. AAAI 2018.
    """
    beams, groups = check_whole("beams", beams), check_whole("groups", groups)
    check_whole("max_length", max_length)
    if beams % groups:
        raise ConfigError(f"groups={groups} does not divide beams={beams}; legal is a divisor of the beams.")
    at_least("temperature", temperature, above=True)
    at_least("diversity_penalty", diversity_penalty)
    at_least("length_penalty", length_penalty)
    one_of("diversity", diversity, ("hamming", "words"))
    settings = max_length, temperature, length_penalty, diversity_penalty
    search = _Search(step, stop, *settings, token_weights, constraint)
    if groups == 1 or diversity == "hamming":
        return search.run(beams // groups, groups)
    found: list[Hypotheses] = []
    for number in range(groups):
        part = search.run(beams // groups, 1, [f.tokens for f in found])
        found.append(replace(part, group=torch.full_like(part.group, number)))
    return join(found)


@dataclass
class _Search:
    step: StepModel
    stop: int
    max_length: int
    temperature: float
    alpha: float
    penalty: float
    token_weights: Tensor | None
    constraint: Constraint | None

    def run(self, width: int, groups: int, earlier: list[Tensor] | None = None) -> Hypotheses:
        logits, state = self.step.start()
        n, vocabulary = logits.shape
        device = logits.device
        used = torch.zeros((n, vocabulary), device=device)
        for tokens in earlier or []:
            for k in range(tokens.shape[1]):
                used += seen(tokens[:, k], vocabulary)
        # Every caption ends: that is no repetition.
        used[:, self.stop] = 0
        empty = torch.zeros((n, 1, 0), dtype=torch.int64, device=device)
        zero = torch.zeros((n, 1), device=device)
        beams = Beams(torch.arange(n, device=device), empty, zero, zero.long(), zero.bool())
        ended: list[Beams] = []
        # Row of the model's state of each growing hypothesis; finished ones are not read on.
        slot = torch.arange(n, device=device)[:, None]
        for t in range(self.max_length):
            allowed = self._log_probabilities(logits, beams)
            beams, parent = self._extend(beams, allowed, width, groups, used)
            over = beams.done.all(dim=1)
            if over.any():
                ended.append(beams.take(over))
            if over.all() or t + 1 == self.max_length:
                beams = beams.take(~over)
                break
            slot = slot.gather(1, parent)[~over]
            beams, used = beams.take(~over), used[~over]
            live = ~beams.done
            rows = slot[live]
            slot = torch.zeros_like(slot).masked_scatter_(live, torch.arange(len(rows), device=device))
            if not torch.equal(rows, torch.arange(len(logits), device=device)):
                state = self.step.select(state, rows)
            logits, state = self.step.step(beams.tokens[:, :, -1][live], state)
        return self._finish([*ended, beams], width, groups)

    def _log_probabilities(self, logits: Tensor, beams: Beams) -> Tensor:
        """Of the next token (m, k, V): -inf where forbidden; a finished hypothesis has one free way, token 0."""
        known = torch.log_softmax(logits.float() / self.temperature, dim=-1)
        if torch.isnan(known).any():
            raise DataError("the language model gave logits that are NaN. Next step: look at the embeddings.")
        live = ~beams.done.reshape(-1)
        if self.constraint is not None:
            items = beams.items[:, None].expand_as(beams.done).reshape(-1)
            tokens = beams.tokens.reshape(len(items), -1)
            mask = self.constraint(tokens[live], items[live]).to(known.device)
            if mask.shape != known.shape or mask.dtype != torch.bool:
                raise DataError(f"the constraint gave {mask.dtype} {tuple(mask.shape)}; legal: bool {(*known.shape,)}.")
            known = known.masked_fill(~mask, -torch.inf)
        if not live.all():
            logp = torch.full((len(live), known.shape[1]), -torch.inf, device=known.device)
            logp[live] = known
            logp[~live, 0] = 0.0
            known = logp
        return known.reshape(*beams.done.shape, -1)

    def _extend(self, beams: Beams, logp: Tensor, width: int, groups: int, used: Tensor) -> tuple[Beams, Tensor]:
        """The beams after one more token, and the position (m, k) of each one's parent."""
        first = beams.tokens.shape[2] == 0
        counts, parts, parents = used.clone(), [], []
        for g in range(groups):
            part = slice(0, 1) if first else slice(g * width, (g + 1) * width)
            new, parent = self._group(beams, logp, part, width, counts)
            parts.append(new)
            parents.append(parent + part.start)
            if groups > 1:
                fresh = torch.where(new.tokens[:, :, -1] >= 0, new.tokens[:, :, -1], 0)
                counts.scatter_add_(1, fresh, (new.tokens[:, :, -1] >= 0).to(counts.dtype))
        joined = Beams(
            beams.items, *(torch.cat([getattr(p, x) for p in parts], 1) for x in ("tokens", "logp", "lengths", "done"))
        )
        return joined, torch.cat(parents, dim=1)

    def _group(self, beams: Beams, logp: Tensor, part: slice, width: int, counts: Tensor) -> tuple[Beams, Tensor]:
        m, vocabulary = len(beams.items), logp.shape[2]
        done, lengths = beams.done[:, part], beams.lengths[:, part] + (~beams.done[:, part]).long()
        total = beams.logp[:, part, None] + logp[:, part]
        penalty = self.penalty * counts * (1.0 if self.token_weights is None else self.token_weights.to(counts))
        chosen = total - penalty[:, None] * (~done)[:, :, None]
        chosen = chosen / lengths[:, :, None].float() ** self.alpha
        # Fewer candidates than beams (a small vocabulary, at the first token): the others are dead.
        kept = chosen.reshape(m, -1).topk(min(width, chosen.shape[1] * vocabulary), dim=1).indices
        new = self._written(beams, part, total, lengths, kept)
        parent = kept // vocabulary
        if kept.shape[1] < width:
            new, parent = fill(new, width), torch.nn.functional.pad(parent, (0, width - kept.shape[1]))
        return new, parent

    def _written(self, beams: Beams, part: slice, total: Tensor, lengths: Tensor, flat: Tensor) -> Beams:
        vocabulary = total.shape[2]
        parent, token = flat // vocabulary, flat % vocabulary
        done = beams.done[:, part].gather(1, parent)
        logp = total.reshape(len(total), -1).gather(1, flat)
        token = torch.where(done, PAD, token)
        history = beams.tokens[:, part].gather(1, parent[:, :, None].expand(-1, -1, beams.tokens.shape[2]))
        tokens = torch.cat([history, token[:, :, None]], dim=2)
        # A hypothesis that may go nowhere is over, though not finished.
        over = done | (token == self.stop) | torch.isinf(logp)
        return Beams(beams.items, tokens, logp, lengths.gather(1, parent), over)

    def _finish(self, parts: list[Beams], width: int, groups: int) -> Hypotheses:
        padded = [replace(p, tokens=tokens) for p, tokens in zip(parts, equal_length(parts))]
        names = ("items", "tokens", "logp", "lengths", "done")
        whole = Beams(*(torch.cat([getattr(p, x) for p in padded]) for x in names))
        whole = whole.take(whole.items.argsort())
        scores = whole.logp / whole.lengths.float().clamp(min=1) ** self.alpha
        finished = (whole.tokens == self.stop).any(dim=2) & torch.isfinite(whole.logp)
        group = torch.arange(groups, device=scores.device).repeat_interleave(width).expand_as(whole.lengths)
        return sort(Hypotheses(whole.tokens, whole.lengths, whole.logp, scores, finished, group))


class Generated(NamedTuple):
    """Generated caption: text, score, tokens (stop token included), whether it finished, group of beams."""

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
        one_of("method", self.method, ("beam", "sample"))

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
        token_weights: torch.Tensor | None = None,
    ) -> Hypotheses:
        """Search with these settings; ``items`` are the numbers of the batch's rows, for random numbers."""

        def own(*names: str) -> dict[str, Any]:
            return {name: getattr(self, name) for name in names}

        shared = own("max_length", "temperature", "length_penalty")
        shared |= {"stop": stop, "constraint": constraint}
        if self.method == "sample":
            drawn = own("top_p", "top_k", "seed")
            return sample(step, n_samples=max(self.beams, top), items=items, **drawn, **shared)
        diverse = own("groups", "diversity", "diversity_penalty")
        return beam_search(step, beams=self.beams_for(top), token_weights=token_weights, **diverse, **shared)


def generated(found: Hypotheses, item: int, text: Callable[[list[int]], str]) -> list[Generated]:
    """An item's hypotheses as captions, those that died left out."""
    out = []
    for k in torch.nonzero(torch.isfinite(found.logp[item]))[:, 0].tolist():
        tokens = found.tokens[item, k, : int(found.lengths[item, k])].tolist()
        score, done, group = (x[item, k].item() for x in (found.scores, found.finished, found.group))
        out.append(Generated(text(tokens), float(score), tokens, bool(done), int(group)))
    return out


def text_key(text: str) -> str:
    """What equal captions share: words without capitals and the final full stop."""
    return " ".join(text.split()).rstrip(". ").casefold()


def ranked(captions: list[Generated], top: int) -> list[Generated]:
    """The best ``top`` of different texts by score, as released; of a diverse search the best of each group first.

    A caption that was cut at ``max_length`` takes the place that its score gives it.

    >>> a, b, c = (Generated(t, s, [], True, g) for t, s, g in (("a", -1.0, 0), ("b", -2.0, 0), ("c", -3.0, 1)))
    >>> [x.text for x in ranked([a, b, c, a], 2)]
    ['a', 'c']
    """
    best: dict[str, Generated] = {}
    for caption in sorted(captions, key=lambda c: -c.score):
        best.setdefault(text_key(caption.text), caption)
    place, keyed = Counter[int](), []
    for caption in best.values():
        keyed.append((place[caption.group], -caption.score, caption))
        place[caption.group] += 1
    return [k[-1] for k in sorted(keyed, key=lambda k: k[:2])][:top]


def numbered(hook: Any, numbers: torch.Tensor) -> Any:
    """A hook that is told the numbers of items, not their places in the batch."""
    return None if hook is None else lambda tokens, items: hook(tokens, numbers.to(items.device)[items])
