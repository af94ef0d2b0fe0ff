"""Tests of what a run shows: the bar and its end, lines of errors, and terminals that nobody reads."""

import os
import sys

import pytest

from sashimi_diffusion.terminal import say, unfailing_output
from sashimi_diffusion.training.command import Recipe, run_recipe
from sashimi_diffusion.training.config import TrainingConfig
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.log import ProgressBar


@pytest.fixture
def unread(monkeypatch):
    """Replace stdout and stderr with pipes that nobody reads."""
    streams = []
    for name in ("stdout", "stderr"):
        reading, writing = os.pipe()
        os.close(reading)
        streams.append(os.fdopen(writing, "w"))
        monkeypatch.setattr(sys, name, streams[-1])
    yield
    for stream in streams:
        stream.close()


@pytest.mark.parametrize(("minutes", "total"), [(None, 1000), (5, 40)])
def test_the_end_of_the_bar(minutes, total):
    with ProgressBar(TrainingConfig(steps=1000, max_minutes=minutes), 9, shown=True) as bar:
        bar.advance(0.25)
        assert (bar._bar.n, bar._bar.total) == (10, total)


def test_a_bar_that_is_not_shown(capsys):
    with ProgressBar(TrainingConfig(max_minutes=5), 0, shown=False) as bar:
        bar.advance(0.5)
        bar.show_loss(1.0)
    assert capsys.readouterr().err == ""


def test_nobody_reads(unread):
    with unfailing_output(), ProgressBar(TrainingConfig(), 0, shown=True) as bar:
        for _ in range(3):
            bar.advance(0.1)
            say("text")


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (None, 1)])
def test_an_error_line_begins_a_line(tiny_file, tmp_path, monkeypatch, capsys, error, code):
    settings = ["training.steps=5", "optimizer.lr=1e38", "optimizer.warmup_steps=0", "training.validate_every=0"]
    if error is not None:

        def stop(*_):
            raise error

        monkeypatch.setattr(DiffusionTask, "save_samples", stop)
        settings = ["training.steps=2"]
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--config", str(tiny_file), *settings])
    assert run_recipe(Recipe(DiffusionTask, DiffusionConfig, tmp_path, "none"), "") == code
    err = capsys.readouterr().err
    assert "step/s" in err
    assert err.endswith("\n")
    assert err.splitlines()[-1].startswith(
        "error: " if code == 1 else "stopped; the same command with --resume continues"
    )
    assert err.split("\n")[-2] == err.splitlines()[-1]  # no carriage return before it


def test_the_first_line_says_when_the_run_ends(tiny_file, tmp_path, monkeypatch, capsys):
    arguments = ["--config", str(tiny_file), "training.max_minutes=1e-6", f"output_dir={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", ["recipe.py", *arguments])
    assert run_recipe(Recipe(DiffusionTask, DiffusionConfig, tmp_path, "none"), "") == 0
    out, err = capsys.readouterr()
    assert "1 x cpu; at most 1e-06 minutes; run folder" in out
    assert "1/1 " in err
