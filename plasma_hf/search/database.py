"""Proteins to search residue by residue: a file, or a folder that grows.

A query meets all of them in a cheap stage: Smith-Waterman over BLOSUM62 on vector units, and the
cosine of one vector per protein, where a language model has made them. The best few hundred are
aligned as `pipeline("protein-alignment")` does, and ranked by E-value against all. What is found
makes a profile of the query, and this searches again: relatives of relatives are found by it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, compress, islice, zip_longest
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers.utils import logging

from ..data.shards import write_atomically, writer_lock
from ..models.alignment_result import AlignmentResults
from ..models.protein import InvalidRecord, Protein, clean_sequence

logger = logging.get_logger(__name__)

FORMAT, MANIFEST = 1, "proteins.json"
PROTEINS_PER_PART = 100_000
EMBEDDED_TOGETHER, VECTORS_AT_ONCE = 32, 2**16
SENSITIVITY = {"fast": 150, "default": 500, "more": 2000, "all": None}
"""How many proteins are aligned, the best ones of the cheap stage."""
SIGNIFICANT = 0.01  # E-value up to which a hit is part of a profile
MOST_RELATIVES = 20  # of a profile; of more, as many from the best one to the last
# What BLOSUM62 has no row for, by what it stands for.
KNOWN_LETTERS = str.maketrans("UOJ", "CKL")

T = TypeVar("T")
Ranking = tuple[list[float], list[int]]
"""Scores and numbers of proteins, the best one first; what comes first of equals is better."""


class ProteinDatabase:
    """Sequences in memory, of a file or a folder, that queries are aligned with.

    A folder holds one byte per residue in parts that never change: others may search while proteins
    are added, and see them when they open it next. Beside a part may lie vectors of its proteins, a
    few hundred bytes each, by one model or several.

    Example:
        >>> import tempfile
        >>> records = [Protein("a", "MKTAYIAKQRQISFVKSHFSRQ"), Protein("b", "GDSGGPLVCSGKLQGIVSW")]
        >>> database = ProteinDatabase.build(tempfile.mkdtemp(), records)
        >>> len(database), database.residues, database.add([Protein("a", "MK")])
        (2, 41, 0)
    """

    def __init__(self, ids: list[str], sequences: list[str], folder: Path | None = None) -> None:
        self.ids, self.sequences, self.folder = ids, sequences, folder
        self.structures: dict[int, Protein] = {}  # those that were given as one, by number
        self._parts: list[tuple[str, NDArray[np.bool_]]] = []  # files, and what of them is here
        self._vectors: dict[str, NDArray[np.int8]] = {}  # by what made them
        self._scored: dict[str, NDArray[np.float64]] = {}  # what the last query met

    @classmethod
    def of(
        cls, proteins: Iterable[Protein], on_invalid: Callable[[InvalidRecord], None] | None = None
    ) -> ProteinDatabase:
        """Hold proteins in memory; a structure keeps its authors' numbers."""
        database = cls([], [])
        for one, name, sequence in _valid(proteins, on_invalid):
            if one.structure is not None:
                database.structures[len(database)] = one
            database.ids.append(name)
            database.sequences.append(sequence)
        return database

    @classmethod
    def build(
        cls,
        folder: str | os.PathLike[str],
        proteins: Iterable[Protein],
        on_invalid: Callable[[InvalidRecord], None] | None = None,
    ) -> ProteinDatabase:
        """Make a folder of proteins, or go on with one; ids that it has stay as they are."""
        where = Path(folder)
        where.mkdir(parents=True, exist_ok=True)
        if not (where / MANIFEST).exists():
            _write_manifest(where, {"format": FORMAT, "parts": [], "removed": {}})
        database = cls.open(where)
        database.add(proteins, on_invalid)
        return database

    @classmethod
    def open(cls, folder: str | os.PathLike[str], part: int | None = None) -> ProteinDatabase:
        """Read a folder, or a part of it as a database of its own.

        Raises:
            FileNotFoundError: If it is no database.
            ValueError: If a part is damaged, or of a later version.
        """
        where = Path(folder)
        told = read_manifest(where)
        database = cls([], [], where)
        removed = told["removed"]
        for number, kept in enumerate(told["parts"]):
            if part not in (None, number):
                continue
            file = where / kept["file"]
            read = file.read_bytes() if file.exists() else b""
            if hashlib.sha256(read).hexdigest() != kept["sha256"]:
                raise ValueError(
                    f"{file} is damaged or missing; remove it from the folder, or "
                    f"build the database anew: plasma-hf database build FILE --output {where}"
                )
            text = read.decode("utf-8", "surrogateescape")
            names, letters = (side.split("\n") for side in text.split("\0"))
            stays = [number >= removed.get(name, 0) for name in names]
            database.ids += compress(names, stays)
            database.sequences += compress(letters, stays)
            database._parts.append((kept["file"], np.array(stays)))
        return database

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, number: int) -> Protein:
        return self.structures.get(number) or Protein(self.ids[number], self.sequences[number])

    @property
    def residues(self) -> int:
        """Residues of all proteins."""
        return sum(map(len, self.sequences))

    def add(
        self, proteins: Iterable[Protein], on_invalid: Callable[[InvalidRecord], None] | None = None
    ) -> int:
        """Add proteins, and return how many are new; a part at a time is safe on disk.

        An id that is there stays as it is; `on_invalid` is told if it now stands for another
        sequence.
        """
        added = 0
        with self._adding():
            known = dict(zip(self.ids, self.sequences, strict=True))
            new = _new(_valid(proteins, on_invalid), known, on_invalid)
            while part := list(islice(new, PROTEINS_PER_PART)):
                self._write_part(part)
                self.ids += [name for name, _ in part]
                self.sequences += [sequence for _, sequence in part]
                added += len(part)
        self._changed()
        return added

    @contextmanager
    def _adding(self) -> Iterator[None]:
        """Keep others that add away, and know what those before have added."""
        if self.folder is None:
            yield
            return
        busy = f"another process is adding to the database {self.folder}; wait for it."
        with writer_lock(self.folder / ".adding.lock", busy):
            there = [part["file"] for part in read_manifest(self.folder)["parts"]]
            if there != [file for file, _ in self._parts]:
                vars(self).update(vars(type(self).open(self.folder)))
            yield

    def _changed(self) -> None:
        self.__dict__.pop("_aligner", None)
        self._vectors.clear()
        self._scored.clear()

    def remove(self, ids: Iterable[str]) -> int:
        """Leave proteins out, and return how many of them there were."""
        gone = set(ids) & set(self.ids)
        if self.folder is not None:
            with FileLock(self.folder / ".lock"):
                told = read_manifest(self.folder)
                # Of the parts that are there; a later one may have it again.
                told["removed"] |= dict.fromkeys(sorted(gone), len(told["parts"]))
                _write_manifest(self.folder, told)
        left = iter([name not in gone for name in self.ids])
        self._parts = [
            (file, np.array([was and next(left) for was in stays])) for file, stays in self._parts
        ]
        stays = [number for number, name in enumerate(self.ids) if name not in gone]
        moved = {old: new for new, old in enumerate(stays)}
        self.structures = {moved[n]: one for n, one in self.structures.items() if n in moved}
        self.ids, self.sequences = (
            [column[number] for number in stays] for column in (self.ids, self.sequences)
        )
        self._changed()
        return len(gone)

    def _write_part(self, part: list[tuple[str, str]]) -> None:
        if self.folder is None:
            return
        text = "\n".join(n for n, _ in part) + "\0" + "\n".join(s for _, s in part)
        content = text.encode("utf-8", "surrogateescape")  # names of files, as they are
        digest = hashlib.sha256(content).hexdigest()
        file = f"part-{digest[:16]}.bin"
        write_atomically(self.folder / file, lambda new: new.write_bytes(content))
        with FileLock(self.folder / ".lock"):
            told = read_manifest(self.folder)
            told["parts"].append({"file": file, "proteins": len(part), "sha256": digest})
            _write_manifest(self.folder, told)
        self._parts.append((file, np.ones(len(part), dtype=bool)))

    def add_vectors(self, align: Any) -> int:
        """Give each protein a vector by which remote relatives are found; return how many are new.

        It pays with language models: on SCOPe40 superfamilies are found twice as often. Embeddings
        come from the pipeline's store, where it has them. A job that was stopped goes on.

        Args:
            align: A `pipeline("protein-alignment", ...)` of a calibrated model.

        Raises:
            ValueError: If the model is not calibrated.
        """
        _check_calibrated(align)
        model, added, start = model_name(align), 0, 0
        for file, stays in self._parts or [("", np.ones(len(self), dtype=bool))]:
            rows = np.flatnonzero(stays).tolist()
            proteins = {row: self[start + number] for number, row in enumerate(rows)}
            start += len(rows)
            shape = len(stays), align.model.background.proteins.shape[1]
            if self.folder is None:
                vectors = np.zeros(shape, np.int8)
                added += _fill(vectors, proteins, align)
                self._vectors[model] = vectors
            elif not (self.folder / f"{file}.{model}.npy").exists():
                added += _write_vectors(self.folder / f"{file}.{model}.npy", shape, proteins, align)
        if self.folder is not None:
            self._vectors.clear()
        return added

    def vectors(self, model: str) -> NDArray[np.int8] | None:
        """Return the vectors by a model, 0 of those that it has not met, or None without any."""
        if model not in self._vectors and self.folder is not None:
            files = [(self.folder / f"{file}.{model}.npy", stays) for file, stays in self._parts]
            read = [(_read_vectors(file, stays), int(stays.sum())) for file, stays in files]
            axes = max((rows.shape[1] for rows, _ in read if rows is not None), default=0)
            if axes:
                self._vectors[model] = np.concatenate(
                    [np.zeros((n, axes), np.int8) if rows is None else rows for rows, n in read]
                )
        return self._vectors.get(model)

    @cached_property
    def _aligner(self) -> tuple[Any, Any, NDArray[np.float64]]:
        """Return Smith-Waterman on vector units, what it aligns with, and corrections of length."""
        try:
            import pyopal
        except ImportError as error:
            raise ImportError(
                'a search needs pyopal: pip install "plasma-hf[search]"; or align with all, by '
                'sensitivity "all"'
            ) from error
        known = pyopal.Database([one.translate(KNOWN_LETTERS) for one in self.sequences])
        lengths = np.array([len(one) for one in self.sequences], dtype=float)
        # The best of many stretches grows with the logarithm of the length.
        return pyopal.align, known, np.log(np.maximum(lengths, 10.0))

    def without_vectors(self) -> int | None:
        """Return how many proteins have no vectors, where others have."""
        lacking, some = 0, False
        for file, stays in self._parts:
            has = self.folder is not None and any(self.folder.glob(f"{file}.*.npy"))
            some, lacking = some or has, lacking + int(stays.sum()) * (not has)
        return lacking if some else None

    def rank(
        self, query: Protein, most: int | None, align: Any = None, relatives: Sequence[Protein] = ()
    ) -> list[Ranking]:
        """Return the best proteins by each way of the first stage; with no `most` all of them.

        By letters, by those of the relative that is found last, and by the vectors that the model
        of `align` gave the proteins.
        """
        if most is None:
            return [([0.0] * len(self), list(range(len(self))))]
        sequences = [query.sequence or ""]
        sequences += [s for one in relatives if (s := one.sequence or "") != sequences[0]][-1:]
        rankings = [_best(self._letters_score(sequence), most) for sequence in sequences]
        vectors = None if align is None else self.vectors(model_name(align))
        if vectors is not None:
            cosines = _cosines(_quantized(align.pool([query]))[0], vectors)
            # One that has no vector, or a far one, is no candidate by it.
            rankings.append(_best(cosines, min(most, int((cosines > 0).sum()))))
        return rankings

    def candidates(
        self, query: Protein, sensitivity: str, align: Any, relatives: Sequence[Protein] = ()
    ) -> list[Protein]:
        """Return the proteins that a query is to be compared with, but for relatives known."""
        most = SENSITIVITY[sensitivity]
        if most is not None and most >= len(self):
            most = None
        numbers = united([best for _, best in self.rank(query, most, align, relatives)], most)
        known = {(one.id, one.sequence) for one in relatives}  # ids may come again
        return [
            one for one in map(self.__getitem__, numbers) if (one.id, one.sequence) not in known
        ]

    def _letters_score(self, query: str) -> NDArray[np.float64]:
        if query in self._scored:
            return self._scored[query]
        align, known, length = self._aligner
        found = align(
            query.translate(KNOWN_LETTERS),
            known,
            mode="score",
            algorithm="sw",
            gap_open=12,  # of the first residue: what BLAST calls 11
            gap_extend=1,
            threads=torch.get_num_threads(),
        )
        scores = np.empty(len(self))
        for one in found:  # in any order
            scores[one.target_index] = one.score
        self._scored = {query: scores / length}  # a query comes again, as a profile
        return self._scored[query]

    def profile(
        self,
        query: Any,
        align: Any,
        sensitivity: str = "default",
        iterations: int | None = None,
        database_size: int | None = None,
        evalue: float = SIGNIFICANT,
        **options: Any,
    ) -> tuple[Protein, list[Any]]:
        """Do all iterations of a search but the last: return a profile, and the hits it is made of.

        Args:
            query, align, sensitivity, iterations, database_size, evalue, options: See `search`.
        """
        profile, found = align.read((query, query))["query"], list[Any]()
        probe = sensitivity if SENSITIVITY[sensitivity] is None else "fast"
        given = evalue, database_size or len(self)
        relatives: list[Protein] = []
        for _ in range((iterations or usual_iterations(align)) - 1):
            candidates = self.candidates(profile, probe, align, relatives)
            new = significant(align_candidates(align, profile, candidates, *given, **options))
            if not new:
                break
            found = numbered(found, new)
            relatives = [hit.candidate for hit in found]
            profile = profile_of(align, profile, relatives)
        return profile, found

    def search(
        self,
        queries: str | Protein | Iterable[Any],
        align: Any = None,
        top_k: int | None = None,
        evalue: float = 0.01,
        sensitivity: str = "default",
        iterations: int | None = None,
        database_size: int | None = None,
        **options: Any,
    ) -> Iterator[AlignmentResults]:
        """Yield the significant hits of each query, the most significant first.

        Args:
            queries: One protein or several, as the pipeline takes them.
            align: A `pipeline("protein-alignment", ...)` of a calibrated model; the default's.
            top_k: How many hits at most.
            evalue: Hits that chance gives, at most, with each hit.
            sensitivity: A name of `SENSITIVITY`; "all" aligns with every protein.
            iterations: Searches, each after the first by a profile of the query and what was found
                with an E-value of at most `evalue` and `SIGNIFICANT`; with 1 the query is compared
                alone. What made a profile is told as it was found first: no profile that a hit is
                part of speaks for it. By default `usual_iterations`.
            database_size: Proteins that E-values count; those of the database by default, all
                shards of it where this is one.
            options: Further ones of the pipeline.

        Raises:
            ValueError: If the model has no p-values, or there is no such sensitivity.
            ImportError: If pyopal is missing.

        Source: iterated search (PSI-BLAST, Altschul et al. 1997), over embeddings.

        Example:
            >>> database = ProteinDatabase.of([Protein("a", "MKTAYIAKQRQISFVKSHFSRQ")])
            >>> [hits] = database.search(["AYIAKQRQLSFVKSHFS"])
            >>> [hit.candidate.id for hit in hits]
            ['a']
        """
        check_search(sensitivity, iterations)
        align = align or default_pipeline()
        _check_calibrated(align)
        size = database_size or len(self)
        for query in [queries] if isinstance(queries, str | Protein) else queries:
            given = align, sensitivity, iterations, size, evalue
            profile, found = self.profile(query, *given, **options)
            relatives = [hit.candidate for hit in found]
            candidates = self.candidates(profile, sensitivity, align, relatives)
            new = align_candidates(align, profile, candidates, evalue, size, **options)
            yield AlignmentResults(sorted(numbered(found, new), key=significance)[:top_k])


def usual_iterations(align: Any) -> int:
    """Return how many searches there are if nobody says: by a profile where its E-values hold.

    They were measured to for substitution windows, and not to over a language model, which gains
    little by profiles.
    """
    kind = getattr(align.model.config.plm_config, "model_type", "")
    return 2 if kind == "substitution_window" else 1


def check_search(sensitivity: str, iterations: int | None) -> None:
    """Refuse what says nothing of how to search."""
    if sensitivity not in SENSITIVITY:
        raise ValueError(f"sensitivity {sensitivity!r}; give one of {', '.join(SENSITIVITY)}.")
    if iterations is not None and iterations < 1:
        raise ValueError(
            f"iterations={iterations}; give 1, which compares the query alone, or more."
        )


def profile_of(align: Any, query: Protein, relatives: Iterable[Protein]) -> Protein:
    """Return the profile that relatives of a query make; copies of it say nothing new."""
    others = [one for one in relatives if one.sequence != query.sequence]
    return align.profile(query, others[:: -(-len(others) // MOST_RELATIVES)]) if others else query


def significant(hits: Iterable[Any]) -> list[Any]:
    """Return the hits that a profile is made of."""
    return [hit for hit in hits if hit["evalue"] <= SIGNIFICANT]


def numbered(before: list[Any], new: list[Any]) -> list[Any]:
    """Return hits of searches and of the one after them, which are told so."""
    # Copies of a query make no profile of it.
    made = (hit["iteration"] for hit in before if hit.candidate.sequence != hit.query.sequence)
    iteration = 1 + max(made, default=0)
    for hit in new:
        hit["iteration"] = iteration
    return before + new


def model_name(align: Any) -> str:
    """Return what names a model's vectors; others are of others."""
    words = json.dumps(align.model.head_identity, sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()[:16]


def united(rankings: Sequence[Sequence[T]], most: int | None) -> list[T]:
    """Take the best of each ranking in turn, until there are as many as are wanted.

    Example:
        >>> united([[1, 2, 3], [4, 1, 5]], most=4)
        [1, 4, 2, 3]
    """
    turns = chain.from_iterable(zip_longest(*rankings))
    return list(islice(dict.fromkeys(one for one in turns if one is not None), most))


def _best(scores: NDArray[np.float64], most: int) -> Ranking:
    numbers = np.argsort(-scores, kind="stable")[:most]
    return scores[numbers].tolist(), numbers.tolist()


def _check_calibrated(align: Any) -> None:
    if align.model.calibration is None:
        model = getattr(align.model, "name_or_path", "")
        name = model or align.model.config.plm_name_or_path or "MODEL"
        folder = " PROTEINS --output FOLDER" if model else ""
        raise ValueError(
            f"a search ranks by E-value, and {name} is not calibrated; type: plasma-hf calibrate "
            f"{name}{folder}"
        )


def _quantized(vectors: Tensor) -> NDArray[np.int8]:
    largest = vectors.abs().amax(-1, keepdim=True).clamp(min=1e-9)
    whole: NDArray[np.int8] = (127 * vectors / largest).round().to(torch.int8).cpu().numpy()
    return whole


def _cosines(own: NDArray[np.int8], vectors: NDArray[np.int8]) -> NDArray[np.float64]:
    """Return the cosines with each vector, up to a factor; the same whatever is beside it."""
    scores = np.empty(len(vectors))
    for start in range(0, len(vectors), VECTORS_AT_ONCE):
        # Sums of whole numbers, below 2**24, have no rounding.
        rows = vectors[start : start + VECTORS_AT_ONCE].astype(np.float32)
        squares = np.maximum(np.square(rows).sum(1), 1)
        scores[start : start + len(rows)] = (rows @ own.astype(np.float32)) / np.sqrt(squares)
    return scores


def _fill(vectors: NDArray[np.int8], proteins: dict[int, Protein], align: Any) -> int:
    """Compute the rows that are 0 yet, and return how many they were."""
    left = [row for row in proteins if not vectors[row].any()]
    left.sort(key=lambda row: -len(proteins[row]))  # like lengths together
    with tqdm(total=len(left), desc="vectors", unit="protein", disable=None) as bar:
        for start in range(0, len(left), EMBEDDED_TOGETHER):
            some = left[start : start + EMBEDDED_TOGETHER]
            vectors[some] = _quantized(align.pool([proteins[row] for row in some]))
            bar.update(len(some))
    return len(left)


def _write_vectors(
    file: Path, shape: tuple[int, int], proteins: dict[int, Protein], align: Any
) -> int:
    """Compute the vectors of a part, where another process was stopped, and return how many."""
    begun = file.with_name(f"{file.name}.writing")
    with FileLock(f"{file}.lock"):
        if file.exists():
            return 0
        if begun.exists():
            vectors = np.lib.format.open_memmap(begun, mode="r+")
        else:
            vectors = np.lib.format.open_memmap(begun, mode="w+", dtype=np.int8, shape=shape)
        added = _fill(vectors, proteins, align)
        vectors.flush()
        os.replace(begun, file)
    return added


def _read_vectors(file: Path, stays: NDArray[np.bool_]) -> NDArray[np.int8] | None:
    if not file.exists():
        return None
    try:
        read: NDArray[np.int8] = np.load(file, mmap_mode="r")[stays]
    except (ValueError, EOFError, IndexError) as error:
        raise ValueError(
            f"{file} is damaged; remove it, and make it again: plasma-hf database build --output "
            f"{file.parent} --backbone NAME"
        ) from error
    return read


def align_candidates(
    align: Any, query: Any, candidates: list[Protein], evalue: float, size: int, **options: Any
) -> list[Any]:
    """Align a query with what is significant of its candidates, the most significant first."""
    query = align.read((query, query))["query"]
    chance = align.model.calibration.chance
    distances = zip(candidates, align.screen(query, candidates), strict=True)
    pairs = [(query, one) for one, distance in distances if chance(distance) * size <= evalue]
    results = align(iter(pairs), evalue=evalue, database_size=size, **options)
    return sorted(filter(itemgetter("segments"), results), key=significance)


def significance(hit: Any) -> tuple[float, float, str]:
    """Sort hits by, the most significant first."""
    return hit["p_value"], -hit["score"], hit.candidate.id


def default_pipeline() -> Any:
    """Return the pipeline of the bundled model."""
    from .. import DEFAULT_CHECKPOINT
    from ..models.modeling_plasma import PlasmaModel
    from ..models.pipeline_protein_alignment import ProteinAlignmentPipeline

    return ProteinAlignmentPipeline(model=PlasmaModel.from_pretrained(DEFAULT_CHECKPOINT).eval())


def _valid(
    proteins: Iterable[Protein], on_invalid: Callable[[InvalidRecord], None] | None
) -> Iterator[tuple[Protein, str, str]]:
    """Yield proteins with their ids and sequences as they are kept."""
    for protein in proteins:
        try:
            sequence = clean_sequence(protein.sequence or "", protein.id)
        except (ValueError, TypeError) as error:
            if on_invalid is None:
                raise
            on_invalid(InvalidRecord(protein.id, str(error)))
        else:
            yield protein, " ".join(protein.id.split()), sequence


def _new(
    proteins: Iterable[tuple[Protein, str, str]],
    known: dict[str, str],
    on_invalid: Callable[[InvalidRecord], None] | None,
) -> Iterator[tuple[str, str]]:
    """Leave out those whose ids came before."""
    for _, name, sequence in proteins:
        if name not in known:
            known[name] = sequence
            yield name, sequence
        elif known[name] != sequence and on_invalid is not None:
            told = "its id stands for another sequence already, which stays; remove that first"
            on_invalid(InvalidRecord(name, told))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read what a folder has: its parts, in order, and what was removed from how many of them."""
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(
            f"{folder} is no database of proteins; make one with: plasma-hf database build FILE "
            f"--output {folder}"
        )
    told: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    if told.get("format") != FORMAT:
        raise ValueError(f"{folder} is of version {told.get('format')}, this reads {FORMAT}.")
    return told


def _write_manifest(folder: Path, told: dict[str, Any]) -> None:
    write_atomically(folder / MANIFEST, lambda new: new.write_text(json.dumps(told, indent=1)))
