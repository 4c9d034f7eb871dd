"""What Triton gains over plain torch on the same GPU, and how far both are from float64.

Run as `python -m tests.benchmarks.gpu_speed [--pairs 64] [--width 480]` where there is a CUDA
device. It prints a Markdown table: milliseconds of the fastest of several repeats, and the largest
difference of each form from the reference in float64, relative to the largest value.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from plasma_hf import PlasmaConfig, PlasmaModel
from plasma_hf.kernels import use_kernels
from plasma_hf.models.modeling_backbone import pad_residues
from plasma_hf.models.modeling_plasma import hinge_cost, log_kernel, sinkhorn
from plasma_hf.training import PRESETS
from tests.benchmarks.speed_inputs import make_pairs, make_training_batch, random_lengths

FORMS = ("triton", "torch")
Work = Callable[..., Sequence[Tensor]]


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Time a call on the device, without the first, which compiles."""
    run()
    found = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end))
    return min(found)


def largest_difference(values: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Return the largest difference of any tensor, relative to the largest value of all."""
    pairs = zip(values, reference, strict=True)
    difference = max(float((value.double() - want).abs().max()) for value, want in pairs)
    return difference / (max(float(want.abs().max()) for want in reference) or 1.0)


def with_gradients(function: Callable[..., Tensor], **inputs: Tensor) -> Sequence[Tensor]:
    """Return a result and the gradients of its weighted sum."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs.values()]
    out = function(*leaves)
    weights = torch.linspace(0.5, 1.5, out.numel(), device=out.device).view_as(out).to(out)
    return [out, *torch.autograd.grad(out, leaves, weights)]


def tasks(pairs: int, width: int) -> Iterator[tuple[str, Work, dict[str, Tensor]]]:
    """Yield what is measured: its name, the function, and its tensors."""
    lengths = random_lengths(pairs, 50, 512)
    queries, candidates = make_pairs(lengths, width)
    (query, query_mask), (candidate, candidate_mask) = map(pad_residues, (queries, candidates))
    sides = {"query": query, "candidate": candidate}
    masks = {"query_mask": query_mask, "candidate_mask": candidate_mask}
    yield "hinge cost", lambda query, candidate: [hinge_cost(query, candidate)], sides
    yield "hinge cost, with gradients", partial(with_gradients, hinge_cost), sides
    kernel = log_kernel(hinge_cost(query, candidate), 0.1, query_mask, candidate_mask)
    given = {"kernel": kernel, "mask": candidate_mask}
    yield "plan of 20 iterations", lambda kernel, mask: [sinkhorn(kernel, mask)], given

    def plan_and_gradient(kernel: Tensor, mask: Tensor) -> Sequence[Tensor]:
        return with_gradients(lambda kernel: sinkhorn(kernel, mask), kernel=kernel)

    yield "plan of 20 iterations, with gradient", plan_and_gradient, given
    for name in ("published", "improved"):
        torch.manual_seed(0)
        model = PlasmaModel(PRESETS[name].plasma_config(width)).cuda()
        yield f"scores, {name}", partial(scores, model), sides | masks
        batch = make_training_batch(lengths[:16], width)[0]
        yield f"training step of 16 pairs, {name}", partial(training_step, model), batch
    default = PlasmaModel(
        PlasmaConfig(embedding_size=width, head="hinge", reading="posterior")
    ).cuda()
    yield "scores and probabilities, by local alignments", partial(plans, default), sides | masks


def scores(model: PlasmaModel, query, candidate, query_mask, candidate_mask) -> Sequence[Tensor]:
    """Score a padded batch as a search does."""
    sides = ((query, query_mask), (candidate, candidate_mask))
    queries, candidates = ([p[m] for p, m in zip(*side, strict=True)] for side in sides)
    return [model.to(query.dtype).align_pairs(queries, candidates, return_plans=False).scores]


@torch.no_grad()
def plans(model: PlasmaModel, query, candidate, query_mask, candidate_mask) -> Sequence[Tensor]:
    """Align a padded batch with plans."""
    out = model.to(query.dtype)(query, candidate, query_mask, candidate_mask, return_plan=True)
    return [out.scores, out.plan]


def training_step(model: PlasmaModel, **batch: Tensor) -> Sequence[Tensor]:
    """Compute loss and gradients of a batch."""
    width = next(p.dtype for n, p in batch.items() if n == "query_embeddings")
    model.to(width).zero_grad()
    loss = model(**batch).loss
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [loss.detach(), *(gradient.clone() for gradient in gradients)]


def measure(name: str, work: Work, given: dict[str, Tensor], repeats: int) -> str:
    """Return one line of the table."""
    wide = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    on_device = {k: v.cuda() for k, v in wide.items()}
    reference = [tensor.detach() for tensor in work(**on_device)]
    narrow = {k: v.cuda() for k, v in given.items()}
    times, differences = [], []
    for form in FORMS:
        with use_kernels(form):
            differences.append(largest_difference([t.detach() for t in work(**narrow)], reference))
            times.append(milliseconds(partial(work, **narrow), repeats))
    row = (f"{times[0]:.2f}", f"{times[1]:.2f}", f"{times[1] / times[0]:.1f}")
    return " | ".join((name, *row, *(f"{d:.1e}" for d in differences)))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gpu_speed")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--width", type=int, default=480)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.pairs} pairs of 50 to"
    )
    print(f"512 residues, width {options.width}\n")
    print("what | Triton, ms | plain torch, ms | ratio | Triton's difference | plain torch's")
    print("--- | --: | --: | --: | --: | --:")
    for name, work, given in tasks(options.pairs, options.width):
        print(measure(name, work, given, options.repeats), flush=True)


if __name__ == "__main__":
    main()
