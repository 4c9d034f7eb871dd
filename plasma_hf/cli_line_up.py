"""The aligners that `plasma-hf evaluate` compares, from what its options name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from .cli_embed import load_embedder
from .cli_errors import fail, report
from .data.embedder import Embedder, head_width
from .data.embedding_store import EmbeddingStore
from .evaluation import (
    Aligner,
    Composition,
    EmbeddedOnce,
    EmbeddingAlignment,
    EmbeddingSource,
    Foldseek,
    Length,
    MeanCosine,
    NeedlemanWunsch,
    PlasmaAligner,
    SmithWaterman,
    StoredEmbeddings,
    StructureFolder,
    TMAlign,
    parameter_free,
    with_settings,
)
from .models.modeling_plasma import PlasmaModel

ON_SEQUENCES: dict[str, Any] = {
    "smith-waterman": SmithWaterman,
    "needleman-wunsch": NeedlemanWunsch,
    "length": Length,
    "composition": Composition,
}
ON_EMBEDDINGS: dict[str, Any] = {"eba": EmbeddingAlignment, "mean-cosine": MeanCosine}
ON_STRUCTURES: dict[str, Any] = {"tm-align": TMAlign, "foldseek": Foldseek}
SHORT = {"kernel_scale": "kernel scale", "n_iters": "iterations", "diagonal_window": "window"}


@dataclass(frozen=True)
class NamedSource:
    """Hold where embeddings come from, what to call them, and how wide they are."""

    name: str
    source: EmbeddingSource
    width: int


@dataclass
class LineUp:
    """Make the aligners of an evaluation.

    Attributes:
        models: "default", "pf", or folders and Hub ids, in which `{seed}` stands for a seed.
        backbones: Folders or Hub ids.
        stores: Folders of embedding stores.
        baselines: By name.
        structures: Folder of structures, for the baselines that read them.
        sweep: Fields of `PlasmaConfig`, with the values to go through.
        device: Where models run.
        trust_remote_code: Whether models may bring code.
        not_found: Programs of baselines that are not here, which are left out.
    """

    models: Sequence[str]
    backbones: Sequence[str] = ()
    stores: Sequence[Path] = ()
    baselines: Sequence[str] = ()
    structures: Path | None = None
    sweep: dict[str, list[Any]] = field(default_factory=dict)
    device: str | None = None
    trust_remote_code: bool = False
    not_found: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Load what does not depend on the seed."""
        self._sources: dict[tuple[tuple[str, str], ...], NamedSource] = {}
        self._load = lru_cache(maxsize=4)(self._load_model)
        for folder in self.stores:
            store = EmbeddingStore.open(folder)
            self._add(store.identity, StoredEmbeddings(store), store.header.hidden_size)
        for name in self.backbones:
            embedder, _ = load_embedder(None, name, None, None, self.device, self.trust_remote_code)
            self._source_of(embedder)
        self._given = list(self._sources.values())
        self._baselines_without_embeddings = list(self._independent())

    def aligners(self, seed: int) -> list[Aligner]:
        """Return all aligners, models as they were trained for a seed."""
        models = [(name, *self._model(name, seed)) for name in self.models]
        sources = self._given or list(dict.fromkeys(own for *_, own in models if own))
        if not sources:
            sources = [
                self._source_of(
                    load_embedder(
                        None, "substitution", None, None, self.device, self.trust_remote_code
                    )[0]
                )
            ]
        found: list[Aligner] = []
        for name, model, own in models:
            for source in [own] if own else sources:
                head_width(model, source.width)  # complains where they do not fit
                found += self._swept(name, model, source)
        for source in sources:
            for baseline in self.baselines:
                if baseline in ON_EMBEDDINGS:
                    found.append(ON_EMBEDDINGS[baseline](source.source, source.name))
        found += self._baselines_without_embeddings
        names = [(aligner.name, getattr(aligner, "backbone", "")) for aligner in found]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            fail(f"{twice[0]} is there twice; give each model and baseline once")
        return found

    def _swept(self, name: str, model: PlasmaModel, source: NamedSource) -> Iterator[Aligner]:
        for values in product(*self.sweep.values()):
            changes = dict(zip(self.sweep, values, strict=True))
            suffix = "".join(f", {SHORT.get(key, key)} {v}" for key, v in changes.items())
            changed = with_settings(model, **changes) if changes else model
            yield PlasmaAligner(changed, source.source, name + suffix, source.name)

    def _model(self, name: str, seed: int) -> tuple[PlasmaModel, NamedSource | None]:
        return self._load(name.replace("{seed}", str(seed)))

    def _load_model(self, name: str) -> tuple[PlasmaModel, NamedSource | None]:
        if name == "pf":
            return parameter_free(), None
        if self._is_head_alone(name):
            model = PlasmaModel.from_pretrained(name)
            return model.to(self.device or "cpu"), None
        chosen = None if name == "default" else name
        embedder, plasma = load_embedder(
            chosen, None, None, None, self.device, self.trust_remote_code
        )
        assert plasma is not None  # a model was asked for
        return plasma, self._source_of(embedder)

    def _is_head_alone(self, name: str) -> bool:
        if name == "default":
            return False
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=self.trust_remote_code)
        except (ValueError, OSError) as error:
            fail(
                f"--model {name} cannot be loaded; give a folder or Hub id of a PLASMA model, "
                f"default or pf. {error}"
            )
        return config.model_type == "plasma" and config.plm_config is None

    def _source_of(self, embedder: Embedder) -> NamedSource:
        known = self._sources.get(_key(embedder.identity))
        if known is not None:
            return known
        return self._add(embedder.identity, EmbeddedOnce(embedder), embedder.hidden_size)

    def _add(self, identity: Any, source: EmbeddingSource, width: int) -> NamedSource:
        name = Path(identity["backbone"]).name
        if any(other.name == name for other in self._sources.values()):
            name = f"{name} {len(self._sources) + 1}"
        self._sources[_key(identity)] = NamedSource(name, source, width)
        return self._sources[_key(identity)]

    def _independent(self) -> Iterator[Aligner]:
        for name in self.baselines:
            if name in ON_SEQUENCES:
                yield ON_SEQUENCES[name]()
            elif name in ON_STRUCTURES:
                if self.structures is None:
                    fail(f"--baseline {name} reads structures; give their folder: --structures")
                try:
                    yield ON_STRUCTURES[name](StructureFolder(self.structures))
                except FileNotFoundError as error:
                    report(f"{name} is left out: {error}")
                    self.not_found.append(name)


def _key(identity: Any) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(identity.items()))
