"""Runs that are killed, started twice in one folder, or left alone by their launcher or by another process."""

import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sashimi_diffusion.training.checkpoints import find_checkpoint, list_checkpoints
from tests.conftest import count_lines
from tests.faults.forked_runs import RECIPES, Child, two_processes, wait_for, write_configs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork processes")

LONG = ["training.steps=1000000", "training.checkpoint_every=1000000", "training.validate_every=0"]
LONG += ["training.log_every=2", "optimizer.decay=constant"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with recordings and configs."""
    folder = tmp_path_factory.mktemp("runs")
    write_configs(folder)
    return folder


def lines(run: Path) -> int:
    return count_lines(run / "metrics.jsonl")


def sampling(recipe: str) -> list[str]:
    return [] if recipe == "classifier" else ["sampling.num_samples=1", "training.sample_every=40"]


@pytest.mark.parametrize(
    ("recipe", "kills"),
    [("diffusion", 3), *(pytest.param(recipe, 50, marks=pytest.mark.slow) for recipe in RECIPES)],
)
def test_killed_runs_lose_nothing(
    folder: Path, tmp_path: Path, assert_same_run: Callable[[Path, Path], None], recipe: str, kills: int
) -> None:
    settings = [f"training.steps={20 if kills < 10 else 300}", "training.checkpoint_every=5", *sampling(recipe)]
    settings += [f"training.validate_every={10 if kills < 10 else 50}"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    child = Child(folder, recipe, *settings, f"output_dir={whole}")
    assert child.wait() == 0, child.err
    moments, killed_at = random.Random(kills), []
    for _ in range(kills):
        enough = lines(killed) + moments.randint(0, 10)
        child = Child(folder, recipe, "--resume", *settings, f"output_dir={killed}")
        wait_for(lambda enough=enough: lines(killed) >= enough, child)
        time.sleep(moments.uniform(0, 0.05))
        if child.kill() == -signal.SIGKILL:
            killed_at.append(lines(killed))
        if list_checkpoints(killed):
            find_checkpoint(killed)  # the newest is undamaged
    assert len(killed_at) >= kills / 2
    child = Child(folder, recipe, "--resume", *settings, f"output_dir={killed}")
    assert child.wait() == 0, child.err
    assert_same_run(killed, whole)
    assert not (killed / ".lock").exists()


def test_two_runs_in_one_folder(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = Child(folder, "diffusion", *LONG, f"output_dir={run}")
    wait_for(lambda: lines(run) >= 3, first)
    expected = rf"error: {re.escape(str(run))} is in use by process {first.process} on \S+ since .* UTC: wait, stop it"
    for options in ([], ["--resume"]):
        second = Child(folder, "diffusion", *options, *LONG, f"output_dir={run}")
        assert second.wait() == 2
        assert re.match(expected, second.err)
        assert second.err.count("\n") == 1
    several = two_processes(folder, "diffusion", "--resume", *LONG, f"output_dir={run}", "training.batch_size=2")
    assert [child.wait() for child in several] == [2, 2]
    assert re.match(expected, several[0].err)
    assert several[1].err == ""
    before = lines(run)
    wait_for(lambda: lines(run) > before, first)
    assert first.kill() == -signal.SIGKILL
    last = Child(folder, "diffusion", "--resume", f"output_dir={run}", "training.steps=2", "optimizer.decay=constant")
    assert last.wait() == 0, last.err
    assert "starting from the beginning" in last.out


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_many_runs_that_start_at_once(
    folder: Path, tmp_path: Path, assert_same_run: Callable[[Path, Path], None], recipe: str
) -> None:
    steps = 100 if recipe == "classifier" else 600  # enough for all processes to start before the first one ends
    settings = [f"training.steps={steps}", "training.checkpoint_every=20", "training.validate_every=0"]
    if recipe != "classifier":
        settings.append("sampling.num_samples=0")
    whole, contested = tmp_path / "whole", tmp_path / "contested"
    assert Child(folder, recipe, *settings, f"output_dir={whole}").wait() == 0
    children = [Child(folder, recipe, "--resume", *settings, f"output_dir={contested}") for _ in range(6)]
    codes = [child.wait() for child in children]
    assert sorted(codes) == [0, 2, 2, 2, 2, 2]
    assert all("is in use by process" in child.err for child, code in zip(children, codes, strict=True) if code)
    assert_same_run(contested, whole)


def test_bad_data_end_all_processes(folder: Path, tmp_path: Path) -> None:
    """The main process finds the problem; the others do not wait for it forever."""
    arguments = [f"output_dir={tmp_path / 'run'}", "data.path=/nowhere", "training.batch_size=2"]
    children = two_processes(folder, "diffusion", *arguments)
    assert [child.wait() for child in children] == [2, 2]
    assert "/nowhere does not exist" in children[0].err
    assert children[0].err.count("\n") == 1
    assert children[1].err == ""
    assert not (tmp_path / "run").exists()


def test_a_dead_launcher(folder: Path, tmp_path: Path) -> None:
    """The run goes on from the checkpoint that it wrote."""
    run, result = tmp_path / "run", tmp_path / "result"
    launcher = os.fork()
    if launcher == 0:
        child = Child(folder, "diffusion", *LONG, f"output_dir={run}", ACCELERATE_DYNAMO_MODE="default")
        result.with_suffix(".new").write_text(f"{child.process} {child.output}")
        result.with_suffix(".new").rename(result)
        signal.alarm(200)
        signal.pause()
    wait_for(lambda: lines(run) >= 3)
    process, output = result.read_text().split()
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    wait_for(lambda: not (run / ".lock").exists())
    (checkpoint,) = list_checkpoints(run)
    step = int(checkpoint.name.removeprefix("step-"))
    expected = f"error: the program that started this run (process {launcher}) has ended: stopped at step {step}; "
    wait_for(lambda: expected in Path(f"{output}.err").read_text())
    wait_for(lambda: not Path(f"/proc/{process}").exists() or not Path("/proc").is_dir())
    last = Child(folder, "diffusion", "--resume", *LONG, f"training.steps={step + 1}", f"output_dir={run}")
    assert last.wait() == 0, last.err
    assert f"resumed from {checkpoint}" in last.out


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_dead_worker(folder: Path, tmp_path: Path, victim: int) -> None:
    run = tmp_path / "run"
    children = two_processes(folder, "diffusion", *LONG, f"output_dir={run}", "training.batch_size=2")
    wait_for(lambda: lines(run) >= 3, children[victim])
    assert children[victim].kill() == -signal.SIGKILL
    survivor = children[1 - victim]
    assert survivor.wait() == 1
    lines_of_errors = filter(None, survivor.err.splitlines())  # a progress bar leaves an empty line
    errors = [line for line in lines_of_errors if not line.startswith("warning: 2 steps are too few")]
    assert errors == [
        "error: another process of this run has ended; if it printed no error, it was killed; there is no checkpoint "
        "yet, so the same command with --resume starts from the beginning"
    ]


@pytest.mark.parametrize("checkpoints", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_interruption_promises_only_what_there_is(folder: Path, tmp_path: Path, checkpoints: bool) -> None:
    run = tmp_path / "run"
    settings = [*LONG, "training.checkpoint_every=1"] if checkpoints else LONG
    child = Child(folder, "diffusion", *settings, "sampling.num_samples=0", f"output_dir={run}")
    wait_for(lambda: lines(run) >= 3, child)
    os.kill(child.process, signal.SIGINT)
    assert child.wait() == 130
    end = child.err.strip().splitlines()[-1]
    if checkpoints:
        assert end.startswith(f"stopped; the same command with --resume continues from {run / 'checkpoints'}")
        assert (run / "pipeline").is_dir()
    else:
        assert end == "stopped; there is no checkpoint yet, so the same command with --resume starts from the beginning"
        assert not (run / "pipeline").exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["launcher", "worker"])
def test_torchrun(recipe_script: Callable, folder: Path, tmp_path: Path, victim: str) -> None:
    run = tmp_path / "run"
    script = recipe_script("train_diffwave_sashimi.py")
    arguments = ["--config", folder / "diffusion.yaml", *LONG, "training.batch_size=2", f"output_dir={run}"]
    launcher = script.start(*arguments, launcher=script.TORCHRUN)
    wait_for(lambda: lines(run) >= 3)
    found = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(launcher.pid if victim == "launcher" else int(found[-1]), signal.SIGKILL)
    _, err = launcher.communicate(timeout=120)  # it ends when the workers have closed the pipes
    assert err.count("error: the program that started this run") == (victim == "launcher")
    assert "gloo" not in err
    assert len(list_checkpoints(run)) == (victim == "launcher")
