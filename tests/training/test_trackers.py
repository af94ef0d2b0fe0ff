"""Tests of trackers without a network: names, values, samples, resumed runs, and how they end."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.config import from_tree
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import Trainer, train
from sashimi_diffusion.training.reporting import TrackingConfig
from sashimi_diffusion.training.trackers import TrackedRun, tracked_run
from tests.conftest import count_lines

NEEDED = "needs the tracker {}, which is not installed"
SIX = ["training.steps=6", "training.checkpoint_every=4", "training.validate_every=0", "optimizer.decay=constant"]


@pytest.fixture
def trackio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return trackio, which stores its projects in ``tmp_path``."""
    module = pytest.importorskip("trackio", reason=NEEDED.format("trackio"))
    for name in [name for name in sys.modules if name.startswith("trackio")]:
        for constant, place in (("TRACKIO_DIR", "trackio"), ("MEDIA_DIR", "trackio/media")):
            if hasattr(sys.modules[name], constant):
                monkeypatch.setattr(f"{name}.{constant}", tmp_path / place)
    for name in ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return wandb, which is offline."""
    module = pytest.importorskip("wandb", reason=NEEDED.format("wandb"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_DIR", raising=False)
    yield module
    module.teardown()


def stopped_at(config: DiffusionConfig, step: int) -> None:
    """Train, and interrupt the run after ``step`` steps."""
    trainer = Trainer(DiffusionTask, config, False, None, False)
    original = trainer._step

    def interrupted(progress: float) -> float:
        if trainer.counters.step == step:
            raise KeyboardInterrupt
        return original(progress)

    trainer._step = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.run()


def test_tensorboard_has_samples_and_drops_later_steps(tiny_config: Callable, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason=NEEDED.format("tensorboard"))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = [*SIX, "training.trackers=[tensorboard]"]
    stopped_at(tiny_config(*settings), 5)
    train(DiffusionTask, tiny_config(*settings, "optimizer.lr=1e-4"), resume=True)
    folder = tmp_path / "run" / "tensorboard"
    assert len([path for path in folder.iterdir() if path.is_dir()]) == 2  # the settings, stored once in two forms
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 7))
    assert [round(event.value, 6) for event in events.Scalars("learning_rate")] == [1e-3, *[2e-3] * 3, *[1e-4] * 2]
    assert events.Tags()["audio"] == ["samples/00-0", "samples/01-1"]
    assert [event.step for event in events.Audio("samples/00-0")] == [4, 6]
    assert events.Audio("samples/00-0")[0].sample_rate == 8000
    assert [event.step for event in events.Images("samples/contact_sheet")] == [4, 6]


def test_a_resumed_run_goes_on_in_the_same_run_of_trackio(tiny_config: Callable, trackio: Any) -> None:
    settings = [*SIX, "training.trackers=[trackio]", "tracking.project=drums", "tracking.run=first"]
    before = threading.active_count()
    stopped_at(tiny_config(*settings), 5)
    assert trackio.context_vars.current_run.get() is None
    train(DiffusionTask, tiny_config(*settings), resume=True)
    train(DiffusionTask, tiny_config(*settings, "training.steps=8"), resume=True)
    assert not [thread for thread in threading.enumerate() if "trackio" in repr(getattr(thread, "_target", ""))]
    assert threading.active_count() <= before + 1  # the monitor of tqdm
    storage = trackio.SQLiteStorage
    assert storage.get_runs("drums") == ["first"]
    logs = storage.get_logs("drums", "first")
    assert [entry["step"] for entry in logs if "loss" in entry] == list(range(1, 9))
    assert [entry["step"] for entry in logs if "samples/contact_sheet" in entry] == [4, 6, 8]
    sounds = [entry["samples/00-0"] for entry in logs if "samples/00-0" in entry]
    assert {sound["_type"] for sound in sounds} == {"trackio.audio"}
    assert storage.get_run_config("drums", "first")["optimizer.lr"] == 2e-3


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_wandb_offline_goes_on_under_the_same_id(
    tiny_config: Callable, tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch, real: bool
) -> None:
    calls, logged, ended = [], [], []
    original = wandb.init
    if not real:
        monkeypatch.setattr(wandb, "config", SimpleNamespace(update=lambda values, allow_val_change: None))

    def init(**options: Any) -> Any:
        calls.append(options)
        run = original(**options) if real else SimpleNamespace(log=None, finish=lambda: ended.append(options["id"]))
        monkeypatch.setattr(run, "log", lambda values, step: logged.append((step, sorted(values))))
        return run

    monkeypatch.setattr(wandb, "init", init)
    settings = [*SIX, "training.trackers=[wandb]"]
    stopped_at(tiny_config(*settings), 5)
    assert wandb.run is None  # it has ended
    train(DiffusionTask, tiny_config(*settings), resume=True)
    identifier = json.loads((tmp_path / "run" / "tracking.json").read_text())["id"]
    assert [(call["project"], call["name"], call["id"], call["resume"]) for call in calls] == [
        ("sashimi-diffusion", "run", identifier, "allow")
    ] * 2
    names = [path.name for path in (tmp_path / "run" / "wandb").glob("offline-run-*")]
    assert len(names if real else ended) == 2
    assert all(name.endswith(identifier) for name in names + ended)
    # Step 5 is not sent again.
    assert [step for step, values in logged if "loss" in values] == [1, 2, 3, 4, 5, 6]
    assert [step for step, values in logged if "samples" in values] == [4, 6]


@pytest.mark.slow
def test_an_interrupted_run_leaves_no_process_behind(
    tiny_file: Path, tmp_path: Path, recipe_script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wandb", "trackio", "tensorboard"):
        pytest.importorskip(name, reason=NEEDED.format(name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    settings = ["training.steps=1000000", "training.validate_every=0", "training.trackers=[tensorboard,wandb,trackio]"]
    settings += ["training.sample_every=0", "training.checkpoint_every=1000000", "training.log_every=20"]
    script = recipe_script("train_diffwave_sashimi.py")
    process = script.start("--config", tiny_file, *settings)
    deadline = time.monotonic() + 120
    while count_lines(tmp_path / "run" / "metrics.jsonl") < 20:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("wandb" in child.name() for child in children)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_other_names_begin_another_run(tmp_path: Path) -> None:
    run, new = tracked_run(tmp_path, TrackingConfig(), resume=False)
    assert new
    assert (run.project, run.run) == ("sashimi-diffusion", tmp_path.name)
    stored = json.dumps({"project": "sashimi-diffusion", "run": "before it was moved", "id": "7"})
    (tmp_path / "tracking.json").write_text(stored)
    assert tracked_run(tmp_path, TrackingConfig(), resume=True) == (
        TrackedRun("sashimi-diffusion", "before it was moved", "7"),
        False,
    )
    for config, resume in ((TrackingConfig(run="new"), True), (TrackingConfig(project="p"), True)):
        run, new = tracked_run(tmp_path, config, resume)
        assert new
        assert run.id != "7"
    assert tracked_run(tmp_path, TrackingConfig(), resume=False)[1]
    (tmp_path / "tracking.json").write_text("[1]")
    with pytest.raises(UserError, match=r"tracking\.json is damaged: .*remove it to begin a new run in the trackers"):
        tracked_run(tmp_path, TrackingConfig(), resume=True)


def test_a_tracker_that_cannot_start_is_named(tiny_config: Callable, wandb: Any, monkeypatch: Any) -> None:
    def fail(**_: Any) -> None:
        raise ValueError("no\napi key")

    monkeypatch.setattr(wandb, "init", fail)
    with pytest.raises(UserError, match=r"the tracker wandb cannot be started: no; .*WANDB_MODE=offline"):
        train(DiffusionTask, tiny_config("training.trackers=[wandb]"))


def test_a_config_without_the_new_groups_loads(tiny: Callable) -> None:
    tree = tiny("training.trackers=[tensorboard]")
    assert not {"tracking", "card"} & set(tree)
    config = from_tree(DiffusionConfig, tree)
    assert (config.training.trackers, config.tracking.project) == (["tensorboard"], "sashimi-diffusion")
