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


def label_match_loss(plan, labels_q, labels_c):
    received = [
        sum(labels_q[i] * plan[i, j] for i in range(len(plan))) for j in range(plan.shape[1])
    ]
    missing = sum(max(0.0, label - got) for label, got in zip(labels_c, received, strict=True))
    return missing / labels_c.sum()
