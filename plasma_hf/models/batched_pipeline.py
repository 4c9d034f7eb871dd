"""A pipeline that answers in order, and computes in batches of like size."""

# The base class types its hooks for one dict of tensors.
# mypy: disable-error-code="override"

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from transformers import Pipeline

READ_AHEAD = 16
"""Batches that are looked at together, so that inputs of like size share a batch."""


class BatchedPipeline(Pipeline):
    """Answer every input in order; one that cannot be used does not keep others from an answer.

    `preprocess` reads an input, or returns `{"error": str}`, which is its answer then. `_forward`
    takes a list of what was read, and returns as many outputs. A derived class has `size_of`.
    """

    def size_of(self, prepared: Any) -> Any:
        """Return what inputs are sorted by, so that batches have little padding."""
        raise NotImplementedError

    def get_iterator(
        self,
        inputs: Iterable[Any],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Yield one answer an input."""
        prepared = (self.preprocess(one, **preprocess_params) for one in inputs)
        ahead = batch_size * READ_AHEAD if batch_size > 1 else 1
        while window := list(islice(prepared, ahead)):
            answers: dict[int, Any] = {}
            good = [i for i, one in enumerate(window) if not _is_error(one)]
            good.sort(key=lambda i: self.size_of(window[i]))
            for start in range(0, len(good), batch_size):
                chosen = good[start : start + batch_size]
                outputs = self.forward([window[i] for i in chosen], **forward_params)
                for i, output in zip(chosen, outputs, strict=True):
                    answers[i] = self.postprocess(output, **postprocess_params)
            yield from (answers.get(i, one) for i, one in enumerate(window))

    def run_single(self, inputs: Any, *params: dict[str, Any]) -> Any:
        """Answer one input."""
        return next(self.get_iterator([inputs], 0, 1, *params))


def _is_error(prepared: Any) -> bool:
    return isinstance(prepared, Mapping) and "error" in prepared
