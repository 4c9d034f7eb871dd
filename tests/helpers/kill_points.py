"""Jobs that are killed: a process at a named point, or a call at each of its file operations."""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[2]


def stop_at(point: str, number: int, how: int = signal.SIGKILL) -> None:
    """Let this process get a signal at the `number`-th call of a function, before it does anything.

    Args:
        point: Where the function is looked up, "module:name" or "module:Class.name".
        number: Counted from 1.
        how: The signal.
    """
    module, _, names = point.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, name = names.split(".")
    for part in classes:
        owner = getattr(owner, part)
    function = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            os.kill(os.getpid(), how)
        return function(*args, **kwargs)

    setattr(owner, name, counted)


class Killed(BaseException):
    """What ends a job as a signal would: nothing that it does on its way out reaches the disk."""


@contextmanager
def killed_at(number: int) -> Iterator[None]:
    """Kill what runs at its `number`-th file operation, in the middle if that writes a file."""
    calls = count(1)

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            at = next(calls)
            if at == number and function.__name__.startswith("write_"):
                function(args[0], args[1][: len(args[1]) // 2], **kwargs)
            if at >= number:
                raise Killed
            return function(*args, **kwargs)

        return call

    operations = [(os, "replace"), (os, "fsync")]
    operations += [(Path, name) for name in ("write_bytes", "write_text", "unlink")]
    with ExitStack() as patched:
        for owner, name in operations:
            patched.enter_context(patch.object(owner, name, dying(getattr(owner, name))))
        yield


def contents(folder: Path) -> dict[str, bytes]:
    """Return what is in the files of a folder, its locks aside."""
    files = sorted(file for file in folder.iterdir() if file.suffix != ".lock")
    return {file.name: file.read_bytes() for file in files}


def kill_everywhere(
    job: Callable[[Path], object],
    look: Callable[[Path], object],
    scratch: Path,
    base: Path | None = None,
) -> int:
    """Kill a job at each file operation and start it again: it has to end as it does in one go.

    Args:
        job: What is done in a folder.
        look: What a reader does there after each kill.
        scratch: Folder to work in.
        base: What is in the folder before.

    Returns:
        The number of kills.
    """

    def begin(name: str) -> Path:
        if base:
            shutil.copytree(base, scratch / name)
        return scratch / name

    job(begin("one go"))
    expected = contents(scratch / "one go")
    for number in count(1):
        for reader in (look, None):
            folder = begin(f"{number} {reader is None}")
            try:
                with killed_at(number):
                    job(folder)
            except Killed:
                if reader:
                    reader(folder)
                job(folder)
                assert contents(folder) == expected, f"killed at file operation {number}"
            else:
                assert contents(folder) == expected
                return number - 1
    raise AssertionError


class Jobs:
    """Start jobs in forks of a process that has imported everything."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def kill(self, point: str, number: int, *words: object) -> None:
        """Run a job until it kills itself."""
        received = self._tell(point, number, int(signal.SIGKILL), *words)
        assert received == signal.SIGKILL, f"the job never came to call {number} of {point}"

    @contextmanager
    def stopped(self, point: str, number: int, *words: object) -> Iterator[None]:
        """Run a job until it stops itself; it is killed at the end."""
        received = self._tell(point, number, int(signal.SIGSTOP), *words)
        assert received == signal.SIGSTOP, f"the job never came to call {number} of {point}"
        try:
            yield
        finally:
            assert self._tell("kill it") == signal.SIGKILL

    def _tell(self, *words: object) -> int:
        """Send a line, and return the signal that a job ended or stopped by."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\t".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextmanager
def jobs(module: str) -> Iterator[Jobs]:
    """Start the process: `module` calls `serve` where it is run."""
    command = [sys.executable, "-m", module]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        yield Jobs(process)
        process.kill()


def serve(job: Callable[..., object]) -> None:
    """Fork a job for each line of standard input, and say what became of it."""
    while line := sys.stdin.readline():
        point, number, how, *words = line.rstrip("\n").split("\t")
        pid = os.fork()
        if not pid:
            stop_at(point, int(number), int(how))
            job(*words)
            os._exit(0)
        _, status = os.waitpid(pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            print(os.WSTOPSIG(status), flush=True)
            sys.stdin.readline()
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        print(status & 0x7F, flush=True)
