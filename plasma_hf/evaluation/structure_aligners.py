"""Baselines on structures: TM-align and Foldseek, for proteins whose files are in one folder."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..data.pairs import ProteinPair, SiteProtein
from ..models.protein import STRUCTURE_SUFFIXES, Protein, read_record
from .aligner import AlignedPair, path_result
from .aligner import Path as AlignmentPath

COLUMNS = "query,target,bits,qstart,tstart,qaln,taln"
CALPHA = 1  # of N, CA and C


class StructureFolder:
    """Find and read structures by the uid of a protein: `{uid}.pdb`, `.cif`, ..., also `.gz`.

    Args:
        folder: Where the files are, one chain each.
    """

    def __init__(self, folder: str | Path) -> None:
        """Remember the folder."""
        self.folder = Path(folder)
        self.read = lru_cache(maxsize=256)(self._read)

    def path(self, protein: SiteProtein) -> Path:
        """Return the file of a protein.

        Raises:
            FileNotFoundError: If there is none; the message names what was looked for.
        """
        for suffix in STRUCTURE_SUFFIXES:
            for name in (f"{protein.uid}{suffix}", f"{protein.uid}{suffix}.gz"):
                if (self.folder / name).is_file():
                    return self.folder / name
        raise FileNotFoundError(
            f"{self.folder} has no structure of {protein.uid}; put it there as {protein.uid}.pdb "
            "or .cif"
        )

    def _read(self, protein: SiteProtein) -> Protein:
        """Read a structure whose residues are those of the sequence."""
        found = read_record(str(self.path(protein)))
        if found.sequence != protein.sequence:
            raise ValueError(
                f"the structure of {protein.uid} has {len(found.sequence or '')} residues, which "
                f"are not the {len(protein.sequence)} of its sequence; give one of this sequence"
            )
        return found


class TMAlign:
    """Align structures by TM-align; the score is the mean of both normalised TM-scores.

    Args:
        structures: Where the structures are.
    """

    name = "tm-align"

    def __init__(self, structures: StructureFolder) -> None:
        """Check that tmtools is there."""
        try:
            from tmtools import tm_align
        except ImportError as error:
            raise ImportError("TM-align needs tmtools; run: pip install tmtools") from error
        self.structures, self.tm_align = structures, tm_align

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        """Align pairs, one result each."""
        return [self._align(pair) for pair in pairs]

    def _align(self, pair: ProteinPair) -> AlignedPair:
        sides, kept = [], []
        for protein in (pair.query, pair.candidate):
            atoms = self.structures.read(protein).backbone_atoms
            assert atoms is not None  # a structure has atoms
            calpha = atoms[:, CALPHA].double().numpy()  # (residues, 3)
            known = np.flatnonzero(np.isfinite(calpha).all(axis=1))
            kept.append(known)
            sides.append((calpha[known], "".join(protein.sequence[i] for i in known)))
        (first, query), (second, candidate) = sides
        found = self.tm_align(first, second, query, candidate)
        score = (found.tm_norm_chain1 + found.tm_norm_chain2) / 2
        path = path_of_rows(found.seqxA, found.seqyA)
        path = np.stack([side[path[:, k]] for k, side in enumerate(kept)], axis=1)
        return path_result(score, path, pair.query, pair.candidate)


def path_of_rows(query: str, candidate: str, starts: tuple[int, int] = (0, 0)) -> AlignmentPath:
    """Read a path from two aligned rows, `-` for a gap.

    Args:
        query: Aligned row of the query.
        candidate: As long.
        starts: Residue number, 0-based, of the first letter in each.

    Example:
        >>> path_of_rows("MK-V", "-KLV", starts=(4, 0)).tolist()
        [[5, 0], [6, 2]]
    """
    rows = np.array([list(query), list(candidate)])
    present = rows != "-"
    numbers = np.cumsum(present, axis=1) - 1 + np.array(starts)[:, None]
    return numbers[:, present.all(axis=0)].T.astype(np.int64)


class Foldseek:
    """Search structures by Foldseek; the score is the bit score, and a miss scores 0.

    Args:
        structures: Where the structures are.
        binary: The program, looked for on the PATH.

    Raises:
        FileNotFoundError: If the program is not found.
    """

    name = "foldseek"

    def __init__(self, structures: StructureFolder, binary: str = "foldseek") -> None:
        """Look for the program."""
        found = shutil.which(binary)
        if found is None:
            raise FileNotFoundError(
                f"the program {binary!r} is not found on the PATH; install Foldseek "
                "(https://github.com/steineggerlab/foldseek), or leave this baseline out"
            )
        self.structures, self.binary = structures, found

    def align(self, pairs: Sequence[ProteinPair]) -> list[AlignedPair]:
        """Align pairs, one result each, in one search of all queries against all candidates."""
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            self._lay_out(scratch / "queries", (pair.query for pair in pairs))
            self._lay_out(scratch / "candidates", (pair.candidate for pair in pairs))
            hits = self._search(scratch)
        return [self._result(pair, hits) for pair in pairs]

    def _lay_out(self, folder: Path, proteins: Iterable[SiteProtein]) -> None:
        folder.mkdir()
        for protein in dict.fromkeys(proteins):
            self.structures.read(protein)  # the residues that it numbers are those of the sequence
            source = self.structures.path(protein).resolve()
            # The file's name comes back as that of the hit; uids may hold any character.
            place = folder / f"{_key(protein)}{''.join(source.suffixes[-2:])}"
            if not place.exists():
                place.symlink_to(source)

    def _search(self, scratch: Path) -> dict[tuple[str, str], list[str]]:
        command = [self.binary, "easy-search", "queries", "candidates", "hits.tsv", "tmp"]
        command += ["--format-output", COLUMNS, "-e", "1e9", "--max-seqs", "100000", "-v", "1"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"foldseek ended with {done.returncode}: {done.stderr[-300:]}")
        hits: dict[tuple[str, str], list[str]] = {}
        for line in (scratch / "hits.tsv").read_text().splitlines():
            query, target, *values = line.split("\t")
            names = query.split(".")[0], target.split(".")[0]
            if names not in hits or float(values[0]) > float(hits[names][0]):
                hits[names] = values
        return hits

    def _result(self, pair: ProteinPair, hits: dict[tuple[str, str], list[str]]) -> AlignedPair:
        hit = hits.get((_key(pair.query), _key(pair.candidate)))
        if hit is None:
            return path_result(0.0, np.empty((0, 2), dtype=np.int64), pair.query, pair.candidate)
        bits, query_start, candidate_start, query_row, candidate_row = hit
        starts = int(query_start) - 1, int(candidate_start) - 1
        path = path_of_rows(query_row, candidate_row, starts)
        return path_result(float(bits), path, pair.query, pair.candidate)


def _key(protein: SiteProtein) -> str:
    return protein.uid.encode().hex()
