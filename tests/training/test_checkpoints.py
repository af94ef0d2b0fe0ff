"""Tests of checkpoints: saving and loading, damaged files, full disks."""

import errno
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from sashimi_diffusion import files
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.denoiser import SashimiDenoiser
from sashimi_diffusion.training import checkpoints
from sashimi_diffusion.training.checkpoints import Counters
from sashimi_diffusion.training.config import OptimizerConfig
from sashimi_diffusion.training.ema import Ema
from sashimi_diffusion.training.optimizer import create_optimizer, set_learning_rate


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    model = SashimiDenoiser(d_model=8, n_layers=1, pool=(4,), n_state=4, embedding_hidden=16, embedding_dim=16)
    optimizer = create_optimizer(model, OptimizerConfig())
    set_learning_rate(optimizer, 1.0)
    model(torch.randn(2, 1, 64), 3).sample.square().sum().backward()
    optimizer.step()
    return model, Ema(model, 0.9), optimizer


@pytest.fixture(scope="module")
def three_checkpoints(parts, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    for step in (10, 20, 30):
        checkpoints.save_checkpoint(folder, *parts, Counters(step=step), keep=3)
    return folder


@pytest.fixture
def run(three_checkpoints, tmp_path) -> Path:
    """Return a run folder with checkpoints of steps 10, 20 and 30."""
    return shutil.copytree(three_checkpoints, tmp_path / "run")


def test_loading_restores_what_was_saved(parts, run):
    model, ema, optimizer = parts
    saved = [tensor.clone() for tensor in [*model.state_dict().values(), *ema.model.state_dict().values()]]
    moments = [tensor.clone() for state in optimizer.state.values() for tensor in state.values()]
    counters = Counters(40, 1.5, 2, 1, 0.25, 3, 16, "abc")
    ema.updates = 7
    folder = checkpoints.save_checkpoint(run, *parts, counters, keep=2)
    assert [path.name for path in checkpoints.list_checkpoints(run)] == ["step-000030", "step-000040"]

    with torch.no_grad():
        for tensor in [*model.parameters(), *ema.model.parameters()]:
            tensor.zero_()
    fresh = create_optimizer(model, OptimizerConfig(lr=7e-4))
    ema.updates = 0
    assert checkpoints.load_checkpoint(folder, model, ema, fresh) == counters
    loaded = [*model.state_dict().values(), *ema.model.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(saved, loaded, strict=True))
    restored = [tensor for state in fresh.state.values() for tensor in state.values()]
    assert all(torch.equal(a, b) for a, b in zip(moments, restored, strict=True))
    assert ema.updates == 7
    assert fresh.param_groups[0]["peak_lr"] == 7e-4


FILES = ["model.safetensors", "ema.safetensors", "optimizer.pt", "counters.json", "manifest.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "edited", "missing"])
def test_a_damaged_file_is_named_and_the_previous_checkpoint_suggested(run, name, damage):
    path = run / "checkpoints/step-000030" / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    with pytest.raises(UserError) as error:
        checkpoints.find_checkpoint(run)
    assert str(path) in str(error.value)
    assert "--resume-from checkpoints/step-000020" in str(error.value)
    assert checkpoints.find_checkpoint(run, "checkpoints/step-000020") == run / "checkpoints/step-000020"


def test_a_damaged_checkpoint_is_not_suggested(run):
    for step in (20, 30):
        (run / f"checkpoints/step-0000{step}/ema.safetensors").unlink()
    with pytest.raises(UserError, match="--resume-from checkpoints/step-000010"):
        checkpoints.find_checkpoint(run)
    (run / "checkpoints/step-000010/ema.safetensors").unlink()
    with pytest.raises(UserError, match="start again"):
        checkpoints.find_checkpoint(run)


def test_choosing_a_checkpoint(run, tmp_path_factory):
    assert checkpoints.find_checkpoint(run) == run / "checkpoints/step-000030"
    for name in ("step-000010", "checkpoints/step-000010", str(run / "checkpoints/step-000010")):
        assert checkpoints.find_checkpoint(run, name).name == "step-000010"
    with pytest.raises(UserError, match=r"no checkpoint step-7 .* it has step-000010, step-000020, step-000030"):
        checkpoints.find_checkpoint(run, "step-7")
    assert checkpoints.find_checkpoint(tmp_path_factory.mktemp("empty")) is None


def test_a_checkpoint_of_another_run_is_refused(run, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "checkpoints/step-000010"
    other.mkdir(parents=True)
    with pytest.raises(UserError, match=r"step-000010 is not in .*: give the name of a checkpoint of this run"):
        checkpoints.find_checkpoint(run, str(other))
    link = other.parent / "link"
    link.symlink_to(run)
    assert checkpoints.find_checkpoint(run, str(link / "checkpoints/step-000010")) is not None


def test_a_checkpoint_of_another_network_is_refused(parts, run):
    model = SashimiDenoiser(d_model=16, n_layers=1, pool=(4,), n_state=4, embedding_hidden=16, embedding_dim=16)
    optimizer = create_optimizer(model, OptimizerConfig())
    with pytest.raises(UserError, match="step-000030 does not fit this network"):
        checkpoints.load_checkpoint(run / "checkpoints/step-000030", model, Ema(model, 0.9), optimizer)


def test_later_checkpoints_are_set_aside_not_deleted(run):
    moved = checkpoints.set_later_aside(run, run / "checkpoints/step-000010")
    assert [path.name for path in moved] == ["set-aside-step-000020", "set-aside-step-000030"]
    assert all((path / "manifest.json").exists() for path in moved)
    assert checkpoints.find_checkpoint(run).name == "step-000010"


def test_steps_beyond_six_digits_are_in_order(parts, tmp_path):
    for step in (999_999, 1_000_000):
        checkpoints.save_checkpoint(tmp_path, *parts, Counters(step=step), keep=2)
    assert checkpoints.find_checkpoint(tmp_path).name == "step-1000000"


@pytest.mark.parametrize("number", range(5))
def test_a_full_disk_leaves_the_last_good_checkpoint(parts, run, monkeypatch, number):
    """The disk is full at each of the five files in turn."""
    written, original = [], files.write_file

    def write_file(path, content):
        written.append(path)
        if len(written) == number + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(path, content)

    monkeypatch.setattr(checkpoints, "write_file", write_file)
    expected = pytest.raises(UserError, match="cannot write the checkpoint: the disk is full; make room")
    with expected, files.writing("the checkpoint", "make room"):
        checkpoints.save_checkpoint(run, *parts, Counters(step=40), keep=1)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-000010",
        "step-000020",
        "step-000030",
    ]
    assert checkpoints.find_checkpoint(run).name == "step-000030"


def save_until_an_error(folder, parts):
    for step in itertools.count(10, 10):
        checkpoints.save_checkpoint(folder, *parts, Counters(step=step), keep=1000)


def test_a_disk_that_is_really_full(parts, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        expected = pytest.raises(UserError, match="the disk is full")
        with expected, files.writing("the checkpoint", "make room"):
            save_until_an_error(disk, parts)
        assert len(checkpoints.list_checkpoints(disk)) >= 1
        assert checkpoints.find_checkpoint(disk) == checkpoints.list_checkpoints(disk)[-1]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_writing_the_same_step_again_replaces_it(parts, run):
    folder = checkpoints.save_checkpoint(run, *parts, Counters(step=30, seconds=9.0), keep=3)
    assert json.loads((folder / "counters.json").read_text())["seconds"] == 9
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "step-000010",
        "step-000020",
        "step-000030",
    ]


def test_an_unfinished_folder_is_not_a_checkpoint(parts, run):
    (run / "checkpoints/.step-000040.tmp").mkdir()
    assert checkpoints.find_checkpoint(run).name == "step-000030"
    checkpoints.save_checkpoint(run, *parts, Counters(step=40), keep=1)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000040"]
