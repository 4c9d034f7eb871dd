"""PLASMA as it was released, in plain torch: the form that the speed of this package is held to."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class PublishedForm(nn.Module):
    """Align one pair at a time: projection of both, cost by cdist, Sinkhorn, plan assessor.

    Steps and their order are those of the published description; nothing is kept from one pair to
    the next. Parameters and settings are taken from a `PlasmaModel` with a learnt head.
    """

    def __init__(self, model):
        super().__init__()
        config, head = model.config, model.alignment_head
        self.project = nn.Sequential(
            nn.Linear(config.embedding_size, config.head_size),
            nn.ReLU(),
            nn.Linear(config.head_size, config.head_size),
            nn.LayerNorm(config.head_size),
        )
        for layer, same in zip(
            (self.project[0], self.project[2], self.project[3]),
            (head.hidden, head.output, head.norm),
            strict=True,
        ):
            layer.load_state_dict(same.state_dict())
        self.config = config

    def cost(self, query, candidate):
        """Half of the L1 distance and of what the sums of channels differ in."""
        distance = torch.cdist(query, candidate, p=1.0)
        return (distance + query.sum(-1)[:, None] - candidate.sum(-1)[None, :]) / 2

    def plan(self, cost):
        """Run Sinkhorn in the linear domain, each iteration ending with the candidate's side."""
        eps = self.config.eps
        kernel = torch.exp(-cost * self.config.kernel_scale)
        candidate = torch.full((cost.shape[1],), 1 / cost.shape[1])
        for _ in range(self.config.n_iters):
            query = 1 / (kernel @ candidate + eps)
            candidate = 1 / (kernel.T @ query + eps)
        return query[:, None] * kernel * candidate[None, :]

    def score(self, plan, query, candidate):
        """Cosine of what is sent to matched residues and what is there, times the best diagonal."""
        threshold, window = self.config.threshold, self.config.diagonal_window
        query_gate = (plan.amax(1) > threshold).to(plan.dtype)
        candidate_gate = (plan.amax(0) > threshold).to(plan.dtype)
        sent = plan.T @ (query_gate[:, None] * query)
        transported = (candidate_gate[:, None] * sent).sum(0)
        present = (candidate_gate[:, None] * candidate).sum(0)
        similarity = F.cosine_similarity(transported, present, dim=0)
        sums = F.conv2d(plan.detach()[None, None], torch.eye(window)[None, None])
        diagonal = min(sums.max().item(), window) / window
        return (similarity * diagonal).clamp(min=0)

    def forward(self, query, candidate, query_projection=None, candidate_projection=None):
        """Return score and plan of a pair of embeddings `(residues, hidden)`."""
        query_projection = self.project(query) if query_projection is None else query_projection
        if candidate_projection is None:
            candidate_projection = self.project(candidate)
        plan = self.plan(self.cost(query_projection, candidate_projection))
        return self.score(plan, query, candidate), plan

    def loss(self, query, candidate, label, query_sites, candidate_sites):
        """Return the loss of one pair: of the score, and of the label match if it is positive."""
        score, plan = self(query, candidate)
        loss = F.binary_cross_entropy_with_logits(score, torch.tensor(float(label)))
        if not label:
            return loss
        missed = (candidate_sites - query_sites @ plan).relu().sum() / candidate_sites.sum()
        return loss + self.config.label_match_weight * missed
