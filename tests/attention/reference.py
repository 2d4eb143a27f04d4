"""Attention in float64 with loops, written from the formulas and nothing of the package's code."""

import math

import torch


def projected(attention, x, source, scale=None):
    """Queries, keys, values as lists over heads of (token, d), one case at a time."""
    dim, heads = attention.dim, attention.heads
    W, b = attention.in_proj.weight, attention.in_proj.bias
    b = torch.zeros(3 * dim, dtype=W.dtype) if b is None else b
    s = 1.0 if scale is None else scale
    q = s * (x @ W[:dim].T) + b[:dim]
    k = source @ W[dim : 2 * dim].T + b[dim : 2 * dim]
    v = source @ W[2 * dim :].T + b[2 * dim :]
    return [t.split(dim // heads, dim=-1) for t in (q, k, v)]


def softmax_row(scores, log_weight):
    """exp / sum over the keys of weight > 0; zeros without any."""
    weights = [0.0 if lw == -math.inf else math.exp(lw) * math.exp(s) for s, lw in zip(scores, log_weight)]
    total = sum(weights)
    return [w / total if total > 0 else 0.0 for w in weights]


def sigmoid_row(bias):
    return lambda scores, log_weight: [
        math.exp(lw) / (1 + math.exp(-(s + bias))) if lw > -math.inf else 0.0 for s, lw in zip(scores, log_weight)
    ]


@torch.no_grad()
def attend(attention, x, memory=None, *, log_weight=None, row=softmax_row, score=None, sees=None, scale=None):
    """Output (batch, query, dim) and weights (batch, heads, query, key).

    ``score(h, i, j, q, k)`` replaces q.k / sqrt(d); ``sees(b, h, i)`` gives the keys that a query sees; ``row`` turns
    a list of scores and log weights into weights.
    """
    source = x if memory is None else memory
    batch, queries, keys = len(x), x.shape[1], source.shape[1]
    out = torch.zeros(batch, queries, attention.dim, dtype=x.dtype)
    weights = torch.zeros(batch, attention.heads, queries, keys, dtype=x.dtype)
    score = score or (lambda h, i, j, q, k: float(q @ k) / math.sqrt(len(q)))
    for b in range(batch):
        Q, K, V = projected(attention, x[b], source[b], scale)
        lw = [0.0] * keys if log_weight is None else [float(w) for w in log_weight[b]]
        for i in range(queries):
            parts = []
            for h in range(attention.heads):
                seen = range(keys) if sees is None else sees(b, h, i)
                seen = [j for j in seen if score(h, i, j, Q[h][i], K[h][j]) > -math.inf]
                found = row([score(h, i, j, Q[h][i], K[h][j]) for j in seen], [lw[j] for j in seen])
                for j, w in zip(seen, found):
                    weights[b, h, i, j] = w
                parts.append(weights[b, h, i] @ V[h])
            out[b, i] = attention.out_proj(torch.cat(parts))
    return out, weights
