"""The reference implementation: PLASMA for one pair, in float64 loops that read like the formulae.

`log_sinkhorn` is a second one of the plan, of padded batches, in the logarithm.
"""

import math

import numpy as np
import torch


def layer_norm(h):
    centred = h - h.mean(-1, keepdims=True)
    return centred / np.sqrt(h.var(-1, keepdims=True) + 1e-5)


def cost(q, c):
    return np.array([[np.maximum(a - b, 0).sum() for b in c] for a in q])


def plan(cost, kernel_scale, n_iters=20, eps=1e-8):
    kernel = np.exp(-kernel_scale * cost)
    v = np.full(kernel.shape[1], 1 / kernel.shape[1])
    for _ in range(n_iters):
        u = 1 / (kernel @ v + eps)
        v = 1 / (kernel.T @ u + eps)
    return u[:, None] * kernel * v


def log_sinkhorn(log_kernel, candidate_mask, *, eps=1e-8, n_iters=20):
    """Scale a kernel as `sinkhorn` does, but in the logarithm: for any eps and any cost."""
    slack = log_kernel.new_tensor(math.log(eps))
    count = candidate_mask.sum(-1, keepdim=True).clamp(min=1).to(log_kernel.dtype)
    candidate = (-count.log()).expand(candidate_mask.shape)
    for _ in range(n_iters):
        mass = (log_kernel + candidate.unsqueeze(-2)).logsumexp(-1)
        query = -torch.logaddexp(mass, slack)
        mass = (log_kernel + query.unsqueeze(-1)).logsumexp(-2)
        candidate = -torch.logaddexp(mass, slack)
    return (log_kernel + query.unsqueeze(-1) + candidate.unsqueeze(-2)).exp()


def collinearity(plan, window):
    n, m = plan.shape
    padded = np.zeros((max(n, window), max(m, window)))
    padded[:n, :m] = plan
    best = max(
        sum(padded[i + k, j + k] for k in range(window))
        for i in range(padded.shape[0] - window + 1)
        for j in range(padded.shape[1] - window + 1)
    )
    return min(best, window) / window


def score(plan, q, c, threshold=0.5, window=10):
    gate_q, gate_c = plan.max(1) > threshold, plan.max(0) > threshold
    a = sum((plan[i, j] * q[i] for i in np.flatnonzero(gate_q) for j in np.flatnonzero(gate_c)), 0)
    b = c[gate_c].sum(0)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = float(np.dot(a, b) / norms) if norms > 0 else 0.0
    return max(0.0, cosine * collinearity(plan, window))


def collinear_score(plan):
    n, m = plan.shape
    best = np.zeros((n + 1, m + 1))
    for i in range(n):
        for j in range(m):
            best[i + 1, j + 1] = max(best[i, j] + plan[i, j], best[i, j + 1], best[i + 1, j])
    share = min(1.0, best[n, m] / min(n, m))
    return 1 - (1 - share) ** max(1.0, np.sqrt(max(n, m) / 100))


def support(plan, window, gap):
    n, m = plan.shape

    def entry(i, j):
        return plan[i, j] if 0 <= i < n and 0 <= j < m else 0.0

    result = np.zeros_like(plan)
    for i in range(n):
        for j in range(m):
            for k in range(-window, window + 1):
                if not (0 <= i + k < n and 0 <= j + k < m):
                    continue
                aside = range(-gap, gap + 1)
                along_candidate = max(entry(i + k, j + k + g) for g in aside)
                along_query = max(entry(i + k + g, j + k) for g in aside)
                result[i, j] += (along_candidate + along_query) / 2
    return result / (2 * window + 1)


def label_match_loss(plan, labels_q, labels_c):
    received = [
        sum(labels_q[i] * plan[i, j] for i in range(len(plan))) for j in range(plan.shape[1])
    ]
    missing = sum(max(0.0, label - got) for label, got in zip(labels_c, received, strict=True))
    return missing / labels_c.sum()
