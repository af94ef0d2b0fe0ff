"""Every block of code in the README runs, cut short where a reader would wait, and what it links to is there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for language, text in BLOCKS if language == "bash" for line in text.splitlines()]

SHORT_TRAINING = "training.batch_size=2 training.validation_examples=2 training.trackers=[] sampling.num_samples=1"


def shortened(command: str) -> str:
    """The command with what makes it end in seconds appended: the last value of an option counts."""
    if "train_diffwave" in command:
        return f"{command} {SHORT_TRAINING} sampling.steps=2 training.steps={3 if '--resume' in command else 2}"
    if "train_autoregressive" in command:
        return f"{command} {SHORT_TRAINING} sampling.seconds=0.01 sampling.engine=eager training.steps=2"
    if "train_digit" in command:
        return f"{command} training.batch_size=8 training.steps=2 training.trackers=[]"
    if "evaluate" in command:
        return command if "listening" in command else f"{command} --resamples 3"
    if "digits-ar" in command:
        return f"{command} --seconds 0.02 --engine eager"
    return f"{command} --steps 2" if "sample" in command else command


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder a reader is in: the recipes, and the recordings that the README sends for."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    recordings = folder / "recordings"
    recordings.mkdir()
    random = np.random.default_rng(0)
    for digit in range(10):
        for index in range(6):
            soundfile.write(recordings / f"{digit}_jackson_{index}.wav", 0.1 * random.standard_normal(4000), 8000)
    return folder


@pytest.fixture
def run(reader: Path):
    """Runs one line as a shell would, with the commands of this installation first."""

    def run(command: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        cache = str(reader / "cache")
        environment = {**os.environ, "PATH": path, "SASHIMI_CACHE": cache, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            command, shell=True, cwd=reader, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    return run


def test_python_blocks_run_in_order() -> None:
    names: dict[str, object] = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text, "README.md", "exec"), names)
    torch.testing.assert_close(names["y_600"], names["y"][..., 600], rtol=0, atol=1e-4)
    assert names["audio"].shape == (1, 1, 5120)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    done = subprocess.run(f"{command} --dry-run", shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if not command.startswith(("make", "python -m"))])
def test_commands_run(run, reader: Path, request: pytest.FixtureRequest, command: str) -> None:
    if "official.pkl" in command:
        tensors = request.getfixturevalue("golden").tensors("d_diffwave/master_sashimi_unet_L16000")
        state = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
        torch.save({"model_state_dict": state}, reader / "official.pkl")
    if "converted" in command and "convert " not in command and not (reader / "converted").is_dir():
        pytest.skip("needs the pipeline of the conversion before it, which was skipped")
    run(shortened(command))


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python -m")])
def test_benchmarks_run(run, command: str) -> None:
    if "generation" in command:
        pytest.importorskip("numba", reason="numba is not installed (pip install 'sashimi-diffusion[fast]')")
        run(f"{command} --d-model 8 --n-layers 1 --samples 4 --prefix 16")
        return
    if "evaluation" in command:
        run(f"{command.split(' --arrays')[0]} --clips 60 --width 8")
        return
    small = "--features 2 --length 100" if "kernels" in command else "--d-model 8 --length 64"
    run(f"{command} {small} --repeats 1")


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
