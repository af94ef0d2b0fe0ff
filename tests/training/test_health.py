"""Tests of diverged runs: good checkpoints stay, messages name them, files are strict JSON."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.strict_json import json_text
from sashimi_diffusion.training import loop, step
from sashimi_diffusion.training.checkpoints import list_checkpoints, save_checkpoint
from sashimi_diffusion.training.counters import EXPLODED, Counters
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.health import JUMPED, LARGEST_WEIGHT, RunEnded, usable
from sashimi_diffusion.training.loop import Trainer, train
from sashimi_diffusion.training.optimizer import watch_plateau

HUGE = ["optimizer.lr=1e38", "optimizer.warmup_steps=0", "optimizer.decay=constant"]


def refuse(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def strict_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=refuse) for line in (run / "metrics.jsonl").read_text().splitlines()]


def names(run: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run)]


def multiplied(monkeypatch, factors: dict[int, float]) -> None:
    """Multiply the losses of these steps (from 1), as often as they are computed."""
    original, complete = DiffusionTask.loss, DiffusionTask.complete
    now = []

    def noted(self, batch, number, *rest):
        now[:] = [number + 1]
        return complete(self, batch, number, *rest)

    monkeypatch.setattr(DiffusionTask, "complete", noted)
    monkeypatch.setattr(DiffusionTask, "loss", lambda *args: original(*args) * factors.get(now[0], 1.0))


@pytest.mark.parametrize("steps", [1, 5])
def test_a_run_that_diverges_at_once(tiny_config, tmp_path, steps):
    with pytest.raises(RunEnded, match=f"the run ended at step {steps} without a result, because .* start again in"):
        train(DiffusionTask, tiny_config(*HUGE, f"training.steps={steps}"))
    run = tmp_path / "run"
    assert names(run) == []
    assert not (run / "pipeline").exists()
    assert len([line for line in strict_lines(run) if "loss" in line]) == steps


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("lr", ["1e38", "1e6"])
def test_good_checkpoints_outlive_an_explosion(tiny_config, keep, lr):
    run = train(DiffusionTask, tiny_config(f"training.keep_checkpoints={keep}"))
    good = [*HUGE, "training.steps=40", "training.checkpoint_every=1", f"training.keep_checkpoints={keep}"]
    good += [f"optimizer.lr={lr}", "training.max_nonfinite=6", "optimizer.gradient_clip=null"]
    pipeline = (run / "pipeline/model/diffusion_pytorch_model.safetensors").read_bytes()
    with pytest.raises(RunEnded, match=r"--resume-from checkpoints/step-000008$"):
        train(DiffusionTask, tiny_config(*good), resume=True)
    assert "step-000008" in names(run)
    assert all(line for line in strict_lines(run))
    if lr == "1e38":
        assert (run / "pipeline/model/diffusion_pytorch_model.safetensors").read_bytes() == pipeline
    train(DiffusionTask, tiny_config("training.steps=10"), resume_from="checkpoints/step-000008")
    assert names(run)[-1] == "step-000010"
    model = SashimiPipeline.from_pretrained(run / "pipeline").model
    assert all(tensor.isfinite().all() for tensor in model.parameters())


def test_only_a_good_loss_after_it_removes_the_checkpoint_before(tiny_config, monkeypatch):
    """The run stops right after a checkpoint, before it is known whether its weights are good."""
    multiplied(monkeypatch, dict.fromkeys(range(5, 30), math.nan))
    settings = ["training.keep_checkpoints=1", "training.checkpoint_every=2", "training.max_nonfinite=3"]
    with pytest.raises(RunEnded, match=r"3 steps in a row .*--resume-from checkpoints/step-000002$"):
        train(DiffusionTask, tiny_config(*settings, "training.steps=30"))
    assert names(Path(tiny_config().output_dir)) == ["step-000002", "step-000004"]
    monkeypatch.undo()
    assert names(train(DiffusionTask, tiny_config(*settings, "training.steps=7"), resume=True)) == ["step-000007"]


def test_a_postponed_checkpoint_is_written_at_the_next_good_step(tiny_config, monkeypatch, capsys):
    multiplied(monkeypatch, {4: math.nan, 5: math.nan})
    run = train(DiffusionTask, tiny_config())
    assert names(run) == ["step-000006", "step-000008"]
    assert (run / "samples/step-000006").is_dir()
    assert capsys.readouterr().out.count("step 4: no checkpoint, because the last 1 step(s) were not finite; ") == 1


def test_a_last_step_that_is_not_finite(tiny_config, monkeypatch):
    multiplied(monkeypatch, {8: math.nan})
    with pytest.raises(
        RunEnded, match=r"the last 1 step\(s\) were not finite; .*--resume-from checkpoints/step-000004"
    ):
        train(DiffusionTask, tiny_config())
    assert names(Path(tiny_config().output_dir)) == ["step-000004"]


def test_a_loss_that_has_exploded(tiny_config, monkeypatch):
    """The history of the losses survives when a run resumes."""
    train(DiffusionTask, tiny_config())
    multiplied(monkeypatch, dict.fromkeys(range(10, 30), 1e5))
    with pytest.raises(RunEnded, match=rf"the loss is .* more than {EXPLODED} times its lowest .*step-000008$"):
        train(DiffusionTask, tiny_config("training.steps=16"), resume=True)
    assert names(Path(tiny_config().output_dir)) == ["step-000004", "step-000008"]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_loss_that_rises_too_slowly_to_explode_replaces_no_good_checkpoint(tiny_config, monkeypatch, keep):
    settings = ["training.checkpoint_every=1", f"training.keep_checkpoints={keep}", "training.validate_every=0"]
    train(DiffusionTask, tiny_config(*settings))
    multiplied(monkeypatch, {step: 30.0 * 2 ** (step - 10) for step in range(10, 14)})
    with pytest.raises(RunEnded, match=rf"the loss has jumped to .* more than {JUMPED} times .*step-000008$"):
        train(DiffusionTask, tiny_config(*settings, "training.steps=13"), resume=True)
    assert names(Path(tiny_config().output_dir)) == ["step-000008", "step-000009"]
    monkeypatch.undo()
    assert names(train(DiffusionTask, tiny_config("training.steps=12"), resume_from="step-000008"))[-1] == "step-000012"


def test_a_single_loss_that_jumps_postpones_a_checkpoint(tiny_config, monkeypatch):
    multiplied(monkeypatch, {4: 30.0, 8: 30.0})
    assert names(train(DiffusionTask, tiny_config())) == ["step-000005", "step-000008"]


def test_metrics_of_the_validation_that_are_not_finite(tiny_config, monkeypatch):
    monkeypatch.setattr(DiffusionTask, "validate", lambda *_: {"validation_loss": math.inf})
    with pytest.raises(RunEnded, match="because the metrics of the validation are not finite"):
        train(DiffusionTask, tiny_config())
    run = Path(tiny_config().output_dir)
    assert names(run) == []
    assert [line["validation_loss"] for line in strict_lines(run) if "validation_loss" in line] == [None, None]


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("value", [math.nan, -math.inf, 2 * LARGEST_WEIGHT])
def test_weights_that_are_not_usable(tiny_config, monkeypatch, averaged, value):
    trainer = Trainer(DiffusionTask, tiny_config(), False, None, False)
    model = trainer.ema.model if averaged else trainer.network
    assert usable(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = value
    assert not usable(model)
    assert ("averaged weights" in trainer.health.problem()) == averaged


def test_an_optimizer_that_is_not_finite(tiny_config):
    trainer = Trainer(DiffusionTask, tiny_config(), False, None, False)
    trainer.run()
    assert trainer.health.problem() == ""
    next(iter(trainer.optimizer.state.values()))["exp_avg_sq"].fill_(math.inf)  # AdamW would stop to learn, silently
    assert "in the optimizer are not finite" in trainer.health.problem()
    run = Path(trainer.config.output_dir)
    save_checkpoint(run, trainer.network, trainer.ema, trainer.optimizer, trainer.counters, keep=5)
    with pytest.raises(UserError, match=r"optimizer\.pt cannot be used: .* not finite.*--resume-from .*step-000004$"):
        train(DiffusionTask, tiny_config("training.steps=10"), resume=True)


def test_the_weights_are_examined_at_checkpoints_only(tiny_config, monkeypatch):
    trainer = Trainer(DiffusionTask, tiny_config(), False, None, False)
    examined, original = [], trainer.health.problem
    monkeypatch.setattr(trainer.health, "problem", lambda end: examined.append(trainer.counters.step) or original(end))
    trainer.run()
    assert examined == [4, 8]


def test_the_step_of_a_device_postpones_checkpoints_as_well(tiny_config, monkeypatch):
    monkeypatch.setattr(loop, "decides_on_device", lambda *_: True)
    monkeypatch.setattr(step, "record_cuda_graph", lambda compute: compute)
    multiplied(monkeypatch, {4: math.nan})
    run = train(DiffusionTask, tiny_config("training.log_every=3", "training.steps=9"))
    assert names(run) == ["step-000008", "step-000009"]
    assert (run / "samples/step-000006").is_dir()  # the postponed checkpoint


def test_counting_losses():
    counters = Counters()
    for loss in (1.0, 0.5, 0.5):
        assert counters.count(loss, 1.0)
    assert (counters.loss_first, counters.loss_lowest) == (1.0, counters.loss_average)
    assert not counters.count(math.nan, 1.0)
    assert not counters.count(0.5, math.inf)
    assert (counters.nonfinite_in_row, counters.nonfinite_total, counters.loss_count) == (2, 2, 3)
    for _ in range(200):
        counters.count(1e-7, 1.0)
    for _ in range(200):
        counters.count(0.9, 1.0)  # far above the lowest loss, and yet no explosion: the run began there
    assert not counters.exploded
    for _ in range(200):
        counters.count(1.1, 1.0)
    assert counters.exploded


def test_a_validation_that_is_not_finite_is_no_improvement(tiny_config):
    config, counters = tiny_config("optimizer.decay=plateau").optimizer, Counters()
    for loss, lowest, count in [(math.nan, None, 1), (2.0, 2.0, 0), (math.inf, 2.0, 1), (1.0, 1.0, 0)]:
        watch_plateau(counters, loss, config)
        assert (counters.plateau_loss, counters.plateau_validations) == (lowest, count)


def test_numbers_that_json_does_not_have():
    value = {"a": [math.nan, 1.5, (math.inf,)], "b": {"c": -math.inf, "d": None, "e": "NaN"}}
    assert json.loads(json_text(value), parse_constant=refuse) == {
        "a": [None, 1.5, [None]],
        "b": {"c": None, "d": None, "e": "NaN"},
    }
