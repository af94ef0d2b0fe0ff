"""Training runs of tiny networks in forked children of the test, which has imported everything."""

import copy
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from accelerate.state import AcceleratorState, GradientState

from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.autoregressive.task import AutoregressiveTask
from sashimi_diffusion.training.command import Recipe, run_recipe
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.yaml_files import write_yaml
from sashimi_evaluation.classifiers.training.config import ClassifierConfig
from sashimi_evaluation.classifiers.training.task import ClassifierTask
from tests.training.conftest import TINY, write_recordings

RECIPES: dict[str, tuple[Any, Any]] = {
    "diffusion": (DiffusionTask, DiffusionConfig),
    "autoregressive": (AutoregressiveTask, AutoregressiveConfig),
    "classifier": (ClassifierTask, ClassifierConfig),
}
LAUNCHERS = ("ACCELERATE", "LOCAL_", "RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC")


def write_configs(folder: Path) -> None:
    """Write recordings and one YAML file per recipe into a folder."""
    (folder / "recordings").mkdir()
    data = {"path": str(write_recordings(folder / "recordings")), "cache_dir": str(folder / "cache")}
    (folder / "digits").mkdir()
    for number in range(40):
        digit, take = number % 10, number // 10
        tone = 0.3 * np.sin(2 * np.pi * (300 + 300 * digit) * np.arange(3000) / 16000)
        soundfile.write(folder / "digits" / f"{digit}_a_{take}.wav", tone, 16000)
    diffusion = copy.deepcopy(TINY)
    diffusion["data"] |= data
    shared = {"optimizer": diffusion["optimizer"], "training": diffusion["training"]}
    source = {"path": str(folder / "digits"), "pattern": "{label}_{speaker}_{index}", "holdout": {"index": [3]}}
    trees = {
        "diffusion": diffusion,
        "autoregressive": shared
        | {
            "model": {"name": "sashimi", "d_model": 8, "n_layers": 1, "pool": [4], "n_state": 4},
            "data": data | {"sample_rate": 8000, "length": 256, "splits": [0.5, 0.25, 0.25]},
            "sampling": {"num_samples": 1, "seconds": 0.02, "engine": "eager"},
        },
        "classifier": shared
        | {
            "model": {"name": "resnext", "depth": 11, "cardinality": 2, "base_width": 2, "embedding": None},
            "data": {"sources": {"folder": source | {"cache_dir": str(folder / "cache")}}},
        },
    }
    for name, tree in trees.items():
        (folder / f"{name}.yaml").write_text(write_yaml(tree))


class Child:
    """A forked process that runs a recipe.

    Args:
        folder: folder of :func:`write_configs`.
        recipe: name of the recipe.
        arguments: its command line without ``--config``.
        environment: variables of a launcher.
    """

    def __init__(self, folder: Path, recipe: str, *arguments: object, **environment: str) -> None:
        self.output = folder / f"output-{time.monotonic_ns()}"
        command = [f"{recipe}.py", "--config", str(folder / f"{recipe}.yaml"), *map(str, arguments)]
        self.process = os.fork()
        if self.process == 0:
            code = 99
            try:
                self._redirect()
                code = self._run(recipe, command, environment)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def _redirect(self) -> None:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{self.output}.{name}", os.O_WRONLY | os.O_CREAT), number)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for tests in the background
        signal.alarm(500)  # no child outlives a test that fails

    @staticmethod
    def _run(recipe: str, command: list[str], environment: dict[str, str]) -> int:
        for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
            del os.environ[name]
        os.environ.update(environment)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        sys.argv = command
        task, config = RECIPES[recipe]
        return run_recipe(Recipe(task, config, Path("none"), "none"), "")

    def wait(self) -> int:
        """Return the exit code, or minus the signal that ended the process."""
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def kill(self) -> int:
        """Kill the process and return the result of :meth:`wait`."""
        os.kill(self.process, signal.SIGKILL)
        return self.wait()

    def is_running(self) -> bool:
        """Return whether the process has not ended; its exit code remains available."""
        return os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    @property
    def err(self) -> str:
        """What the process wrote to stderr, without its progress bar."""
        text = Path(f"{self.output}.err").read_text()
        return "".join(line for line in text.splitlines(keepends=True) if "step/s" not in line).lstrip("\r")

    @property
    def out(self) -> str:
        """What the process wrote to stdout."""
        return Path(f"{self.output}.out").read_text()


def two_processes(folder: Path, recipe: str, *arguments: object) -> list[Child]:
    """Start a run with two processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return [Child(folder, recipe, *arguments, RANK=str(n), LOCAL_RANK=str(n), **shared) for n in range(2)]


def wait_for(condition: Callable[[], bool], while_running: Child | None = None) -> None:
    """Wait until a condition is true or a process has ended; fail after two minutes."""
    deadline = time.monotonic() + 120
    while not condition() and (while_running is None or while_running.is_running()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
