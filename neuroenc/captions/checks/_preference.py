"""Preference training of captioners on grounded and ungrounded continuations (cDPO)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from neuroenc._core.checks import at_least, check_fraction, check_whole, make_rng
from neuroenc._core.errors import DataError
from neuroenc.captions._descent import take_step
from neuroenc.captions.checks._grounding import GroundingChecker
from neuroenc.captions.checks._intervention import GroundedCaptions, grounded_decode
from neuroenc.captions.decoding._prefix import PrefixDecoder
from neuroenc.captions.decoding._prefix_training import prefix_loss
from neuroenc.captions.decoding._sampling import token_logits
from neuroenc.captions.text._phrases import phrases_of


class PreferencePair(NamedTuple):
    """Preference pair: after ``context`` of ``item``, ``preferred`` is grounded and ``rejected`` is not."""

    item: int
    context: tuple[int, ...]
    preferred: tuple[int, ...]
    rejected: tuple[int, ...]


def preference_pairs(
    found: GroundedCaptions, decoder: PrefixDecoder, *, limit: int | None = None, seed: int = 0
) -> list[PreferencePair]:
    """Make preference pairs of an ungrounded and a grounded continuation of the same context.

    For each stopped hypothesis the clean captions of its voxel that begin as it does are looked up; context is what
    the two share, ``rejected`` goes on to the end of the unsupported phrase, ``preferred`` to the end of its own.

    Parameters
    ----------
    found : GroundedCaptions
        From :func:`grounded_decode`.
    decoder : PrefixDecoder
    limit : int, optional
        Pairs, at most, drawn at random.
    seed : int

    Examples
    --------
    >>> import pandas as pd
    >>> from neuroenc.captions import GroundedCaptions, PrefixDecoder, make_language_model, preference_pairs
    >>> from neuroenc.captions.checks._intervention import Stopped
    >>> lm, tokenizer = make_language_model(["a dog near a house.", "a hand"], width=16, layers=1)
    >>> decoder = PrefixDecoder(lm, tokenizer, 2, device="cpu")
    >>> bad, good = decoder.encode("a dog near a house"), decoder.encode("a dog near a hand.")
    >>> none = pd.DataFrame()
    >>> found = GroundedCaptions(none, none, none, [Stopped(0, tuple(bad), "house")], {0: [good]})
    >>> pair = preference_pairs(found, decoder)[0]
    >>> [decoder.text(part) for part in pair[1:]]
    ['a dog near a', 'hand', 'house']
    """
    pairs: dict[PreferencePair, None] = {}
    for stopped in found.stopped:
        best: tuple[int, list[int]] | None = None
        for tokens in found.kept.get(stopped.item, []):
            shared = next((k for k, (a, b) in enumerate(zip(tokens, stopped.tokens)) if a != b), None)
            if shared is not None and (best is None or shared > best[0]):
                best = (shared, tokens)
        if best is None or best[0] >= len(stopped.tokens):
            continue
        shared, tokens = best
        rejected = stopped.tokens[shared:]
        end = _phrase_end(decoder, tokens, shared)
        pairs[PreferencePair(stopped.item, tuple(tokens[:shared]), tuple(tokens[shared:end]), rejected)] = None
    out = list(pairs)
    if limit is not None and len(out) > limit:
        out = [out[k] for k in np.sort(make_rng(seed).permutation(len(out))[:limit])]
    return out


def _phrase_end(decoder: PrefixDecoder, tokens: list[int], start: int) -> int:
    """Position behind the first phrase that ends after the first ``start`` tokens; behind all tokens if none does."""
    lengths = [len(decoder.text(tokens[:k])) for k in range(len(tokens) + 1)]
    for phrase in phrases_of([decoder.text(tokens)], "rules")[0]:
        if phrase.end > lengths[start]:
            return next(k for k in range(start + 1, len(lengths)) if lengths[k] >= phrase.end)
    return len(tokens)


def cdpo_loss(
    preferred: Tensor, rejected: Tensor, reference_preferred: Tensor, reference_rejected: Tensor, beta: float = 0.1
) -> Tensor:
    r"""Conservative direct preference optimisation (cDPO) loss on the tokens that differ.

    .. math:: -\log \sigma\Big(\beta \Big[\log \frac{\pi(y^+ \mid x, c)}{\pi_0(y^+ \mid x, c)}
        - \log \frac{\pi(y^- \mid x, c)}{\pi_0(y^- \mid x, c)}\Big]\Big)

    Parameters
    ----------
    preferred, rejected : Tensor (n,)
        Sums of log-probabilities of the tokens of :math:`y^\pm` only, given image x and context c, of the model.
    reference_preferred, reference_rejected : Tensor (n,)
        The same of the model before training.

    Returns
    -------
    Tensor
        Mean over pairs.

    References
    ----------
    Rafailov et al. Direct preference optimization. NeurIPS 2023.
    Peng et al. Mitigating object hallucinations via sentence-level early intervention (SENTINEL). ICCV 2025.

    Examples
    --------
    >>> import torch
    >>> zero = torch.zeros(3)
    >>> round(float(cdpo_loss(zero, zero, zero, zero)), 4), bool(cdpo_loss(zero + 1, zero - 1, zero, zero) < 0.6932)
    (0.6931, True)
    """
    at_least("beta", beta, above=True)
    margin = (preferred - reference_preferred) - (rejected - reference_rejected)
    return -torch.nn.functional.logsigmoid(beta * margin).mean()


def segment_logp(
    decoder: PrefixDecoder, inputs: Tensor, contexts: Sequence[Sequence[int]], segments: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Log-probability (n,) of each segment after its input's prefix and its context, and of its least likely token."""
    whole = [[*c, *s] for c, s in zip(contexts, segments, strict=True)]
    said = [[0.0] * len(c) + [1.0] * len(s) for c, s in zip(contexts, segments, strict=True)]
    tokens, counted = _padded(whole, inputs, 0), _padded(said, inputs, 0)
    logp = torch.log_softmax(token_logits(decoder.lm, decoder.mapping(inputs), tokens).float(), dim=-1)
    each = logp.gather(2, tokens[:, :, None])[:, :, 0] * counted
    return each.sum(dim=1), each.amin(dim=1)


@dataclass(frozen=True)
class PreferenceTraining:
    """Result of `train_preferences`: losses and preference accuracy.

    Attributes
    ----------
    losses : ndarray (step,)
    before, after : float
        Share of pairs with :math:`\\log\\pi(y^+) > \\log\\pi(y^-)`.
    """

    losses: np.ndarray
    before: float
    after: float


def train_preferences(
    decoder: PrefixDecoder,
    embeddings: Any,
    pairs: Sequence[PreferencePair],
    *,
    mean: Any = None,
    beta: float = 0.1,
    epochs: int = 5,
    batch_size: int = 16,
    lr: float = 1e-5,
    train_mapping: bool = False,
    replay: tuple[Any, Sequence[str]] | None = None,
    replay_weight: float = 1.0,
    clip: float | None = 1.0,
    seed: int = 0,
) -> PreferenceTraining:
    r"""Train a captioner on preference pairs by :func:`cdpo_loss`, in place.

    With ``replay`` the cross-entropy of captions that the model was trained on is added, ``replay_weight`` times: few
    pairs otherwise cost a small model its fluency.

    Parameters
    ----------
    decoder : PrefixDecoder
    embeddings : array (n, embedding_dim)
        Raw, of all items: pair k belongs to ``embeddings[pairs[k].item]``.
    pairs : sequence of PreferencePair
    mean : array (embedding_dim,), optional
        As in :meth:`PrefixDecoder.inputs`.
    beta, epochs, batch_size, lr, clip
        AdamW without decay.
    train_mapping : bool
        Train the mapping network with the language model.
    replay : tuple of embeddings (m, embedding_dim) and captions (m,), optional
    replay_weight : float
    seed : int
        Of the order.

    Raises
    ------
    DataError
        No pairs, items without an embedding, or a loss that is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.captions import PreferencePair, PrefixDecoder, make_language_model, train_preferences
    >>> decoder = PrefixDecoder(*make_language_model(["a house.", "a hand."], width=16, layers=1), 2, device="cpu")
    >>> a, hand, house = (tuple(decoder.encode(t)) for t in ("a", " hand", " house"))
    >>> train_preferences(decoder, np.eye(2), [PreferencePair(0, a, hand, house)], lr=0.01, epochs=20).after
    1.0
    """
    check_whole("epochs", epochs)
    check_whole("batch_size", batch_size)
    at_least("lr", lr, above=True)
    at_least("replay_weight", replay_weight)
    if not pairs:
        raise DataError("there are 0 pairs. Next step: grounded_decode with more voxels, samples or rounds.")
    x = torch.from_numpy(decoder.inputs(embeddings, mean)).to(decoder.device)
    lost = [p.item for p in pairs if not 0 <= p.item < len(x)]
    if lost:
        raise DataError(f"{len(lost)} pairs belong to items of which there are no embeddings; the first is {lost[0]}.")
    old, written = x[:0], list[list[int]]()
    if replay is not None:
        old = torch.from_numpy(decoder.inputs(replay[0], mean)).to(decoder.device)
        # What the language model has no room for is cut.
        written = [decoder.encode(c)[: decoder.room] for c in replay[1]]
        if len(written) != len(old) or not written:
            raise DataError(f"{len(written)} captions to replay for {len(old)} embeddings; legal is one each.")

    def logp(part: Sequence[int]) -> tuple[Tensor, Tensor]:
        inputs = x[[pairs[k].item for k in part]]
        contexts = [pairs[k].context for k in part]
        # In one pass, so that dropout, if there is any, is alike.
        both, _ = segment_logp(
            decoder,
            torch.cat([inputs, inputs]),
            contexts * 2,
            [*(pairs[k].preferred for k in part), *(pairs[k].rejected for k in part)],
        )
        return both[: len(part)], both[len(part) :]

    def all_of_them() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            found = [logp(range(a, min(a + 64, len(pairs)))) for a in range(0, len(pairs), 64)]
        return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])

    plus, minus = all_of_them()
    modules = [decoder.lm, *([decoder.mapping] if train_mapping else [])]
    optimiser = torch.optim.AdamW([p for m in modules for p in m.parameters()], lr=lr, weight_decay=0.0)
    losses: list[float] = []
    # Dropout stays off: the reference is the model as it decodes.
    with torch.enable_grad():
        for epoch in range(epochs):
            rng = np.random.default_rng([seed, epoch])
            order = rng.permutation(len(pairs))
            for a in range(0, len(pairs), batch_size):
                part = order[a : a + batch_size].tolist()
                ours, theirs = logp(part)
                loss = cdpo_loss(ours, theirs, plus[part], minus[part], beta)
                if written:
                    rows = rng.integers(0, len(old), batch_size).tolist()
                    said = _padded([written[k] for k in rows], x)
                    loss = loss + replay_weight * prefix_loss(decoder, old[rows], said)
                losses.append(take_step(loss, optimiser, len(losses), clip))
    decoder.mapping.zero_grad(set_to_none=True)
    decoder.lm.zero_grad(set_to_none=True)
    later_plus, later_minus = all_of_them()
    return PreferenceTraining(
        np.array(losses), float((plus > minus).float().mean()), float((later_plus > later_minus).float().mean())
    )


@dataclass(frozen=True)
class GroundedTraining:
    """Result of `train_grounded`: what each round brought on items kept apart, and which was kept.

    Attributes
    ----------
    rounds : DataFrame
        One row a round, 0 the captioner as it was: ``round, n_pairs``; on items kept apart ``supported, unsupported``
        (shares of the phrases of their best captions), ``n_supported`` (supported phrases a caption), ``perplexity``
        (of their human captions, per token) and ``kept``, true of the round that the captioner is left at.
    """

    rounds: pd.DataFrame


def train_grounded(
    decoder: PrefixDecoder,
    projection: xr.Dataset,
    checker: GroundingChecker,
    clean: tuple[Any, Sequence[str]],
    *,
    rounds: int = 3,
    pairs: int = 300,
    samples: int = 4,
    searches: int = 6,
    apart: float = 0.25,
    worse: float = 0.05,
    seed: int = 0,
    **training: Any,
) -> GroundedTraining:
    """Train a captioner on what it should not have said, in rounds of sampling and preference training, in place.

    Each round samples captions of items under grounding constraints (:func:`grounded_decode`), pairs the first
    ungrounded phrases with grounded ones (:func:`preference_pairs`; pairs whose grounded side holds a token of less
    than 2 % are left out), and trains on them beside a replay of human captions (:func:`train_preferences`); the next
    round samples from the trained captioner. A share of the items and of the human captions takes no part in that. On
    these the captioner is judged: it is left as it was after the round with the smallest share of ungrounded phrases,
    among those that cost neither fluency (perplexity of human captions) nor grounded phrases.

    Parameters
    ----------
    decoder : PrefixDecoder
    projection : Dataset
        ``embedding (voxel, feature)`` of items to caption, such as images in the place of voxels.
    checker : GroundingChecker
        Of these items.
    clean : tuple of embeddings (m, embedding_dim) and captions (m,)
        Images with a human caption each: for the replay, and a share of them for the perplexity.
    rounds, pairs : int
        Pairs of a round, at most.
    samples, searches : int
        Samples of an item at a time, and how often it is sampled; see :func:`grounded_decode`.
    apart : float
        Share of the items that are kept apart.
    worse : float
        Perplexity may rise, and the number of grounded phrases fall, by this share.
    seed : int
    **training
        Of :func:`train_preferences`.

    Raises
    ------
    DataError
        Too few items or captions, or numbers that do not agree.

    References
    ----------
    Peng et al. Mitigating object hallucinations via sentence-level early intervention (SENTINEL). ICCV 2025.

    Examples
    --------
    The voxel of :func:`grounded_decode`, twice, one of them kept apart:

    >>> import numpy as np, pandas as pd
    >>> from neuroenc.captions import GroundingChecker, PrefixDecoder, make_language_model, project
    >>> from neuroenc.captions import train_grounded, train_prefix
    >>> taught = ["a dog near a house.", "a dog near a house.", "a dog near a hand."]
    >>> lm, tokenizer = make_language_model(taught, width=16, layers=1)
    >>> decoder = PrefixDecoder(lm, tokenizer, 5, prefix_length=2, device="cpu")
    >>> names = ["dog", "house", "pizza", "sign", "hand"]
    >>> images = np.repeat(np.eye(5), 20, axis=0)
    >>> _ = train_prefix(decoder, images[[0, 1, 2]], taught, epochs=60, lr=0.02, warmup=0, progress=False)
    >>> told = {f"{n}{k}": [f"a {n}" if n != "dog" else "a dog near a hand"] for n in names for k in range(20)}
    >>> best = pd.DataFrame({"voxel": np.repeat([0, 1], 8), "stimulus": [f"dog{k}" for k in range(8)] * 2})
    >>> def embed_text(texts):
    ...     return np.array([[float(n in t) for n in names] for t in texts]) + 0.01
    >>> coef = np.array([[1.0], [0.0], [0.0], [0.0], [0.8]]).repeat(2, axis=1)
    >>> checker = GroundingChecker(coef, best, told, embed_text, centre=False, threshold=0.7, engine="rules")
    >>> projection, clean = project(coef, images, progress=False), (images[[0, 1]], taught[1:])
    >>> found = train_grounded(decoder, projection, checker, clean, rounds=1, samples=8, apart=0.5, worse=9, lr=0.01)
    >>> decoder.decode(projection, top=1)["caption"][0]
    'a dog near a hand.'
    """
    check_whole("rounds", rounds)
    check_fraction("apart", apart)
    x, written = np.asarray(clean[0]), list(clean[1])
    if len(x) != len(written):
        raise DataError(f"{len(written)} captions for {len(x)} embeddings; legal is one each.")
    (held, seen), (judged, read) = (_apart(n, apart, seed) for n in (projection.sizes["voxel"], len(x)))
    mean, embedding = decoder.mean_of(projection), np.asarray(projection["embedding"].values)
    replay = (x[read], [written[k] for k in read])
    training = {"mean": mean, "replay": replay, **training}
    modules = torch.nn.ModuleDict({"lm": decoder.lm, "mapping": decoder.mapping})
    best, rows = copy.deepcopy(modules.state_dict()), list[dict[str, Any]]()
    for number in range(rounds + 1):
        n_pairs = 0
        if number:
            writer = decoder.with_options(method="sample", beams=samples, groups=1, rerank=0.0, seed=seed + number)
            part = projection.isel(voxel=seen)
            sampled = grounded_decode(writer, part, checker, samples, rounds=searches)
            found = _fluent(decoder, embedding[seen], preference_pairs(sampled, decoder), mean)
            n_pairs = min(pairs, len(found))
            if not found:
                break
            chosen = [found[k] for k in np.sort(make_rng(seed).permutation(len(found))[:pairs])]
            train_preferences(decoder, embedding[seen], chosen, seed=seed + number, **training)
        checked = checker.check(decoder.decode(projection.isel(voxel=held), 1))
        verdicts = checked.phrases["verdict"]
        row = {
            "round": number,
            "n_pairs": n_pairs,
            **{name: float((verdicts == name).mean()) for name in ("supported", "unsupported")},
            "n_supported": float(checked.captions["n_supported"].mean()),
            "perplexity": caption_perplexity(decoder, x[judged], [written[k] for k in judged], mean=mean),
        }
        first, fewest = (rows or [row])[0], min((r["unsupported"] for r in rows if r["kept"]), default=np.inf)
        row["kept"] = (
            row["unsupported"] < fewest
            and row["perplexity"] <= (1 + worse) * first["perplexity"]
            and row["n_supported"] >= (1 - worse) * first["n_supported"]
        )
        rows.append(row)
        if row["kept"]:
            best = copy.deepcopy(modules.state_dict())
    modules.load_state_dict(best)
    table = pd.DataFrame(rows)
    table["kept"] = table.index == table.index[table["kept"]][-1]
    return GroundedTraining(table)


def _apart(n: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions that are kept apart, at least one, and the others."""
    held, seen = (np.sort(k) for k in np.split(make_rng(seed).permutation(n), [max(1, round(share * n))]))
    if not len(seen):
        raise DataError(f"{n} items or captions are too few. Next step: at least 2, better hundreds.")
    return held, seen


def _fluent(
    decoder: PrefixDecoder, embeddings: np.ndarray, pairs: list[PreferencePair], mean: Any, least: float = 0.02
) -> list[PreferencePair]:
    """Pairs with no token of less probability in their preferred side: where words are forbidden, samples stumble."""
    x = torch.from_numpy(decoder.inputs(embeddings, mean)).to(decoder.device)
    out: list[PreferencePair] = []
    for a in range(0, len(pairs), 64):
        part = pairs[a : a + 64]
        with torch.no_grad():
            sides = [[p.context for p in part], [p.preferred for p in part]]
            lowest = segment_logp(decoder, x[[p.item for p in part]], *sides)[1]
        out += [p for p, low in zip(part, lowest.tolist()) if low >= np.log(least)]
    return out


def _padded(rows: Sequence[Sequence[float]], like: Tensor, value: int = -100) -> Tensor:
    return pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=value).to(like.device)


def caption_perplexity(decoder: PrefixDecoder, embeddings: Any, captions: Sequence[str], *, mean: Any = None) -> float:
    """Perplexity per token of captions given their embeddings.

    Parameters
    ----------
    decoder : PrefixDecoder
    embeddings : array (n, embedding_dim)
        Raw.
    captions : sequence of str (n,)
    mean : array (embedding_dim,), optional
        As in :meth:`PrefixDecoder.inputs`.

    Returns
    -------
    float
        exp of the mean negative log-probability of the captions' tokens, as given; from 1.

    Raises
    ------
    DataError
        Captions and embeddings differ in number, or embeddings are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.captions import PrefixDecoder, caption_perplexity, make_language_model
    >>> decoder = PrefixDecoder(*make_language_model(["a house."], width=16, layers=1), 2, device="cpu")
    >>> 1 < caption_perplexity(decoder, np.eye(2), ["a house.", "a house."]) < 2 * decoder.vocabulary
    True
    """
    x = torch.from_numpy(decoder.inputs(embeddings, mean)).to(decoder.device)
    if len(captions) != len(x) or not len(x):
        raise DataError(f"{len(captions)} captions for {len(x)} embeddings; legal is one each, and at least one.")
    tokens = [decoder.encode(c)[: decoder.room] for c in captions]
    total, n = 0.0, 0
    with torch.inference_mode():
        for a in range(0, len(tokens), decoder.batch_size):
            part = tokens[a : a + decoder.batch_size]
            count = sum(len(t) for t in part)
            total += count * float(prefix_loss(decoder, x[a : a + len(part)], _padded(part, x)))
            n += count
    return float(np.exp(total / n))
