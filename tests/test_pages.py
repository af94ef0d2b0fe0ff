"""Tests of the README and the guides: code blocks run (shortened to seconds), links have targets."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion.cache_files import default_cache_dir

ROOT = Path(__file__).resolve().parent.parent
GUIDES = ["getting-started", "train-on-your-recordings", "autoregressive-models", "vocoder", "evaluation"]
GUIDES += ["official-checkpoints", "results", "architecture", "gpu", "trained-model", "few-steps"]
SLOW_PAGES = {"trained-model"}  # many sampling steps
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in GUIDES)]
SET_UP = ("make", "pip", "python3 -m venv")


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Return the commands of a page without comments, with continued lines joined.

    Blocks called "shell" are left out: their commands need several machines, or data sets and access of the hub.
    """
    text = "".join(blocks(page, "bash")).replace("\\\n", " ")
    return [re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines()]


# A command that occurs on several pages runs once.
COMMANDS = list(dict.fromkeys(command for page in PAGES for command in commands(page)))

SHORT_TRAINING = (
    "training.cpu_threads=1 training.batch_size=2 training.validation_examples=2 training.trackers=[] "
    "sampling.num_samples=1"
)


def trains(command: str, kind: str, script: str) -> bool:
    """Return whether a command trains a kind of model, with ``sashimi-train`` or with a script in recipes."""
    return script in command or re.search(rf"train {kind}\b", command) is not None


def shortened(command: str) -> str:
    """Return the command with options that make it end in seconds; the last value of an option is used."""
    if command.endswith("--list"):
        return command
    if trains(command, "diffusion", "train_diffwave"):
        steps = 3 if "--resume" in command else 2
        if "vocoder" in command:
            command += " model.n_layers=1 data.length=2048 data.splits=[0.5,0.25,0.25]"
        return f"{command} {SHORT_TRAINING} sampling.steps=2 training.steps={steps}"
    if trains(command, "autoregressive", "train_autoregressive"):
        return f"{command} {SHORT_TRAINING} sampling.seconds=0.01 sampling.engine=eager training.steps=2"
    if trains(command, "classifier", "train_digit"):
        return f"{command} training.batch_size=8 training.steps=2 training.trackers=[]"
    if "evaluate" in command:
        return command if "listening" in command else f"{command} --resamples 3"
    if "digits-ar" in command:
        return f"{command} --seconds 0.02 --engine eager"
    if "sashimi-piano" in command:
        return f"{command} --seconds {0.1 if '--prefix' in command else 0.05} --engine eager"
    few = " --num-samples 10" if re.search(r"--num-samples \d{3}", command) else ""
    return f"{command} --steps 2{few}" if "sample" in command else command


def write_noise(path: Path, random: np.random.Generator, rate: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * random.standard_normal(rate // 2), rate)


@pytest.fixture(scope="module")
def working_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a working folder with the recipes and the recordings that the pages name."""
    folder = tmp_path_factory.mktemp("working_folder")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    random = np.random.default_rng(0)
    for digit in range(10):
        for index in range(6):
            write_noise(folder / "recordings" / f"{digit}_jackson_{index}.wav", random, 8000)
        for index in (0, 1):
            write_noise(folder / "ann" / f"{digit}_ann_{index}.wav", random, 8000)
    for label in ("bd", "sn"):
        for index in range(6):
            write_noise(folder / "drums" / f"{label}_take{index}.wav", random, 44100)
    write_noise(folder / "word.wav", random, 8000)
    for index in range(4):
        write_noise(folder / "LJSpeech-1.1" / "wavs" / f"LJ001-000{index}.wav", random, 22050)
    return folder


@pytest.fixture
def run(working_folder: Path):
    """Return a function that runs a shell command with the commands of this installation first in PATH."""

    def run(command: str) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        cache = str(working_folder / "cache")
        environment = {**os.environ, "PATH": path, "SASHIMI_CACHE": cache, "OMP_NUM_THREADS": "1"}
        environment.setdefault("NUMBA_CACHE_DIR", str(default_cache_dir() / "compiled"))  # compiled once for all tests
        done = subprocess.run(
            command,
            shell=True,
            cwd=working_folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"

    return run


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page.stem in SLOW_PAGES), id=page.stem) for page in PAGES]
)
def test_python_blocks_run_in_order(page: Path) -> None:
    names: dict[str, object] = {}
    for text in blocks(page, "python"):
        exec(compile(text, page.name, "exec"), names)
    if page.stem == "README":
        torch.testing.assert_close(names["y_600"], names["y"][..., 600], rtol=0, atol=1e-4)
        assert names["audio"].shape == (4, 1, 5120)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_make_targets_exist(command: str) -> None:
    done = subprocess.run(f"{command} --dry-run", shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def runnable(commands: list[str]) -> list[str]:
    """Return the commands that neither install anything nor measure."""
    return [command for command in commands if not command.startswith((*SET_UP, "python -m"))]


@pytest.mark.parametrize("command", runnable(commands(PAGES[0])))
def test_commands_of_the_readme_run(run, command: str) -> None:
    run(shortened(command))


@pytest.mark.slow
@pytest.mark.parametrize("command", runnable(COMMANDS))
def test_commands_run(run, working_folder: Path, request: pytest.FixtureRequest, command: str) -> None:
    if "official.pkl" in command:
        tensors = request.getfixturevalue("golden").tensors("d_diffwave/master_sashimi_unet_L16000")
        state = {key.removeprefix("sd."): value for key, value in tensors.items() if key.startswith("sd.")}
        torch.save({"model_state_dict": state}, working_folder / "official.pkl")
    if "vocoder" in command:
        pytest.importorskip("torchaudio", reason="mel spectrograms need torchaudio", exc_type=OSError)
    run(shortened(command))


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python -m")])
def test_benchmarks_run(run, command: str) -> None:
    small = "--features 2 --length 100" if "kernels" in command else "--d-model 8 --length 64"
    run(f"{command} {small} --repeats 1")


def test_extras_exist() -> None:
    """The extras that the pages install are in pyproject.toml, and the README lists all that are there."""
    installed = re.findall(r'pip install "\.\[([\w,]+)\]"', "".join(page.read_text() for page in PAGES))
    extras = {extra for text in installed for extra in text.split(",")}
    listed = set(re.findall(r"^\| `(\w+)` \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    table = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    assert listed == set(re.findall(r"^(\w+) = \[", table, flags=re.MULTILINE))
    assert {"fast", "eval"} <= extras <= listed


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "docs" / "index.md"], ids=lambda page: page.stem
)
def test_links_have_targets(page: Path) -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\((?!http|#)([^)]+)\)", page.read_text())]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_is_short() -> None:
    prose = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(prose.split()) < 700


def test_readme_commands_are_complete_lines() -> None:
    """Each command parses as a shell line, so it can be pasted."""
    for command in COMMANDS:
        assert shlex.split(command), command
