"""Tests of batches that threads prepare ahead: equal to direct ones, errors reach the caller, the threads end."""

import dataclasses
import functools
import sys
import threading
import time

import pytest
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training import checkpoints, loop
from sashimi_diffusion.training.command import Recipe, run_recipe
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.examples import ShuffledEpochs
from sashimi_diffusion.training.feed import Feed
from sashimi_diffusion.training.loop import train


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


@pytest.fixture
def prefetched(monkeypatch):
    """Make all runs prepare their batches in threads, also on a CPU."""
    monkeypatch.setattr(loop, "Feed", functools.partial(Feed, steps_ahead=3))


def test_prefetched_batches_equal_direct_ones(tiny_config):
    task = DiffusionTask(tiny_config("data.speakers=speaker"), torch.device("cpu"), False)
    parts = [range(0, 2), range(2, 4)]
    direct, ahead = (Feed(task, parts, 8, torch.device("cpu"), steps_ahead=n) for n in (0, 3))
    for step in [*range(6), 2, 3, 11]:  # in the order of a run, and after a jump
        for one, other in zip(direct.batches(step), ahead.batches(step), strict=True):
            for field in dataclasses.fields(one):
                mine, theirs = getattr(one, field.name), getattr(other, field.name)
                assert mine is theirs is None or torch.equal(mine, theirs), field.name
    assert threads()
    ahead.close()
    assert not threads()


def test_batches_are_prepared_before_they_are_needed(tiny_config):
    task = DiffusionTask(tiny_config(), torch.device("cpu"), False)
    prepared, original = [], task.batch
    task.batch = lambda step, *rest: prepared.append(step) or original(step, *rest)
    feed = Feed(task, [range(4)], 4, torch.device("cpu"), steps_ahead=2)
    list(feed.batches(0))
    deadline = time.monotonic() + 10
    while len(prepared) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(prepared) == [0, 1, 2]
    list(feed.batches(1))
    feed.close()
    assert set(prepared) <= {0, 1, 2, 3}


def test_a_run_with_threads_is_the_same_run(tiny_config, tmp_path, prefetched, monkeypatch):
    run = train(DiffusionTask, tiny_config())
    assert not threads()
    monkeypatch.undo()
    expected = train(DiffusionTask, tiny_config(f"output_dir={tmp_path / 'direct'}"))
    for path in checkpoints.list_checkpoints(expected):
        name = f"checkpoints/{path.name}/model.safetensors"
        assert (run / name).read_bytes() == (expected / name).read_bytes()


def test_an_error_in_a_thread_is_reported_in_one_line(tiny_file, prefetched, monkeypatch, capsys):
    original = DiffusionTask.batch

    def batch(self, step, *rest):
        if step == 3:
            raise UserError("the recording tone.wav\ndisappeared: restore it")
        return original(self, step, *rest)

    monkeypatch.setattr(DiffusionTask, "batch", batch)
    monkeypatch.setattr(sys, "argv", ["train", "--config", str(tiny_file)])
    assert run_recipe(Recipe(DiffusionTask, DiffusionConfig, tiny_file.parent, "tiny"), "") == 2
    assert "error: the recording tone.wav disappeared: restore it\n" in capsys.readouterr().err
    assert not threads()


def test_threads_read_the_order_of_different_epochs():
    epochs, expected = ShuffledEpochs(50, seed=3), ShuffledEpochs(50, seed=3)
    wanted = [expected[number] for number in range(400)]
    found: dict[int, list[int]] = {}

    def read(first: int) -> None:
        found[first] = [epochs[(first + place) % 400] for place in range(400)]

    readers = [threading.Thread(target=read, args=(100 * number,)) for number in range(4)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    for first, indices in found.items():
        assert indices == wanted[first:] + wanted[:first]
