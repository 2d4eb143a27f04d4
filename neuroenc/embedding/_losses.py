"""Losses of spaces in which what belongs together lies together: contrastive, ranking, distillation, nested."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from neuroenc._core.checks import at_least, check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError

MIXES = ("none", "pairs", "lists")
DIRECTIONS = ("image", "text", "both")
RANKINGS = ("pointwise", "pairwise", "listwise", "lambda_mrr")


def _pairs(first: Any, second: Any, target: Any) -> Any:
    """Row of ``second`` that belongs to each row of ``first``."""
    import torch

    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise DataError(f"vectors have shapes {tuple(first.shape)} and {tuple(second.shape)}; expected (n, d), (m, d).")
    if target is not None:
        return target
    if len(first) != len(second):
        raise DataError(f"{len(first)} and {len(second)} vectors without target=, which says what belongs together.")
    return torch.arange(len(first), device=first.device)


def info_nce(
    queries: Any,
    positives: Any,
    target: Any = None,
    *,
    hard: Any = None,
    temperature: Any = 0.05,
    focal: float = 0.0,
    mix: str = "none",
    symmetric: bool = False,
    generator: Any = None,
) -> Any:
    r"""InfoNCE, also called multiple negatives ranking: every other positive of the batch is a negative.

    .. math:: \mathcal{L} = -\frac1n \sum_i (1 - \pi_i)^\gamma \log \pi_i, \qquad \pi_i =
              \frac{e^{q_i \cdot p_i / \tau}}{\sum_j e^{q_i \cdot p_j / \tau} + \sum_k e^{q_i \cdot h_{ik} / \tau}}

    Parameters
    ----------
    queries : Tensor (n, d)
        Of unit norm, as all vectors here.
    positives : Tensor (m, d)
    target : int64 Tensor (n,), optional
        Row of ``positives`` that belongs to each query; several queries may share one. Default: row n to row n.
    hard : Tensor (n, k, d), optional
        Hard negatives of each query.
    temperature : float or Tensor
        :math:`\tau`.
    focal : float
        :math:`\gamma`: weight of queries that are not solved yet; 0 is plain.
    mix : {"none", "pairs", "lists"}
        Further negatives made of the hard ones: of each and another of the same query, with a share of Beta(2, 2), or
        one of all, weighted by the softmax of their similarity to the query.
    symmetric : bool
        Mean of this and the other direction, in which all queries of a positive are right in equal shares.
    generator : torch.Generator, optional
        Draws the mixtures.

    Returns
    -------
    Tensor
        Scalar.

    References
    ----------
    van den Oord, Li & Vinyals (2018), arXiv:1807.03748. Hu et al. (2025), KaLM-Embedding-V2, arXiv:2506.20923.

    Examples
    --------
    >>> import torch
    >>> x = torch.eye(4)
    >>> bool(info_nce(x, x) < info_nce(x, x.roll(1, 0)))
    True
    """
    import torch

    one_of("mix", mix, MIXES)
    at_least("focal", focal)
    rows = _pairs(queries, positives, target)
    logits = queries @ positives.T / temperature
    all_logits = logits
    if hard is not None:
        # (n, k, d) negatives of a query's own; a mixture of them has unit norm again.
        more = [hard]
        if mix == "pairs":
            drawn = torch.rand((3, *hard.shape[:2]), generator=generator)
            share = drawn.sort(0).values[1].to(hard)[..., None]  # the middle of three uniform numbers is Beta(2, 2)
            more.append(torch.nn.functional.normalize(share * hard + (1 - share) * hard.roll(1, 1), dim=-1))
        elif mix == "lists":
            weight = torch.einsum("nd,nkd->nk", queries, hard).div(temperature).softmax(1)
            more.append(torch.nn.functional.normalize(torch.einsum("nk,nkd->nd", weight, hard), dim=-1)[:, None])
        every = torch.cat(more, 1)
        all_logits = torch.cat([logits, torch.einsum("nd,nkd->nk", queries, every) / temperature], 1)
    log_p = all_logits.log_softmax(1).gather(1, rows[:, None])[:, 0]
    loss = -(log_p if not focal else (1 - log_p.exp()) ** focal * log_p).mean()
    if not symmetric:
        return loss
    belongs = torch.zeros_like(logits).scatter_(1, rows[:, None], 1.0)
    asked = belongs.sum(0)
    back = torch.nn.functional.cross_entropy(logits.T[asked > 0], (belongs / asked).T[asked > 0])
    return (loss + back) / 2


def ranking_hinge(
    images: Any,
    texts: Any,
    target: Any = None,
    *,
    hard: Any = None,
    margin: float = 0.2,
    negatives: str = "both",
) -> Any:
    r"""Global ranking hinge: what belongs together scores above what does not, by a margin.

    .. math:: \mathcal{L} = \frac1n \sum_i \Bigl( \sum_j [m - s(i, t_i) + s(i, t_j)]_+
              + \sum_j [m - s(i, t_i) + s(j, t_i)]_+ \Bigr)

    Parameters
    ----------
    images, texts : Tensor (n, d), (m, d)
        Of unit norm; s is their dot product.
    target : int64 Tensor (n,), optional
        Row of ``texts`` of each image. Default: row n to row n.
    hard : Tensor (n, k, d), optional
        Texts that are hard negatives of each image.
    margin : float
    negatives : {"image", "text", "both"}
        "text": wrong texts of an image (the first sum), which trains for finding the text of an image; "image": wrong
        images of a text, which trains for finding the image of a text.

    References
    ----------
    Kiros, Salakhutdinov & Zemel (2014), arXiv:1411.2539. Merkx & Frank (2019), Natural Language Engineering 25.

    Examples
    --------
    >>> import torch
    >>> x = torch.eye(4)
    >>> float(ranking_hinge(x, x)), float(ranking_hinge(x, x.roll(1, 0), negatives="text")) > 1
    (0.0, True)
    """
    one_of("negatives", negatives, DIRECTIONS)
    rows = _pairs(images, texts, target)
    scores = images @ texts.T
    right = scores.gather(1, rows[:, None])
    loss = scores.new_zeros(())
    if negatives != "image":
        loss = loss + (margin - right + scores).scatter(1, rows[:, None], 0.0).clamp(min=0).sum(1).mean()
    if negatives != "text":
        # Column t holds all images; those that belong to the text are none of its negatives.
        wrong = (margin - right.T + scores[:, rows]).masked_fill(rows[:, None] == rows[None, :], 0.0)
        loss = loss + wrong.clamp(min=0).sum(0).mean()
    if hard is not None:
        loss = loss + (margin - right + (images[:, None] * hard).sum(-1)).clamp(min=0).sum(1).mean()
    return loss


def distill_kl(student: Any, teacher: Any, *, temperature: float = 1.0) -> Any:
    r"""Kullback-Leibler divergence of a student's scores from a teacher's soft labels.

    .. math:: \mathcal{L} = \frac{\tau^2}{n} \sum_i \mathrm{KL}\bigl(\mathrm{softmax}(t_i / \tau) \,\|\,
              \mathrm{softmax}(s_i / \tau)\bigr)

    Parameters
    ----------
    student, teacher : Tensor (n, m)
        Scores of m candidates of each of n queries; no gradient goes to the teacher.
    temperature : float

    References
    ----------
    Hinton, Vinyals & Dean (2015), arXiv:1503.02531.

    Examples
    --------
    >>> import torch
    >>> scores = torch.tensor([[1.0, 0.0, -1.0]])
    >>> float(distill_kl(scores, scores)), float(distill_kl(-scores, scores)) > 0.5
    (0.0, True)
    """
    import torch

    if student.shape != teacher.shape:
        raise DataError(f"scores have shapes {tuple(student.shape)} and {tuple(teacher.shape)}; they must agree.")
    at_least("temperature", temperature, above=True)
    soft = (teacher.detach() / temperature).log_softmax(1)
    return temperature**2 * torch.nn.functional.kl_div(
        (student / temperature).log_softmax(1), soft, reduction="batchmean", log_target=True
    )


def ranking_loss(scores: Any, relevance: Any, kind: str = "listwise", *, mask: Any = None) -> Any:
    r"""Ranking loss of lists of candidates with graded relevance: pointwise, pairwise, listwise or LambdaMRR.

    .. math:: \ell_{point} = \frac1m \sum_i (s_i - r_i)^2, \qquad
              \ell_{pair} = \frac1{|P|} \sum_{(i, j) \in P} \log(1 + e^{s_j - s_i}), \qquad
              \ell_{list} = -\sum_i \frac{2^{r_i} - 1}{\sum_j (2^{r_j} - 1)} \log \mathrm{softmax}(s)_i

    .. math:: \ell_{\lambda} = \sum_{(i, j) \in P} \Bigl|\frac1{\mathrm{rank}_i} - \frac1{\mathrm{rank}_j}\Bigr|
              \log(1 + e^{s_j - s_i})

    for the m candidates of one list with scores s and relevance r, pairs :math:`P = \{(i, j): r_i > r_j\}`, and ranks
    from 1 by the scores as they stand, through which no gradient goes. The loss is the mean over lists; lists that say
    nothing do not count: without any candidate, and, but for "pointwise", with all relevances equal.

    Parameters
    ----------
    scores : Tensor (n, m)
        Of m candidates of each of n lists.
    relevance : Tensor (n, m)
        Grades, the higher the better; of at least 0 with "listwise", which shares the list out by their gains as NDCG
        does. "pointwise" regresses scores on them; to the others only their order matters.
    kind : {"pointwise", "pairwise", "listwise", "lambda_mrr"}
        Regression; RankNet; softmax cross entropy (ListNet's, of gains); RankNet with each pair weighted by what its
        exchange does to reciprocal ranks.
    mask : bool Tensor (n, m), optional
        True where there is a candidate; shorter lists are padded with False, and what stands there is not read.

    Returns
    -------
    Tensor
        Scalar; 0 where no list says anything.

    Raises
    ------
    DataError
        Scores, relevance and mask of different shapes, or not of two dimensions.

    References
    ----------
    Cossock & Zhang (2006), COLT. Burges et al. (2005), Learning to rank using gradient descent, ICML. Cao et al.
    (2007), Learning to rank: from pairwise approach to listwise approach, ICML. Bruch et al. (2019), An analysis of the
    softmax cost function for learning to rank, ICTIR. Li et al. (2023), Unified demonstration
    retriever for in-context learning, ACL. Guo et al. (2020), A deep look into neural ranking models, Information
    Processing & Management 57.

    Examples
    --------
    >>> import torch
    >>> grades = torch.tensor([[2.0, 1.0, 0.0]])
    >>> [bool(ranking_loss(grades, grades, kind) < ranking_loss(-grades, grades, kind)) for kind in RANKINGS]
    [True, True, True, True]
    """
    import torch

    one_of("kind of ranking loss", kind, RANKINGS)
    shapes = [tuple(x.shape) for x in (scores, relevance, mask) if x is not None]
    if scores.ndim != 2 or len(set(shapes)) > 1:
        raise DataError(f"scores, relevance and mask have shapes {shapes}; expected one shape (list, candidate).")
    there = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    # What is padded may be NaN, whose gradient would be NaN even at weight 0.
    s, r = scores.masked_fill(~there, 0.0), relevance.to(scores).masked_fill(~there, 0.0)
    if kind == "pointwise":
        counts = there.sum(1)
        each = ((s - r) ** 2 * there).sum(1) / counts.clamp(min=1)
        says = counts > 0
    else:
        above = (r[:, :, None] > r[:, None, :]) & there[:, :, None] & there[:, None, :]
        says = above.any(2).any(1)
        if kind == "listwise":
            gain = (2.0**r - 1).clamp(min=0)  # 0 where there is no candidate
            soft = gain / gain.sum(1, keepdim=True).clamp(min=1e-12)
            log_p = s.masked_fill(~there, -torch.inf).log_softmax(1).masked_fill(~there, 0.0)
            each = -(soft * log_p).sum(1)
        else:
            pairs = torch.nn.functional.softplus(s[:, None, :] - s[:, :, None]) * above
            if kind == "pairwise":
                each = pairs.sum((1, 2)) / above.sum((1, 2)).clamp(min=1)
            else:
                order = s.detach().masked_fill(~there, -torch.inf).argsort(dim=1, descending=True, stable=True)
                reciprocal = 1 / (order.argsort(1) + 1).to(s)
                each = (pairs * (reciprocal[:, :, None] - reciprocal[:, None, :]).abs()).sum((1, 2))
    return torch.where(says, each, 0.0).sum() / says.sum().clamp(min=1)


def perturbation_contrast(
    anchors: Any, kept: Sequence[Any], broken: Sequence[Any] = (), *, temperature: Any = 0.05
) -> Any:
    """Contrast of texts with their own perturbations: those that keep the meaning are positives, others hard negatives.

    The mean of `info_nce` over the perturbations in ``kept``.

    Parameters
    ----------
    anchors : Tensor (n, d)
        Unit vectors of the texts as they are.
    kept : sequence of Tensor (n, d)
        Of perturbations that a reader does not mind, such as typing errors.
    broken : sequence of Tensor (n, d)
        Of those that destroy the text, such as scrambled letters.
    temperature : float

    References
    ----------
    Xiao et al. (2024), Pixel Sentence Representation Learning, arXiv:2402.08183.

    Examples
    --------
    >>> import torch
    >>> x = torch.eye(4)
    >>> bool(perturbation_contrast(x, [x], [x.roll(1, 0)]) < perturbation_contrast(x, [x.roll(1, 0)], [x]))
    True
    """
    import torch

    if not len(kept):
        raise DataError("there are 0 perturbations that keep the meaning; at least one is needed.")
    hard = torch.stack(list(broken), 1) if len(broken) else None
    losses = [info_nce(anchors, each, hard=hard, temperature=temperature) for each in kept]
    return torch.stack(losses).mean()


def nested_loss(
    queries: Any,
    positives: Any,
    target: Any = None,
    *,
    prefixes: Sequence[int],
    loss: Callable[..., Any] = info_nce,
    hard: Any = None,
    align: float = 1.0,
    temperature: Any = 0.05,
) -> Any:
    r"""Loss of nested dimensions x layers (2D Matryoshka): of the first dimensions of vectors, and of shallow layers.

    .. math:: \mathcal{L} = D_L + \frac{1}{L - 1} \sum_{i < L} \frac{D_i}{1 + \log(1 + i)}, \qquad
              D_i = \frac{1}{|P|} \sum_{d \in P} \ell(q_i^{1:d}, p_i^{1:d})
              + a\, \mathrm{KL}\Bigl(\mathrm{softmax}\frac{q_L \cdot p_L}{\tau} \,\Big\|\,
              \mathrm{softmax}\frac{q_i^{1:d} \cdot p_L^{1:d}}{\tau}\Bigr)

    where i counts layers from 0, the shallowest, and L is the deepest one; prefixes have unit norm again. The
    divergence aligns what is cut off, in width or in depth, with the whole vector of the deepest layer, to which no
    gradient goes from it.

    Parameters
    ----------
    queries : Tensor (n, d) or (layer, n, d)
        Of unit norm, the deepest layer last.
    positives : Tensor (m, d) or (layer, m, d)
        One set of vectors, such as those of pictures, serves every layer of the queries.
    target : int64 Tensor (n,), optional
        As in `info_nce`.
    prefixes : sequence of int
        P: numbers of first dimensions, such as ``(256, 128, 64)``; with d alone, and one layer, this is ``loss``.
    loss : callable
        :math:`\ell`, called as ``loss(queries, positives, target, hard=hard)``: `info_nce`, `ranking_hinge`, or a
        ``functools.partial`` of them.
    hard : Tensor (n, k, d) or (layer, n, k, d), optional
        Hard negatives of each query.
    align : float
        a; 0 leaves the divergence out.
    temperature : float or Tensor
        :math:`\tau` of the divergence.

    Returns
    -------
    Tensor
        Scalar.

    Raises
    ------
    ConfigError
        A prefix is longer than the vectors, or there is none.
    DataError
        Queries and positives have several layers each, and not the same number.

    References
    ----------
    Kusupati et al. (2022), Matryoshka representation learning, NeurIPS. Li et al. (2024), 2D Matryoshka sentence
    embeddings, arXiv:2402.14776.

    Examples
    --------
    >>> import torch
    >>> x = torch.eye(4)
    >>> bool(nested_loss(x, x, prefixes=[4]) == info_nce(x, x))
    True
    >>> bool(nested_loss(x, x, prefixes=[4, 2]) > nested_loss(x, x, prefixes=[4]))
    True
    """
    import torch

    at_least("align", align)
    sides = [x if x is None or x.ndim == y else x[None] for x, y in ((queries, 3), (positives, 3), (hard, 4))]
    depth, width = max(len(x) for x in sides if x is not None), queries.shape[-1]
    if any(x is not None and len(x) not in (1, depth) for x in sides):
        found = [len(x) for x in sides if x is not None]
        raise DataError(f"queries, positives and hard negatives have {found} layers; legal is one, or {depth} of each.")
    if not len(prefixes) or max(check_whole("prefix", d) for d in prefixes) > width:
        raise ConfigError(f"prefixes={list(prefixes)} of vectors of {width} dimensions; legal are 1 to {width}.")

    def cut(x: Any, layer: int, dims: int) -> Any:
        if x is None:
            return None
        part = x[min(layer, len(x) - 1)]
        return part if dims == width else torch.nn.functional.normalize(part[..., :dims], dim=-1)

    asked, given, wrong = sides
    whole = cut(asked, depth - 1, width) @ cut(given, depth - 1, width).T / temperature
    total = queries.new_zeros(())
    for layer in range(depth):
        deepest = layer == depth - 1
        weight = 1.0 if deepest else 1 / (1 + math.log(1 + layer)) / (depth - 1)
        for dims in prefixes:
            q = cut(asked, layer, dims)
            part = loss(q, cut(given, layer, dims), target, hard=cut(wrong, layer, dims))
            if align and not (deepest and dims == width):
                part = part + align * distill_kl(q @ cut(given, depth - 1, dims).T / temperature, whole)
            total = total + weight / len(prefixes) * part
    return total
