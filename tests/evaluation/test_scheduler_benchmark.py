"""Tests of the measurement of all samplers."""

import json
from pathlib import Path

import diffusers
import pytest

from sashimi_diffusion import SashimiPipeline
from sashimi_diffusion.models import WaveNetDenoiser
from sashimi_diffusion.schedulers import SCHEDULERS, DiffWaveScheduler, fitting_schedulers
from sashimi_evaluation import scheduler_benchmark


def test_the_samplers_are_those_that_fit_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    sizes = {"residual_channels": 4, "skip_channels": 4, "n_layers": 2, "embedding_sines": 4, "embedding_hidden": 4}
    model = WaveNetDenoiser(objective="flow", sample_rate=100, sample_size=50, embedding_dim=4, **sizes)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=20)
    SashimiPipeline(model, scheduler).save_pretrained(tmp_path / "pipeline")
    out = tmp_path / "numbers.json"
    options = f"--pipeline {tmp_path / 'pipeline'} --steps 2,3 --clips 2 --out {out} --device cpu"
    monkeypatch.setattr("sys.argv", ["scheduler_benchmark", *options.split()])
    assert scheduler_benchmark.main() == 0
    rows = [(row["scheduler"], row["steps"], row["refused"]) for row in json.loads(out.read_text())["rows"]]
    assert rows == [(name, steps, None) for steps in (2, 3) for name in ("flow-euler", "flow-heun")]
    assert "| `flow-heun` |" in capsys.readouterr().out
    assert list(fitting_schedulers(DiffWaveScheduler().config)) == list(SCHEDULERS)
