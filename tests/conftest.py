"""Fixtures for all tests."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file
from torch import Tensor

from tests.recorded_operations import Operations

# Triton decides when it is imported whether kernels are compiled, or interpreted on CPU tensors.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Without a deadline, tests do not fail on a busy computer.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

ROOT = Path(__file__).resolve().parent.parent
COMMITTED_GOLDEN = Path(__file__).resolve().parent / "golden"


def _shared(name: str) -> Path:
    path = ROOT.parent / "shared" / name
    if not path.is_dir():
        pytest.skip(f"needs the folder ../shared/{name} next to the repository, which does not exist")
    return path


class Golden:
    """Tensors and configurations computed with the official code, by file name without extension.

    The files are those in tests/golden. Files that are not there are read from the larger set in ../shared/golden; the
    test is skipped if that folder does not exist.
    """

    def tensors(self, name: str, full: bool = False) -> dict[str, Tensor]:
        """Return the tensors of a file; ``full`` reads all tensors of the larger set."""
        return load_file(self._path(f"{name}.safetensors", full))

    def info(self, name: str) -> dict:
        """Return the configuration of a file, or a list of the tensors of a published network ("keys/…")."""
        packed = COMMITTED_GOLDEN / f"{name}.json.gz"
        text = gzip.decompress(packed.read_bytes()) if packed.is_file() else self._path(f"{name}.json").read_text()
        return json.loads(text)

    def _path(self, name: str, full: bool = False) -> Path:
        committed = COMMITTED_GOLDEN / name
        return _shared("golden") / name if full or not committed.is_file() else committed


@pytest.fixture(scope="session")
def golden() -> Golden:
    """Return the tensors computed with the official code: a small set in tests/golden and an optional larger one."""
    return Golden()


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """Return the folder of the larger set of tensors computed with the official code, or skip if it is absent."""
    return _shared("golden")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real recordings, or skip if it is absent."""
    return _shared("data")


class RecipeScript:
    """Runner of a recipe in a new process, without network access and variables of other launchers.

    Attributes:
        ACCELERATE: ``accelerate launch`` on a CPU.
        TORCHRUN: torchrun with two processes.
    """

    ACCELERATE = ("-m", "accelerate.commands.launch", "--cpu")
    TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

    def __init__(self, name: str) -> None:
        self.path = Path(__file__).resolve().parents[1] / "recipes" / name

    def start(self, *arguments: object, launcher: Sequence[str] = ()) -> subprocess.Popen:
        """Start the script with Python or, for example, with ``launcher=TORCHRUN``."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE", "LOCAL_", "RANK"))}
        environment = kept | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, str(self.path), *map(str, arguments)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: object, launcher: Sequence[str] = ()) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        process = self.start(*arguments, launcher=launcher)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err

    def kill(self, run: Path, lines: int, *arguments: object, pause: float = 0.0) -> tuple[int, str]:
        """Start the script, and kill it ``pause`` seconds after metrics.jsonl has ``lines`` more lines.

        Returns:
            The exit code, -SIGKILL if the process was still running, and stderr.
        """
        enough = count_lines(run / "metrics.jsonl") + lines
        process = self.start(*arguments)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (run / "config.yaml").exists() and count_lines(run / "metrics.jsonl") >= enough:
                break
            time.sleep(0.002)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        return process.returncode, err


def count_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture
def recipe_script() -> type[RecipeScript]:
    """Return the class that runs a recipe by its file name."""
    return RecipeScript


@pytest.fixture
def metrics_of() -> Callable[[Path], list[dict]]:
    """Return a function from a run folder to the lines of metrics.jsonl without the times."""

    def read(run: Path) -> list[dict]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if not key.startswith("seconds")} for line in lines]

    return read


@pytest.fixture
def assert_same_run(metrics_of: Callable[[Path], list[dict]]) -> Callable[[Path, Path], None]:
    """Return a function that asserts that two run folders have the same metrics and final weights."""

    def check(run: Path, other: Path) -> None:
        from sashimi_diffusion.training.checkpoints import list_checkpoints

        assert metrics_of(run) == metrics_of(other)
        last = list_checkpoints(other)[-1].relative_to(other)
        for name in ("model.safetensors", "ema.safetensors"):
            assert (run / last / name).read_bytes() == (other / last / name).read_bytes()

    return check


@pytest.fixture(scope="session")
def operations() -> type[Operations]:
    """Return the class that records operations like a CUDA graph."""
    return Operations
