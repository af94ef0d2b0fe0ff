"""The recipe as people run it: through accelerate, on two processes, killed and resumed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.training import checkpoints

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "train_diffwave_sashimi.py"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines=1", "--dynamo_backend=no"]


def environment() -> dict:
    """Without a network, and without what another launcher set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "LOCAL_", "RANK"))}
    return kept | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def start(*arguments: str, launcher=(sys.executable,)) -> subprocess.Popen:
    command = [*launcher, str(RECIPE), *map(str, arguments)]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: str, launcher=(sys.executable,)) -> tuple[int, str, str]:
    process = start(*arguments, launcher=launcher)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def losses(folder: Path) -> list[tuple]:
    """Everything of metrics.jsonl but the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [tuple(v for k, v in line.items() if not k.startswith("seconds")) for line in lines]


def test_accelerate_launch_with_one_and_two_processes(tiny_file, tmp_path):
    """Two processes with half the batch each give the losses of one with the whole."""
    folders = [tmp_path / "one", tmp_path / "two"]
    settings = [("training.batch_size=4", 1), ("training.batch_size=2", 2)]
    for folder, (batch, processes) in zip(folders, settings, strict=True):
        launcher = [*LAUNCH, f"--num_processes={processes}", "--mixed_precision=no"]
        code, out, err = run("--config", tiny_file, f"output_dir={folder}", batch, launcher=launcher)
        assert code == 0, err
        assert out.count("done: 8 steps") == 1
        assert SashimiPipeline.from_pretrained(folder / "pipeline").model.config.num_classes == 2
        assert (folder / "samples/step-000008/contact-sheet.png").exists()
    one, two = (losses(folder) for folder in folders)
    assert [line[0] for line in one] == [line[0] for line in two]
    assert np.allclose([line[1] for line in one], [line[1] for line in two], rtol=1e-4)


def kill_repeatedly(tiny_file: Path, folder: Path, kills: int, seed: int, arguments: list[str]) -> int:
    """Start or resume, kill after a random time, again and again; returns how often training was under way."""
    moments, under_way = random.Random(seed), 0
    for kill in range(kills):
        process = start("--config", tiny_file, "--resume", *arguments)
        metrics = folder / "metrics.jsonl"
        known = metrics.stat().st_size if metrics.exists() else 0
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if kill and metrics.exists() and metrics.stat().st_size not in (0, known):
                break
            if not kill and (folder / "config.yaml").exists():
                break
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 1.0))
        under_way += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if (folder / "pipeline").exists():
            SashimiPipeline.from_pretrained(folder / "pipeline")
    return under_way


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_9_and_resume_gives_the_uninterrupted_run(tiny_file, tmp_path, kills):
    settings = ["training.steps=60", "training.checkpoint_every=5", "training.validate_every=20"]
    if kills > 2:
        settings = ["training.steps=300", "training.checkpoint_every=7", "training.validate_every=50"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, _, err = run("--config", tiny_file, *settings, f"output_dir={whole}")
    assert code == 0, err

    settings.append(f"output_dir={killed}")
    assert kill_repeatedly(tiny_file, killed, kills, seed=kills, arguments=settings) > 0
    code, _, err = run("--config", tiny_file, "--resume", *settings)
    assert code == 0, err
    assert losses(killed) == losses(whole)
    last = checkpoints.list_checkpoints(whole)[-1].relative_to(whole)
    for name in ("model.safetensors", "ema.safetensors"):
        assert (killed / last / name).read_bytes() == (whole / last / name).read_bytes()


def test_errors_are_one_line_and_exit_code_2(tiny_file, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    (text / "0_a_1.wav").write_text("no audio")
    for arguments, expected in [
        (["training.stepz=3"], "unknown config key training.stepz: did you mean training.steps?"),
        ([f"data.path={tmp_path / 'missing'}"], "missing does not exist"),
        ([f"data.path={text}"], "0_a_1.wav"),
    ]:
        code, out, err = run("--config", tiny_file, *arguments)
        assert code == 2
        assert out == ""
        assert expected in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_without_arguments_it_says_what_to_download(tmp_path):
    code, _, err = run(f"output_dir={tmp_path / 'run'}")
    assert code == 2
    assert "data.path is not set" in err
    assert "free-spoken-digit-dataset" in err


def test_bad_files_can_be_skipped(tiny_file, recordings, tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for path in recordings.glob("*.wav"):
        (folder / path.name).symlink_to(path)
    (folder / "1_b_9.wav").write_text("no audio")
    arguments = ["--config", tiny_file, f"data.path={folder}", "training.steps=2"]
    code, _, err = run(*arguments)
    assert code == 2
    assert "--skip-bad-files" in err
    code, _, err = run(*arguments, "--skip-bad-files")
    assert code == 0, err
    assert "1_b_9.wav" in err
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"]["path"] == str(folder)
