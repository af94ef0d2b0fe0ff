"""Runs, samples and evaluations on two machines: two agents of torchrun, whose caches and temporary files are apart."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sashimi_diffusion.training.checkpoints import list_checkpoints
from tests.faults.forked_runs import write_configs

pytestmark = pytest.mark.slow
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "train_diffwave_sashimi.py"
SETTINGS = ["training.batch_size=2", "data.cache_dir=null", "training.steps=6", "training.checkpoint_every=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with recordings and configs."""
    folder = tmp_path_factory.mktemp("machines")
    write_configs(folder)
    return folder


def start(place: Path, launcher: list[str], program: list[str], arguments: list[object]) -> subprocess.Popen:
    """Start a launcher that has its home, and so its cache, in ``place``."""
    names = ("ACCELERATE", "LOCAL_", "RANK", "WORLD_SIZE", "MASTER_", "TORCHELASTIC", "SASHIMI_CACHE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    environment = kept | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    environment["SASHIMI_CACHE"] = str(place / "cache")
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, *program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def two_machines(
    folder: Path, program: list[str], *arguments: object, second: list[object] | None = None, workers: int = 1
) -> list[tuple[int, str, str]]:
    """Run a program with two agents; return exit code, stdout and stderr of each.

    Args:
        folder: the machines have their caches in its folders "first" and "second".
        program: a script, or "-m" and a module.
        arguments: the arguments on both machines.
        second: the arguments on the second machine, if they differ.
        workers: processes on each machine.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["--nnodes=2", f"--nproc-per-node={workers}", "--rdzv-backend=c10d", "--rdzv-id=test"]
    launcher += [f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1"]
    given = {"first": list(arguments), "second": list(arguments) if second is None else second}
    agents = [start(folder / name, launcher, program, given[name]) for name in given]
    outputs = [agent.communicate(timeout=400) for agent in agents]
    return [(agent.returncode, *output) for agent, output in zip(agents, outputs, strict=True)]


def errors_of(results: list[tuple[int, str, str]]) -> list[str]:
    return [line for _, _, err in results for line in err.splitlines() if line.startswith("error: ")]


def test_two_machines_train_like_two_processes(
    folder: Path, tmp_path: Path, assert_same_run: Callable[[Path, Path], None]
) -> None:
    config = ["--config", folder / "diffusion.yaml", *SETTINGS]
    one, two = tmp_path / "one", tmp_path / "two"
    agent = start(tmp_path, ["--standalone", "--nproc-per-node=2"], [str(RECIPE)], [*config, f"output_dir={one}"])
    _, err = agent.communicate(timeout=400)
    assert agent.returncode == 0, err
    stopped = [*config, f"output_dir={two}", "training.steps=3"]
    for arguments in ([*stopped, "optimizer.decay=constant"], [*config, "--resume", f"output_dir={two}"]):
        results = two_machines(tmp_path, [str(RECIPE)], *arguments)
        assert [code for code, _, _ in results] == [0, 0], results
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    assert [path.name for path in list_checkpoints(two)] == ["step-000003", "step-000006"]
    for place in ("first", "second"):  # each machine has decoded the recordings into its own cache
        assert list((tmp_path / place / "cache").rglob("audio.f32"))

    whole = tmp_path / "whole"
    results = two_machines(tmp_path, [str(RECIPE)], *config, f"output_dir={whole}")
    assert [code for code, _, _ in results] == [0, 0], results
    assert_same_run(whole, one)
    assert "on 2 x cpu" in "".join(out for _, out, _ in results)


def test_errors_of_a_machine_end_both(folder: Path, tmp_path: Path) -> None:
    """The second machine lacks the recordings, and then the run folder."""
    config = ["--config", folder / "diffusion.yaml", *SETTINGS, f"output_dir={tmp_path / 'run'}"]
    results = two_machines(tmp_path, [str(RECIPE)], *config, second=[*config, "data.path=/nowhere"])
    assert all(code != 0 for code, _, _ in results)
    errors = errors_of(results)
    assert 1 <= len(errors) <= 2  # once on each machine, if it is not ended before
    assert all("/nowhere does not exist" in error for error in errors)
    assert not (tmp_path / "run").exists()

    results = two_machines(tmp_path, [str(RECIPE)], *config)
    assert [code for code, _, _ in results] == [0, 0], results
    resume = ["--resume", *config, "training.steps=9"]
    elsewhere = [*resume, f"output_dir={tmp_path / 'elsewhere'}"]
    results = two_machines(tmp_path, [str(RECIPE)], *resume, second=elsewhere)
    assert all(code != 0 for code, _, _ in results)
    assert "another machine has no checkpoint" in errors_of(results)[0]
    assert not (tmp_path / "elsewhere" / "checkpoints").exists()


def test_an_error_of_a_process_beyond_the_first_is_printed_once(folder: Path, tmp_path: Path) -> None:
    """Of the four processes, the second one of the first machine runs out of memory."""
    script = tmp_path / "failing.py"
    script.write_text(
        "import os, sys\n"
        f"sys.path.insert(0, {str(RECIPE.parent)!r})\n"
        "import train_diffwave_sashimi as recipe\n"
        "from sashimi_diffusion.training.step import EagerStep\n"
        "original = EagerStep.run\n"
        "def run(self, step):\n"
        "    if os.environ['RANK'] == '1' and step == 2:\n"
        "        raise RuntimeError('CUDA out of memory. Tried to allocate 2 GiB.')\n"
        "    original(self, step)\n"
        "EagerStep.run = run\n"
        "sys.exit(recipe.main())\n"
    )
    arguments = ["--config", folder / "diffusion.yaml", *SETTINGS, f"output_dir={tmp_path / 'run'}"]
    results = two_machines(tmp_path, [str(script)], *arguments, "training.batch_size=1", workers=2)
    assert all(code != 0 for code, _, _ in results)
    errors = [line for line in errors_of(results) if "another process of this run has ended" not in line]
    assert len(errors) == 1
    assert "exhausted with training.batch_size=1 and training.gradient_accumulation=1: set " in errors[0]


def test_samples_and_evaluations_are_shared_among_machines(folder: Path, tmp_path: Path) -> None:
    sample = ["-m", "sashimi_diffusion.commands.sample"]
    options = ["--pipeline", "sashimi-digits", "--num-samples", 4, "--steps", 2, "--batch-size", 1, "--device", "cpu"]
    agent = start(tmp_path, ["--standalone", "--nproc-per-node=1"], sample, [*options, "--out", tmp_path / "one"])
    _, err = agent.communicate(timeout=400)
    assert agent.returncode == 0, err
    results = two_machines(tmp_path, sample, *options, "--out", tmp_path / "two")
    assert [code for code, _, _ in results] == [0, 0], results
    for path in (tmp_path / "one").glob("*.wav"):
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes()
    records = [json.loads((tmp_path / name / "samples.json").read_text()) for name in ("one", "two")]
    assert records[0]["samples"] == records[1]["samples"]
    assert all(record["complete"] for record in records)

    apart = [[*options, "--out", tmp_path / name] for name in ("here", "there")]
    results = two_machines(tmp_path, sample, *apart[0], second=apart[1])
    assert all(code != 0 for code, _, _ in results)
    assert re.search(r"--out .* must be a folder that all machines share", "\n".join(errors_of(results)))

    evaluate = ["-m", "sashimi_evaluation.commands.evaluate"]
    options = ["--reference", folder / "digits", "--pattern", "{label}_{speaker}_{index}", "--resamples", 20]
    reports = []
    for name in ("one", "two"):
        report = tmp_path / f"{name}.json"
        given = [tmp_path / name, *options, "--json", report, "--device", "cpu"]
        if name == "one":
            agent = start(tmp_path, ["--standalone", "--nproc-per-node=1"], evaluate, given)
            _, err = agent.communicate(timeout=400)
            assert agent.returncode == 0, err
        else:
            results = two_machines(tmp_path, evaluate, *given)
            assert [code for code, _, _ in results] == [0, 0], results
        reports.append(json.loads(report.read_text())["sets"])
    assert len(reports[0]) == len(reports[1])
