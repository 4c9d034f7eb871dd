"""Python code in processes of their own, forked from one that has imported what takes long."""

import json
import multiprocessing
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

SERVER = multiprocessing.get_context("forkserver")
# Nothing of these reads the environment; transformers and huggingface_hub do, and are not here.
SERVER.set_forkserver_preload(
    [
        "torch._dynamo",
        "torch.distributed.tensor",
        "scipy.optimize",
        "pandas",
        "tests.helpers.clients",
    ]
)


PATHS = list(sys.path)  # before any test adds a cache of code to them


def run_client(code, arguments, folder, home, **environment):
    """Run Python code as someone with the cache `folder / home`.

    Returns:
        What it printed last, read as JSON.
    """
    fixed = {"HF_HOME": str(folder / home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test"}
    return json.loads(run_python(code, arguments, folder, **fixed | environment).splitlines()[-1])


def run_fresh(code, arguments, folder):
    """Run Python code that loads remote code, in a cache of its own; return what it printed."""
    # Plain torch: a fresh copy of the code would be compiled anew, for many seconds.
    return run_python(code, arguments, folder, HF_HOME=f"{folder}/hf", PLASMA_HF_KERNELS="torch")


def run_python(code, arguments, folder, **environment):
    """Run code as `python -c` does in a folder, on one thread; return what it printed."""
    given = code, list(map(str, arguments)), str(folder), {**os.environ, **environment}, PATHS
    with TemporaryDirectory() as scratch:
        out, err = Path(scratch, "out"), Path(scratch, "err")
        process = SERVER.Process(target=_run, args=(*given, str(out), str(err)))
        process.start()
        process.join()
        assert process.exitcode == 0, err.read_text()
        return out.read_text()


def _run(code, arguments, folder, environment, paths, out, err):
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)  # the last bit of a product may depend on them
    sys.path[:] = paths
    sys.argv = ["-c", *arguments]
    exec(compile(code, "<client>", "exec"), {"__name__": "__main__"})
