"""What the verbs share: messages and exit codes, options, and one loader of models.

torch, transformers and the other rooms are imported inside functions: `--help` has no use for them.
"""

from __future__ import annotations

import gzip
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, Signature, getdoc, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, Self

import typer
from typer import Option

if TYPE_CHECKING:
    from ..io.structures import StructurePair
    from ..models.modeling_backbone import Backbone
    from ..models.modeling_plasma import PlasmaModel
    from ..models.modeling_protein_mpnn import ProteinMPNNEncoder
    from ..models.protein import Protein

logger = logging.getLogger(__name__)
package = logging.getLogger(__package__.partition(".")[0])


def report(message: str) -> None:
    """Say something in one line on standard error."""
    typer.echo(f"plasma-hf: {' '.join(message.split())}", err=True)


def fail(message: str) -> NoReturn:
    """Say what is wrong and end with exit code 2."""
    report(message)
    raise typer.Exit(2)


class Skipped:
    """What a verb could not use: each is reported in one line, and the exit code is then 2."""

    def __init__(self, silent: bool = False) -> None:
        self.told: dict[str, None] = {}
        self.silent = silent  # in a process that another one speaks for

    def report(self, message: str) -> None:
        """Report one record, row or pair, and nothing twice."""
        if message not in self.told and not self.silent:
            report(message)
        self.told[message] = None

    def report_record(self, record: Any) -> None:
        """Report a record by `id` and `reason`."""
        self.report(f"{record.id}: {record.reason}")

    def report_records(self, records: Iterable[Any]) -> None:
        """Report several."""
        for record in records:
            self.report_record(record)


class _Reported(logging.Handler):
    """Report what the library warns of like the rest, in one line."""

    def emit(self, record: logging.LogRecord) -> None:
        report(record.getMessage())


@contextmanager
def one_line_errors(quiet: bool = False, verbose: bool = False) -> Iterator[Skipped]:
    """Run a verb: an error is one line and exit code 2, and so is the end if something was skipped.

    Models are registered first, which the command line does not do at import.
    """
    from transformers.utils import logging

    from .. import register

    skipped, warnings = Skipped(), _Reported(logging.ERROR if quiet else logging.WARNING)
    logging.set_verbosity_error()
    if verbose:
        warnings.setLevel(logging.INFO)
        package.setLevel(logging.INFO)
    logging.disable_progress_bar()
    package.addHandler(warnings)
    try:
        register()
        yield skipped
    except BrokenPipeError:  # the reader has seen enough; typer ends quietly
        raise
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (ValueError, TypeError, EOFError, ImportError) as error:
        fail(str(error))
    finally:
        package.removeHandler(warnings)
    # Under torchrun an exit code other than 0 would stop the other processes.
    if skipped.told and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        raise typer.Exit(2)


@contextmanager
def compilation_announced() -> Iterator[None]:
    """Say that kernels are compiled, and how long it took; they are, once, and then cached."""
    try:
        from numba.core import event
    except ImportError:
        yield
        return
    say = report if sys.stderr.isatty() else logger.info
    times: list[float] = []

    class Compilation(event.Listener):
        def on_start(self, _event: Any) -> None:
            if not times:
                say("compiling the kernels, once for this installation, in about half a minute")
            times.append(time.monotonic())

        def on_end(self, _event: Any) -> None:
            times.append(time.monotonic())

    with event.install_listener("numba:compile", Compilation()):
        yield
    if times:
        say(f"compiled the kernels in {times[-1] - times[0]:.0f} s")


def verb(
    quiet: bool = False, **shared: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a verb of a function, which gets a `Skipped` as `skipped`.

    A parameter whose type is a dataclass stands for its fields, each of them an option. Help is
    the docstring, with each `{name}` of `shared` in it, and what exit codes say before examples;
    a paragraph with indented lines stays as it is laid out.
    """

    def made(run: Callable[..., None]) -> Callable[..., None]:
        options, groups = _options(run)

        @wraps(run)
        def started(**values: Any) -> None:
            told = values.get("quiet", quiet), values.get("verbose", False)
            with one_line_errors(*told) as skipped, compilation_announced():
                if values.get("threads"):
                    import torch

                    torch.set_num_threads(values["threads"])
                for name, kind in groups.items():
                    values[name] = kind(**{one.name: values.pop(one.name) for one in fields(kind)})
                run(skipped=skipped, **values)

        started.__annotations__ = {option.name: option.annotation for option in options}
        started.__doc__ = _help(getdoc(run) or "", shared)
        started.__signature__ = Signature(options)  # type: ignore[attr-defined]
        return started

    return made


def _options(run: Callable[..., None]) -> tuple[list[Parameter], dict[str, Any]]:
    """Return all options of a verb, and the groups in which some come."""
    options: list[Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in signature(run, eval_str=True).parameters.values():
        kind: Any = parameter.annotation
        if is_dataclass(kind):
            groups[parameter.name] = kind
            options += signature(groups[parameter.name], eval_str=True).parameters.values()
        elif kind is not Skipped:
            options.append(parameter)
    return [option.replace(kind=Parameter.KEYWORD_ONLY) for option in options], groups


def _help(text: str, shared: Mapping[str, str]) -> str:
    for name, part in shared.items():
        text = text.replace(f"{{{name}}}", part)
    text = text.replace("\n\nExamples:", f"\n\n{EXIT_CODE}\n\nExamples:")
    return "\n\n".join("\b\n" * ("\n  " in part) + part for part in text.split("\n\n"))


def check_output(output: Path | None, *inputs: Any) -> None:
    """Refuse, before any work, what cannot be written, and a file that results are made of."""
    from ..models.protein import split_record

    if output is None:
        return
    if output.is_dir() or not os.access(output if output.exists() else output.parent, os.W_OK):
        why = "is a folder" if output.is_dir() else "cannot be written"
        fail(f"{output} {why}; give a file in a folder that is there and is yours")
    if not output.exists():
        return
    for place in (split_record(str(given))[0] for given in inputs if given is not None):
        if os.path.exists(place) and output.samefile(place):
            fail(f"{output} is a file that is read; give another one to write")


def write(texts: Iterable[str], output: Path | None) -> None:
    """Write texts as they come, to a file or else to standard output."""
    with Output(output) as file:
        for text in texts:
            file.write(text)


class Output:
    """A file of results, or standard output, with whole lines whenever it ends.

    Beside a file stands `FILE.progress` until all is done: how many results it holds and of which
    job, so that a job that was stopped goes on where it was.
    """

    def __init__(self, path: Path | None, job: str = "", resume: bool = False) -> None:
        self.path, self.job, self.done, self.begun = path, job, 0, False
        self.last = ""  # what the verb calls what it wrote last
        self.packed = path is not None and path.suffix == ".gz"
        self.waiting: list[bytes] = []
        self.told = time.monotonic()
        self.notes = Path(f"{path}.progress")
        if path is None:
            if isinstance(sys.stdout, io.TextIOWrapper):
                # A name of a file that is not UTF-8 is written as the bytes that it is.
                sys.stdout.reconfigure(errors="surrogateescape")
            return
        if path.exists() and not path.is_file():  # a pipe has no place to go on at
            self.job = ""
        size = self._size_of_earlier() if resume and self.job and path.exists() else 0
        path.open("ab").close()  # what cannot be written is said of this file
        if self.job:  # before anything is in it: a file without a note has all results
            self._note(size)
        self.begun = size > 0
        self.file = path.open("r+b" if size else "wb")
        if size:
            self.file.truncate(size)
            self.file.seek(size)

    def _size_of_earlier(self) -> int:
        if not self.notes.exists():
            raise ValueError(
                f"{self.path} is complete, or of another command: there is no {self.notes.name} of "
                "a job that was stopped; leave out --resume to write it anew"
            )
        told = json.loads(self.notes.read_text())
        if told["job"] != self.job:
            raise ValueError(
                f"{self.path} was begun by another command: other proteins, model or options; give "
                "the same ones, or leave out --resume to begin anew"
            )
        self.done, self.last = told["done"], told["last"]
        return int(told["bytes"])

    def __enter__(self) -> Self:
        return self

    def write(self, text: str, results: int = 1, last: str = "") -> None:
        """Write a text that is of so many results, the last of them called so."""
        self.done, self.last = self.done + results, last
        if self.path is None:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        self.waiting.append(text.encode("utf-8", "surrogateescape"))
        if not self.packed or time.monotonic() - self.told > 1:
            self._flush()

    def _flush(self) -> None:
        whole = b"".join(self.waiting)
        self.waiting.clear()
        # Each part of a gzipped file is whole by itself, so that a later run can go on behind it.
        self.file.write(gzip.compress(whole) if self.packed and whole else whole)
        self.file.flush()
        if self.job and time.monotonic() - self.told > 1:
            self._note(self.file.tell())

    def _note(self, size: int) -> None:
        self.told = time.monotonic()
        told: dict[str, Any] = {"job": self.job, "done": self.done, "last": self.last}
        told["bytes"] = size
        part = self.notes.with_name(f"{self.notes.name}.part")
        part.write_text(json.dumps(told))
        part.replace(self.notes)

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self.path is None:
            return
        with self.file:
            self._flush()
            if kind is not None and self.job:
                self._note(self.file.tell())
            else:
                self.notes.unlink(missing_ok=True)


# --- Groups of verbs, and options that several verbs take, each with one name and one help text.

EXIT_CODE = (
    "A record that cannot be used is reported on standard error, the rest is done, and the exit "
    "code is 2. It is also 2 where a file or an option cannot be used."
)


def group(text: str, **options: Any) -> typer.Typer:
    """Make a group of verbs."""
    return typer.Typer(
        help=text,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        **{"add_completion": False} | options,
    )


def _usable(device: str | None) -> str | None:
    """Refuse a device that this machine does not have, before anything is read."""
    if device is not None:
        import torch

        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError):  # as torch was built
            count = torch.cuda.device_count()
            there = ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])
            fail(f"--device {device} is not there; this machine and its torch have {there}")
    return device


def _defaults_of(context: typer.Context, file: Path | None) -> Path | None:
    """Take options from a YAML file, by their names; those that are typed come first."""
    if file is None:
        return None
    import yaml

    try:
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        fail(f"--config {file} cannot be read: {error}")
    if not isinstance(told, dict):
        fail(f"--config {file} holds no options; write them as `epochs: 10`, one in a line")
    known = {
        word.lstrip("-").replace("-", "_"): option
        for option in context.command.params
        if option.name != "config_file"  # a file names no other
        for word in option.opts
    }
    defaults: dict[str, Any] = {}
    for name, value in told.items():
        if (option := known.get(str(name).replace("-", "_"))) is None:
            near = " or ".join(get_close_matches(str(name), known))
            fail(
                f"--config {file}: there is no option {name}" + (f"; is it {near}?" if near else "")
            )
        if isinstance(value, dict):  # of --set
            value = [f"{key}={json.dumps(one)}" for key, one in value.items()]
        several = getattr(option, "multiple", False) and not isinstance(value, list)
        defaults[option.name or ""] = [value] if several else value
    context.default_map = defaults
    return file


Config = Annotated[
    Path | None,
    Option(
        "--config",
        callback=_defaults_of,
        is_eager=True,
        help="YAML file of options, by their names.",
    ),
]
OutputFile = Annotated[Path | None, Option("--output", "-o", help="File instead of the screen.")]
OutputFormat = Annotated[
    Literal["text", "json", "tsv"], Option("--format", "-f", help="What to write.")
]
InputFormat = Annotated[
    str | None, Option("--input-format", "--recipe", help="native or upstream.")
]
BackboneName = Annotated[
    str | None,
    Option(help="Backbone: esm2-8m, prott5, near, ..., Hub id or folder; the bundled by default."),
]
StoreFolder = Annotated[
    Path | None, Option(help="Folder of `plasma-hf embed`: what is in it is not embedded.")
]
Model = Annotated[str | None, Option(help="Folder or Hub id of a model; the bundled by default.")]
Revision = Annotated[str | None, Option(help="Commit, branch or tag of the model on the Hub.")]
RemoteCode = Annotated[bool, Option("--trust-remote-code", help="Run the model's own Python code.")]
Device = Annotated[str | None, Option(callback=_usable, help="cpu, cuda, cuda:1; a GPU if any.")]
Threads = Annotated[int | None, Option(min=1, help="Threads; as many as cores by default.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="No progress and no warnings.")]
Verbose = Annotated[bool, Option("--verbose", "-v", help="Say more of what is done.")]
Residues = Annotated[int, Option(min=1, help="Residues embedded at once, padding included.")]
Structures = Annotated[list[Path], Option(help="Folder or file of structures; can be repeated.")]
Identity = Annotated[
    float | None, Option(min=0, max=1, help="Identity from which on sequences are in one cluster.")
]
MinResidues = Annotated[int, Option(min=1, help="Shortest chain to use.")]
MaxResidues = Annotated[int, Option(min=1, help="Longest chain to use.")]


@dataclass(frozen=True)
class Loading:
    """Options that say which model, and where it computes."""

    model: Model = None
    revision: Revision = None
    device: Device = None
    trust_remote_code: RemoteCode = False


@dataclass(frozen=True)
class Embedding(Loading):
    """Options that say what embeds: a PLASMA model, or any backbone."""

    backbone: BackboneName = None
    input_format: InputFormat = None

    @property
    def name(self) -> str:
        """What a table calls it."""
        return f"{self.model or 'PLASMA-PF'}{f' over {self.backbone}' if self.backbone else ''}"


@dataclass(frozen=True)
class Computing(Embedding):
    """Options that say what aligns: a model, or PLASMA-PF over a backbone."""

    store: StoreFolder = None
    threads: Threads = None

    def load(self, task_head: str | None = None) -> Any:
        """Return the pipeline, in this process or in a worker."""
        from ..data.store import EmbeddingStore
        from ..models.pipeline_protein_alignment import ProteinAlignmentPipeline

        embedder, head = load_embedder(self, with_head=True)
        assert head is not None  # a model was asked for
        return ProteinAlignmentPipeline(
            model=head,
            processor=embedder.processor,
            device=head.device,
            task_head=task_head,
            store=EmbeddingStore.open(self.store) if self.store else None,
        )


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what was not given."""
    return {name: value for name, value in options.items() if value is not None}


def read_settings(
    settings: Iterable[str], config_class: type, device: str | None, **named: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sort `FIELD=VALUE`, and options by their field, into configuration and TrainingArguments."""
    from transformers import TrainingArguments

    own = {field.name: field.default for field in fields(config_class)}
    defaults = {field.name: field.default for field in fields(TrainingArguments)} | own
    del defaults["output_dir"]  # is --output
    values = given(named) | ({"use_cpu": True} if device == "cpu" else {})
    for setting in settings:
        name, _, text = setting.partition("=")
        if not text or name not in defaults:
            near = " or ".join(get_close_matches(name, defaults))
            fail(
                f"--set {setting}: give FIELD=VALUE, with a field of {config_class.__name__} or "
                f"TrainingArguments{f', as {near}' if near else ''}"
            )
        values[name] = text
        with suppress(ValueError):
            values[name] = json.loads(text)
        default = defaults[name]
        if isinstance(default, int | float) and not isinstance(values[name], int | float):
            fail(f"--set {setting}: {name} is {default} by default; give a value of its kind")
    config = {name: value for name, value in values.items() if name in own}
    return config, {name: value for name, value in values.items() if name not in own}


def best_device() -> str:
    """Return the GPU of this process if there is one."""
    import torch

    local = os.environ.get("LOCAL_RANK", "0")
    return f"cuda:{local}" if torch.cuda.is_available() else "cpu"


def load_model(
    loading: Loading, kind: Literal["plasma", "protalign"], backbone: str | None = None
) -> Any:
    """Load a model of one kind, the bundled one without a name, to infer on a device.

    A PLASMA head without its backbone takes the one that is named.
    """
    from transformers import AutoModel

    from .. import DEFAULT_CHECKPOINT, DEFAULT_RETRIEVAL_CHECKPOINT

    title, bundled = "PLASMA", DEFAULT_CHECKPOINT
    if kind == "protalign":
        title, bundled = "ProtAlign", DEFAULT_RETRIEVAL_CHECKPOINT
    name, trust = loading.model or bundled, loading.trust_remote_code
    try:
        model: Any = AutoModel.from_pretrained(
            name, revision=loading.revision, trust_remote_code=trust
        )
    except (ValueError, OSError, ImportError) as error:
        fail(
            f"--model {name} cannot be loaded; give a folder or a Hub id of a {title} model. "
            f"{error}"
        )
    if model.config.model_type != kind:
        fail(f"--model {name} is a {model.config.model_type} model; give a {title} model")
    if backbone is not None:
        model.load_backbone(backbone, trust_remote_code=trust)
    if kind == "plasma" and model.backbone is None:
        fail(f"--model {name} is a head that takes residue embeddings; give one with its backbone")
    return model.eval().to(loading.device or best_device())


def load_embedder(
    loading: Embedding, with_head: bool = False
) -> tuple[Backbone, PlasmaModel | None]:
    """Load a PLASMA model as backbone and head, or a backbone alone or under PLASMA-PF."""
    from transformers import AutoProcessor

    from ..backbones import load_aligner, load_backbone
    from ..models.modeling_backbone import Backbone

    backbone, recipe = loading.backbone, loading.input_format
    options: dict[str, Any] = {"revision": loading.revision}
    options["trust_remote_code"] = loading.trust_remote_code
    if backbone is None:
        if recipe is not None:
            fail("--input-format goes with --backbone; a PLASMA model brings its own")
        plasma = load_model(loading, "plasma")
        config, under = plasma.config, plasma.backbone
        processor = plasma.processor or AutoProcessor.from_pretrained(
            plasma.name_or_path, **options
        )
        return Backbone(under, processor, config.plm_name_or_path, config.plm_revision), plasma
    if loading.model is not None:
        fail("--model brings its own backbone; give --model or --backbone")
    options["device"] = loading.device or best_device()
    if with_head:
        aligner = load_aligner(backbone, recipe, **options)
        assert aligner.processor is not None  # it came with the backbone
        return Backbone(aligner.backbone, aligner.processor), aligner
    embedder = load_backbone(backbone, recipe, **options)
    if embedder.input_format.reads_structures:
        fail(f"--backbone {backbone} reads structures, and a store goes by sequences")
    return embedder, None


def load_structure_encoder(name: str, seed: int, device: str | None) -> ProteinMPNNEncoder:
    """Load a structure encoder from a checkpoint or a folder, or make a new one."""
    import torch

    from ..models.modeling_protalign import ProtAlignModel
    from ..models.modeling_protein_mpnn import ProteinMPNNConfig, ProteinMPNNEncoder

    path = Path(name)
    config = path / "config.json"
    if name == "new":
        torch.manual_seed(seed)
        encoder = ProteinMPNNEncoder(ProteinMPNNConfig()).eval()
    elif path.is_file():
        encoder = ProteinMPNNEncoder.from_upstream(path)
    elif not config.is_file():
        fail(
            f"--structure-encoder {name} is neither a ProteinMPNN checkpoint (.pt), nor a folder "
            "with a saved encoder or ProtAlign model, nor new"
        )
    elif json.loads(config.read_text()).get("model_type") == "protalign":
        encoder = ProtAlignModel.from_pretrained(path, load_backbone=False).structure_encoder
        if encoder is None:
            fail(f"the ProtAlign model in {name} was saved without a structure encoder")
    else:
        encoder = ProteinMPNNEncoder.from_pretrained(path)
    return encoder.to(device or best_device())


def read_places(places: Iterable[Path], skipped: Skipped) -> Iterator[Protein]:
    """Read the proteins of files and folders as queries are read, and report what cannot be."""
    from ..models.protein import BACKBONE_ATOMS
    from ..search import read_records

    for place in places:
        bad: list[Any] = []
        for record in read_records(place, bad, atoms=BACKBONE_ATOMS[:3]):
            yield record
            while bad:
                skipped.report_record(bad.pop())
        skipped.report_records(bad)


def read_pairs(
    paths: Iterable[Path], min_residues: int, max_residues: int, skipped: Skipped
) -> list[StructurePair]:
    """Read all chains that can be used, and report the rest."""
    from ..io.structures import pair_of, read_structure_folder

    invalid: list[Any] = []
    pairs: list[StructurePair] = []
    unfit = 0
    for path in paths:
        if path.suffix == ".parquet":
            found = _parquet_pairs(path, invalid.append)
        else:
            found = map(pair_of, read_structure_folder(path, invalid.append))
        for pair in found:
            if not pair.structure.residue_mask.any():
                skipped.report(f"{pair.id}: no residue has all of N, CA, C and O")
            elif min_residues <= len(pair.sequence) <= max_residues:
                pairs.append(pair)
            else:
                unfit += 1
    skipped.report_records(invalid)
    if unfit:
        report(
            f"{unfit} chains have fewer than {min_residues} or more than {max_residues} residues "
            "and are left out (--min-residues, --max-residues)"
        )
    return pairs


def _parquet_pairs(path: Path, on_invalid: Callable[[Any], None]) -> Iterator[StructurePair]:
    """Read the rows of a Parquet file as pairs, without those that are none."""
    from ..io.sequences import read_parquet
    from ..io.structures import row_to_pair
    from ..models.protein import InvalidRecord

    for number, row in enumerate(read_parquet(path), start=1):
        try:
            yield row_to_pair(row)
        except (ValueError, TypeError) as error:
            on_invalid(InvalidRecord(f"{path} row {number}", str(error)))
