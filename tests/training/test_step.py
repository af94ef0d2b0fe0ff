"""Tests of the step that decides on the device: equal to the eager step, recorded, repeated, without a wait.

There is no CUDA graph on a CPU: the recorders of these tests call the function again, or repeat its PyTorch operations
on the same memory.
"""

import json
import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SashimiDenoiser
from sashimi_diffusion.training import checkpoints, loop, step
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.ema import Ema
from sashimi_diffusion.training.feed import Feed
from sashimi_diffusion.training.loop import Trainer, train
from sashimi_diffusion.training.optimizer import create_optimizer, set_learning_rate
from sashimi_diffusion.training.step import WARM_UP, DeviceStep, EagerStep, Parts, create_step, decides_on_device
from tests.recorded_operations import Operations

UNCONDITIONAL = "model.class_conditional=false"  # on a CPU, the network reads the values of labels to check them


def record_operations(compute: Callable[[], None]) -> Callable[[], None]:
    """Record a step; unlike a CUDA graph this runs the step, so the first repetition does nothing."""
    operations = Operations()
    with operations:
        compute()
    repetitions = iter([lambda: None])
    return lambda: next(repetitions, operations.repeat)()


@pytest.fixture
def on_device(monkeypatch):
    """Return a function that makes runs on the CPU use the step of a GPU, with the given recorder."""

    def use(record: Callable = lambda compute: compute) -> list[Callable]:
        recorded: list[Callable] = []

        def noted(compute: Callable) -> Callable:
            recorded.append(compute)
            return torch.no_grad()(record(compute)) if record is record_operations else record(compute)

        monkeypatch.setattr(loop, "decides_on_device", lambda *_: True)
        monkeypatch.setattr(step, "record_cuda_graph", noted)
        return recorded

    return use


def broken(monkeypatch, *steps: int) -> None:
    """Make the recordings of these steps NaN."""
    original = DiffusionTask.complete

    def complete(self, batch, number, *rest):
        batch = original(self, batch, number, *rest)
        if number in steps:
            batch.waveform = batch.waveform * math.nan
        return batch

    monkeypatch.setattr(DiffusionTask, "complete", complete)


def lines(run) -> list[dict]:
    text = (run / "metrics.jsonl").read_text()
    return [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in text.splitlines()]


def state(run, name: str) -> dict[str, Tensor]:
    return checkpoints.safetensors.torch.load_file(run / f"checkpoints/step-000012/{name}.safetensors")


SETTINGS = [
    *("training.steps=12", "training.log_every=3", "training.checkpoint_every=6", "training.validate_every=6"),
    *("optimizer.gradient_clip=0.02", "optimizer.weight_decay=0.1", "sampling.num_samples=0", "training.ema_decay=0.4"),
]


def assert_same_runs(one, other) -> None:
    for mine, theirs in zip(lines(one), lines(other), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-7)
    for name in ("model", "ema"):
        torch.testing.assert_close(state(one, name), state(other, name), rtol=1e-3, atol=1e-6)
    counters = [json.loads((run / "checkpoints/step-000012/counters.json").read_text()) for run in (one, other)]
    for counted in counters:
        del counted["seconds"], counted["data"], counted["metrics"]
        assert counted.pop("plateau_loss") is None
    assert counters[0] == pytest.approx(counters[1], rel=1e-4)
    stored = [torch.load(run / "checkpoints/step-000012/optimizer.pt", weights_only=True) for run in (one, other)]
    for my_part, their_part in zip(*(optimizer.get("parts", [optimizer]) for optimizer in stored), strict=True):
        for mine, theirs in zip(my_part["param_groups"], their_part["param_groups"], strict=True):
            assert isinstance(mine["lr"], float)
            assert mine["lr"] == pytest.approx(theirs["lr"], rel=1e-6)
        torch.testing.assert_close(my_part["state"], their_part["state"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("record", "overrides"),
    [
        (lambda compute: compute, []),
        (lambda compute: compute, ["training.batch_size=2", "training.gradient_accumulation=2"]),
        (record_operations, [UNCONDITIONAL]),
        (lambda compute: compute, ["optimizer.name=muon"]),
        (record_operations, [UNCONDITIONAL, "optimizer.name=muon"]),
        (record_operations, [UNCONDITIONAL, "training.batch_size=2", "training.gradient_accumulation=2"]),
    ],
    ids=["repeated", "repeated-accumulation", "recorded", "repeated-muon", "recorded-muon", "recorded-accumulation"],
)
def test_a_run_equals_the_eager_run(tiny_config, on_device, monkeypatch, tmp_path, record, overrides):
    """Schedule, clipping, weight decay, average; steps that are not finite before and after the recording."""
    broken(monkeypatch, 1, 6, 7)
    eager = train(DiffusionTask, tiny_config(*SETTINGS, *overrides, f"output_dir={tmp_path / 'eager'}"))
    recorded = on_device(record)
    run = train(DiffusionTask, tiny_config(*SETTINGS, *overrides))
    assert len(recorded) == 1
    assert_same_runs(run, eager)
    assert lines(run)[-2]["nonfinite_steps"] == 3
    assert any((line.get("gradient_norm") or 0) > 0.03 for line in lines(run))  # clipped


def test_a_resumed_run_is_the_same_run(tiny_config, on_device, monkeypatch, tmp_path):
    broken(monkeypatch, 4, 8)  # a step before the checkpoint, and one after it
    on_device()
    whole = train(DiffusionTask, tiny_config(*SETTINGS, f"output_dir={tmp_path / 'whole'}"))
    first = Trainer(DiffusionTask, tiny_config(*SETTINGS), False, None, False)
    original = first._step
    first._step = lambda progress: (
        original(progress) if first.counters.step < 8 else (_ for _ in ()).throw(InterruptedError)
    )
    with pytest.raises(InterruptedError):
        first.run()
    resumed = train(DiffusionTask, tiny_config(*SETTINGS), resume=True)
    assert lines(resumed) == lines(whole)
    for name in ("model", "ema"):
        path = f"checkpoints/step-000012/{name}.safetensors"
        assert (resumed / path).read_bytes() == (whole / path).read_bytes()


def test_a_run_continues_on_another_kind_of_device(tiny_config, on_device, monkeypatch, tmp_path):
    eager = train(DiffusionTask, tiny_config(*SETTINGS, f"output_dir={tmp_path / 'eager'}"))
    recorded = on_device()
    run = train(DiffusionTask, tiny_config(*SETTINGS))
    monkeypatch.undo()
    train(DiffusionTask, tiny_config(*SETTINGS), resume_from="step-000006")
    assert_same_runs(run, eager)
    on_device()
    train(DiffusionTask, tiny_config(*SETTINGS), resume_from="step-000006")
    assert_same_runs(run, eager)
    assert len(recorded) == 1


def test_results_are_read_when_they_are_logged(tiny_config, on_device, monkeypatch):
    on_device()
    read, original = [], DeviceStep.read
    monkeypatch.setattr(DeviceStep, "read", lambda self: read.append(original(self)) or read[-1])
    train(DiffusionTask, tiny_config("training.log_every=3", "training.checkpoint_every=4"))
    assert [len(results) for results in read] == [3, 1, 2, 2, 0]


@pytest.mark.parametrize("last_finite", [False, True])
def test_too_many_steps_that_are_not_finite_stop_the_run(tiny_config, on_device, monkeypatch, last_finite):
    """The run stops when the results are read; weights and average have not changed since the limit."""
    on_device()
    broken(monkeypatch, *range(4, 6 if last_finite else 100))
    trainer = Trainer(
        DiffusionTask, tiny_config("training.max_nonfinite=2", "training.log_every=8"), False, None, False
    )
    weights = []
    original = trainer._step

    def noted(progress):
        rate = original(progress)
        weights.append([p.detach().clone() for p in [*trainer.network.parameters(), *trainer.ema.model.parameters()]])
        return rate

    trainer._step = noted
    with pytest.raises(UserError, match=r"2 steps in a row were not finite: .*; resume with a lower optimizer\.lr"):
        trainer.run()
    assert len(weights) == 8
    assert all(torch.equal(a, b) for a, b in zip(weights[3], weights[-1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights[2], weights[3], strict=True))


def test_a_lower_limit_of_a_resumed_run_does_not_stop_it(tiny_config):
    parts = Trainer(DiffusionTask, tiny_config("training.max_nonfinite=2"), False, None, False).step.parts
    assert DeviceStep(parts, 5, None)._nonfinite_in_row == 1


def fused_adamw_of_meta_tensors(self, *args, **kwargs):
    return None


def test_a_step_needs_no_value_on_the_host(tiny_config, monkeypatch):
    """On the meta device, tensors have shapes but no values."""
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_, **__: None)
    config = tiny_config("objective.min_snr_gamma=5", "data.speakers=speaker")
    task = DiffusionTask(config, torch.device("meta"), False)
    optimizer = create_optimizer(task.network, config.optimizer, on_device=True)
    for group in optimizer.param_groups:
        group["fused"] = True
    accelerator: Any = SimpleNamespace(backward=Tensor.backward, reduce=lambda tensor, _: tensor)
    feed = Feed(task, [range(4)], 4, torch.device("meta"))
    parts = Parts(accelerator, task, task.module, optimizer, Ema(task.network, 0.9), feed, config)
    steps = DeviceStep(parts, 0, None)
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("_fused_adamw_.tensor_lr", fused_adamw_of_meta_tensors, "Meta")
        set_learning_rate(optimizer, 0.5)
        steps.run(0)
    finally:
        library._destroy()
    assert all(parameter.grad.is_meta for parameter in task.network.parameters() if parameter.grad is not None)
    assert steps._batches[0].waveform.is_meta


def test_the_average_moves_only_where_a_step_is_usable():
    torch.manual_seed(0)
    model = SashimiDenoiser(d_model=8, n_layers=1, pool=(4,), n_state=4, embedding_hidden=16, embedding_dim=16)
    expected, average = Ema(model, 0.7), Ema(model, 0.7)
    for number in range(12):
        usable = number % 3 != 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        if usable:
            expected.update(model)
        versions = [parameter._version for parameter in average.model.parameters()]
        average.update_where(torch.tensor(usable), model)
        assert all(p._version > v for p, v in zip(average.model.parameters(), versions, strict=True))
    assert average.updates == expected.updates == 8
    torch.testing.assert_close(average.model.state_dict(), expected.model.state_dict(), rtol=1e-5, atol=1e-6)


def test_learning_rates_in_tensors_are_saved_as_numbers(tiny_config):
    config = tiny_config()
    network = torch.nn.Linear(2, 2)
    optimizer = create_optimizer(network, config.optimizer, on_device=True)
    tensors = [group["lr"] for group in optimizer.param_groups]
    assert set_learning_rate(optimizer, 0.25) == 0.25 * config.optimizer.lr
    assert all(group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors, strict=True))
    assert [float(tensor) for tensor in tensors] == pytest.approx([0.25 * config.optimizer.lr] * len(tensors))
    assert all(isinstance(group["lr"], float) for group in optimizer.state_dict()["param_groups"])


def make_parts(config, device: str = "cuda", processes: int = 1, against_graph: str = "") -> Parts:
    accelerator: Any = SimpleNamespace(num_processes=processes, is_main_process=True)
    task: Any = SimpleNamespace(against_graph=against_graph)
    nothing: Any = None
    feed = Feed(task, [], 0, torch.device(device))
    return Parts(accelerator, task, nothing, nothing, nothing, feed, config)


@pytest.mark.parametrize(
    ("overrides", "options", "reason"),
    [
        (["optimizer.name=sgd"], {}, "optimizer.name is sgd, not adamw or muon"),
        ([], {"against_graph": "data.carry_chunks carries states from step to step"}, "data.carry_chunks carries "),
        ([], {"device": "cpu"}, "the device is cpu, not cuda"),
        ([], {"device": "cpu", "processes": 2, "on_device": True}, "there are 2 processes"),
        (["training.gradient_checkpointing=true"], {"device": "cpu", "on_device": True}, "gradient_checkpointing is"),
    ],
)
def test_reasons_against_a_graph(tiny_config, capsys, overrides, options, reason):
    """They are printed once if a graph was possible on the device, and an error if it was required."""
    config = tiny_config(*overrides)
    on_device = options.pop("on_device", False)
    parts = make_parts(config, **options)
    assert not decides_on_device(config, parts.task, parts.feed.device)
    steps = create_step(parts, on_device, 0)
    assert isinstance(steps, DeviceStep if on_device else EagerStep)
    assert getattr(steps, "record", None) is None
    printed = capsys.readouterr().out.splitlines()
    if parts.feed.device.type == "cuda":
        assert len(printed) == 1
        assert reason in printed[0]
    else:
        assert not printed
    parts.config = tiny_config(*overrides, "training.cuda_graph=true")
    with pytest.raises(UserError, match=f"training.cuda_graph is true, but .*{reason}.*: set auto or false"):
        create_step(parts, on_device, 0)


def test_a_graph_is_the_default_on_cuda(tiny_config, capsys):
    parts = make_parts(tiny_config())
    assert decides_on_device(parts.config, parts.task, parts.feed.device)
    parts.feed.device = torch.device("cpu")
    assert create_step(parts, True, 0).record is step.record_cuda_graph
    parts.config = tiny_config("training.cuda_graph=false")
    assert create_step(parts, True, 0).record is None
    assert not capsys.readouterr().out


def test_a_recording_that_fails(tiny_config, on_device, capsys, tmp_path):
    """It is reported once and every step runs in Python; if a graph is required, it is an error."""

    def fail(compute):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    eager = train(DiffusionTask, tiny_config(*SETTINGS, f"output_dir={tmp_path / 'eager'}"))
    recorded = on_device(fail)
    run = train(DiffusionTask, tiny_config(*SETTINGS))
    assert len(recorded) == 1
    assert capsys.readouterr().out.count("cannot be recorded: operation not permitted when stream is capturing\n") == 1
    assert_same_runs(run, eager)
    required = tiny_config(*SETTINGS, "training.cuda_graph=true", f"output_dir={tmp_path / 'required'}")
    trainer = Trainer(DiffusionTask, required, False, None, False)
    with pytest.raises(UserError, match="cuda_graph is true, but the step cannot be recorded: operation not permitted"):
        trainer.run()
    assert trainer.counters.step == WARM_UP
