"""Losses against plain numpy, finite differences, and each other."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.embedding import distill_kl, info_nce, nested_loss, perturbation_contrast, ranking_hinge, ranking_loss

torch = pytest.importorskip("torch")


def unit(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(x, dim=-1)


A, B, HARD = unit(5, 4), unit(5, 4, seed=1), unit(5, 3, 4, seed=2)


def test_info_nce_is_the_mean_log_share_of_the_positive():
    a, b, h = A.numpy(), B.numpy(), HARD.numpy()
    top = np.exp((a * b).sum(1) / 0.1)
    below = np.exp(a @ b.T / 0.1).sum(1) + np.exp(np.einsum("nd,nkd->nk", a, h) / 0.1).sum(1)
    p = top / below
    assert float(info_nce(A, B, hard=HARD, temperature=0.1)) == pytest.approx(-np.log(p).mean())
    focal = float(info_nce(A, B, hard=HARD, temperature=0.1, focal=0.5))
    assert focal == pytest.approx(-((1 - p) ** 0.5 * np.log(p)).mean())


def test_queries_of_one_positive_share_it():
    rows = torch.tensor([0, 0, 1, 2, 1])
    found = float(info_nce(A, B, rows, temperature=0.1, symmetric=True))
    logits = A.numpy() @ B.numpy().T / 0.1
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    back = logits - np.log(np.exp(logits).sum(0, keepdims=True))
    to_text = -logs[np.arange(5), rows].mean()
    to_image = -np.mean([(back[0, 0] + back[1, 0]) / 2, (back[2, 1] + back[4, 1]) / 2, back[3, 2]])
    assert found == pytest.approx((to_text + to_image) / 2)


def test_hinge_by_direction():
    s, m = A.numpy() @ B.numpy().T, 0.2
    right, off = np.diag(s), ~np.eye(5, dtype=bool)
    texts = (np.maximum(0, m - right[:, None] + s) * off).sum() / 5
    images = (np.maximum(0, m - right[None] + s) * off).sum() / 5
    assert float(ranking_hinge(A, B, negatives="text")) == pytest.approx(texts)
    assert float(ranking_hinge(A, B, negatives="image")) == pytest.approx(images)
    assert float(ranking_hinge(A, B)) == pytest.approx(texts + images)
    own = np.maximum(0, m - right[:, None] + np.einsum("nd,nkd->nk", A, HARD)).sum() / 5
    assert float(ranking_hinge(A, B, hard=HARD)) == pytest.approx(texts + images + own)


def test_soft_labels():
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.1, 0.3, 0.6]])
    expected = float((p * (p / q).log()).sum())
    assert float(distill_kl(q.log(), p.log())) == pytest.approx(expected, abs=1e-6)
    assert float(distill_kl(q.log() * 2, p.log() * 2, temperature=2.0)) == pytest.approx(4 * expected, abs=1e-5)


LOSSES = {
    "info_nce": lambda a, b, h: info_nce(a, b, hard=h, focal=0.5, mix="lists", symmetric=True, temperature=0.3),
    "pairs": lambda a, b, h: info_nce(a, b, hard=h, mix="pairs", generator=torch.Generator().manual_seed(0)),
    "hinge": lambda a, b, h: ranking_hinge(a, b, hard=h),
    "kl": lambda a, b, h: distill_kl(a, b.detach()),
    "perturbation": lambda a, b, h: perturbation_contrast(a, [b], [h[:, 0]], temperature=0.3),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    parts = [x.clone().requires_grad_(not (name == "kl" and n)) for n, x in enumerate((A, B, HARD))]
    assert torch.autograd.gradcheck(LOSSES[name], parts)


def test_mixtures_are_harder_and_nothing_without_hard_negatives():
    plain = float(info_nce(A, B, hard=HARD))
    assert float(info_nce(A, B, hard=HARD, mix="lists")) > plain
    assert float(info_nce(A, B, hard=HARD, mix="pairs")) > plain
    assert float(info_nce(A, B, mix="pairs")) == float(info_nce(A, B))


def test_what_does_not_fit_is_told():
    with pytest.raises(DataError, match=r"\(5, 4\) and \(5, 3\)"):
        info_nce(A, B[:, :3])
    with pytest.raises(DataError, match="5 and 4 vectors"):
        ranking_hinge(A, B[:4])
    with pytest.raises(ConfigError, match="text"):
        ranking_hinge(A, B, negatives="texts")
    with pytest.raises(DataError, match="0 perturbations"):
        perturbation_contrast(A, [])


class TestNested:
    """Nested dimensions x layers against sums that are written out."""

    def test_prefixes_and_layers_by_hand(self):
        q, p = unit(3, 5, 4), unit(3, 5, 4, seed=1)

        def cut(x, d):
            return torch.nn.functional.normalize(x[..., :d], dim=-1)

        total, whole = 0.0, q[2] @ p[2].T / 0.1
        for layer, weight in enumerate((0.5, 0.5 / (1 + np.log(2)), 1.0)):
            for d in (4, 2):
                likeness = cut(q[layer], d) @ cut(p[2], d).T / 0.1
                kl = (whole.softmax(1) * (whole.log_softmax(1) - likeness.log_softmax(1))).sum(1).mean()
                total += weight / 2 * (info_nce(cut(q[layer], d), cut(p[layer], d), temperature=0.2) + 0.7 * kl)
        how = {"prefixes": [4, 2], "align": 0.7, "temperature": 0.1}
        found = nested_loss(q, p, loss=partial(info_nce, temperature=0.2), **how)
        assert float(found) == pytest.approx(float(total))

    def test_pictures_serve_every_layer_and_hard_negatives_are_cut_too(self):
        q, hard = unit(2, 5, 4), unit(2, 5, 3, 4, seed=2)
        how = {"prefixes": [3], "align": 0.0, "loss": ranking_hinge}
        rows = torch.arange(5)
        found = nested_loss(q, B, rows, hard=hard, **how)
        one = nested_loss(q, B.expand(2, 5, 4), rows, hard=hard, **how)
        alone = [nested_loss(q[n], B, rows, hard=hard[n], **how) for n in range(2)]
        assert float(found) == pytest.approx(float(one))
        assert float(found) == pytest.approx(float(sum(alone)))

    def test_no_gradient_of_the_divergence_goes_to_the_whole_vector(self):
        q = A.clone().requires_grad_()
        nested_loss(q, B, prefixes=[2], loss=lambda *_, **__: 0 * A.sum()).backward()
        assert q.grad[:, :2].any()
        assert not q.grad[:, 2:].any()

    def test_bad_input_is_refused(self):
        with pytest.raises(ConfigError, match="1 to 4"):
            nested_loss(A, B, prefixes=[5])
        with pytest.raises(ConfigError, match="1 to 4"):
            nested_loss(A, B, prefixes=[])
        with pytest.raises(DataError, match=r"\[2, 3\] layers"):
            nested_loss(unit(2, 5, 4), unit(3, 5, 4), prefixes=[4])


def lists(seed=0, n=4, m=6):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, m)), rng.integers(0, 3, (n, m)).astype(float), rng.random((n, m)) < 0.8


def plain_ranking(kind, scores, grades):
    """Loss of one list, pair by pair; None where it says nothing."""
    m = len(scores)
    if kind == "pointwise":
        return np.mean((scores - grades) ** 2) if m else None
    pairs = [(i, j) for i in range(m) for j in range(m) if grades[i] > grades[j]]
    if not pairs:
        return None
    if kind == "listwise":
        p = (2.0**grades - 1) / (2.0**grades - 1).sum()
        return -(p * (scores - np.log(np.exp(scores).sum()))).sum()
    rank = {i: 1 + sum(scores[k] > scores[i] for k in range(m)) for i in range(m)}
    weight = [abs(1 / rank[i] - 1 / rank[j]) if kind == "lambda_mrr" else 1 / len(pairs) for i, j in pairs]
    return sum(w * np.log1p(np.exp(scores[j] - scores[i])) for w, (i, j) in zip(weight, pairs))


@pytest.mark.parametrize("kind", ["pointwise", "pairwise", "listwise", "lambda_mrr"])
def test_ranking_losses_of_padded_lists(kind):
    scores, grades, there = lists()
    grades[1], there[2] = 1.0, False  # a list without an order, and an empty one
    each = [plain_ranking(kind, s[t], g[t]) for s, g, t in zip(scores, grades, there)]
    expected = np.mean([x for x in each if x is not None])
    # What is padded is not read, and its gradient is 0.
    padded = torch.tensor(np.where(there, scores, np.nan), requires_grad=True)
    found = ranking_loss(padded, torch.tensor(np.where(there, grades, np.nan)), kind, mask=torch.tensor(there))
    assert found.item() == pytest.approx(expected)
    found.backward()
    assert padded.grad.isfinite().all()
    assert not padded.grad[~torch.tensor(there)].any()
    whole = [torch.tensor(x)[:1] for x in (scores, grades)]
    assert float(ranking_loss(*whole, kind)) == pytest.approx(plain_ranking(kind, scores[0], grades[0]))
    assert float(ranking_loss(*whole, kind, mask=torch.zeros(1, 6, dtype=torch.bool))) == 0


@pytest.mark.parametrize("kind", ["pairwise", "listwise", "lambda_mrr"])
def test_ranking_losses_depend_on_differences_of_scores_alone(kind):
    scores, grades, _ = (torch.tensor(x) for x in lists(1))
    assert float(ranking_loss(scores + 3, grades, kind)) == pytest.approx(float(ranking_loss(scores, grades, kind)))


def test_ranking_losses_refuse():
    x = torch.zeros(2, 3)
    with pytest.raises(ConfigError, match="did you mean 'pairwise'"):
        ranking_loss(x, x, "pairwse")
    with pytest.raises(DataError, match="expected one shape"):
        ranking_loss(x, x[:, :2])
    with pytest.raises(DataError, match="expected one shape"):
        ranking_loss(x[0], x[0])
