"""Tests of the diffusion recipe as a script: two processes, killed and resumed, errors."""

import importlib.util
import random
import signal
import sys
import tarfile

import numpy as np
import pytest

from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import train


@pytest.fixture
def script(recipe_script):
    return recipe_script("train_diffwave_sashimi.py")


def test_two_processes_give_the_run_of_one(script, metrics_of, tiny_file, tiny_config, tmp_path):
    """Two processes with half of the batch each give the losses of one process with the whole batch."""
    folder = tmp_path / "two"
    arguments = ["--config", tiny_file, f"output_dir={folder}", "training.batch_size=2"]
    code, out, err = script.run(*arguments, launcher=script.TORCHRUN)
    assert code == 0, err
    assert "4 examples per step on 2 x cpu" in out
    assert out.count("done: 8 steps") == 1
    assert SashimiPipeline.from_pretrained(folder / "pipeline").model.config.num_classes == 2
    assert (folder / "samples/step-000008/contact_sheet.png").exists()

    for one, two in zip(metrics_of(train(DiffusionTask, tiny_config())), metrics_of(folder), strict=True):
        assert one.keys() == two.keys()
        assert np.allclose(list(one.values())[:2], list(two.values())[:2], rtol=1e-4)  # step and loss


@pytest.mark.slow
def test_two_processes_read_tar_files_as_one(script, metrics_of, recordings, tiny_file, tiny_config, tmp_path):
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        for file in sorted(recordings.glob("*.wav")):
            archive.add(file, file.name)
    settings = ["data.kind=webdataset", f"data.path={tmp_path / 'one.tar'}", "data.holdout=null", "training.steps=4"]
    settings += ["data.splits=[0.7, 0.3, 0]", "data.pattern={label}_{speaker}_{index}"]
    arguments = ["--config", tiny_file, *settings, f"output_dir={tmp_path / 'two'}", "training.batch_size=2"]
    code, _, err = script.run(*arguments, launcher=script.TORCHRUN)
    assert code == 0, err
    run = train(DiffusionTask, tiny_config(*settings))
    for one, two in zip(metrics_of(run), metrics_of(tmp_path / "two"), strict=True):
        assert np.allclose(list(one.values())[:2], list(two.values())[:2], rtol=1e-4)  # step and loss


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_9_and_resume_gives_the_uninterrupted_run(
    script, assert_same_run, tiny_file, tiny_config, tmp_path, kills
):
    settings = ["training.steps=60", "training.checkpoint_every=5", "training.validate_every=20"]
    if kills > 2:
        settings = ["training.steps=300", "training.checkpoint_every=7", "training.validate_every=50"]
    whole, killed = train(DiffusionTask, tiny_config(*settings)), tmp_path / "killed"
    arguments = ["--config", tiny_file, "--resume", *settings, f"output_dir={killed}"]
    moments, codes = random.Random(kills), []
    for kill in range(kills):  # the first kill may come before the first step, each later one comes after a step
        code, _ = script.kill(killed, min(kill, 1), *arguments, pause=moments.uniform(0, 1.0))
        codes.append(code)
        if (killed / "pipeline").exists():
            SashimiPipeline.from_pretrained(killed / "pipeline")
    assert -signal.SIGKILL in codes
    code, _, err = script.run(*arguments)
    assert code == 0, err
    assert_same_run(killed, whole)


@pytest.fixture
def recipe(script, monkeypatch, capsys):
    """Return a function that runs the recipe in this process and returns exit code, stdout and stderr."""
    spec = importlib.util.spec_from_file_location("recipe", script.path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(script.path), *map(str, arguments)])
        code = module.main()
        return code, *capsys.readouterr()

    return call


def test_errors_are_one_line_and_exit_code_2(recipe, tiny_file, tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    (text / "0_a_1.wav").write_text("no audio")
    (tmp_path / "file").touch()
    for arguments, expected in [
        (["training.stepz=3"], "unknown config key training.stepz: did you mean training.steps?"),
        ([f"data.path={tmp_path / 'missing'}"], "missing does not exist"),
        ([f"data.path={text}"], "0_a_1.wav"),
        ([f"output_dir={tmp_path / 'file'}"], "is a file, not a folder"),
        ([f"output_dir={tmp_path / 'file' / 'run'}"], "cannot write the run folder"),
        (["--config", tmp_path / "none.yaml"], "none.yaml does not exist: expected a config"),
        (["--resume-from", "step-000007"], "there is no checkpoint step-000007"),
    ]:
        code, out, err = recipe("--config", tiny_file, *arguments)
        assert code == 2
        assert out == ""
        assert expected in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
def test_a_process_ends_with_exit_code_2(script, tiny_file):
    code, out, err = script.run("--config", tiny_file, "training.stepz=3")
    assert (code, out) == (2, "")
    assert err == "error: unknown config key training.stepz: did you mean training.steps?\n"


def test_without_arguments_the_error_names_the_data_to_download(recipe, tmp_path):
    code, _, err = recipe(f"output_dir={tmp_path / 'run'}")
    assert code == 2
    assert "data.path is not set" in err
    assert "free-spoken-digit-dataset" in err


def test_overrides_may_come_before_or_after_options(recipe, tiny_file, tmp_path):
    code, out, _ = recipe("training.steps=1", "--config", tiny_file, f"output_dir={tmp_path / 'other'}")
    assert code == 0
    assert "done: 1 steps" in out
    assert (tmp_path / "other" / "pipeline").is_dir()


def test_conditioning_on_class_and_speaker(recipe, tiny_file, tmp_path):
    output = f"output_dir={tmp_path / 'speakers'}"
    code, _, err = recipe("--config", tiny_file, output, "data.speakers=speaker", "training.steps=2")
    assert code == 0, err
    code, out, err = recipe("--resume", output, "training.steps=3")
    assert code == 0, err
    assert "done: 3 steps" in out
    config = SashimiPipeline.from_pretrained(tmp_path / "speakers" / "pipeline").model.config
    assert (config.class_names, config.speaker_names) == (["0", "1"], ["a", "b"])
    code, _, err = recipe("--config", tiny_file, "data.speakers=speeker")
    assert code == 2
    assert "did you mean 'speaker'?" in err


def test_bad_files_can_be_skipped(recipe, tiny_file, recordings, tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for path in recordings.glob("*.wav"):
        (folder / path.name).symlink_to(path)
    (folder / "1_b_9.wav").write_text("no audio")
    arguments = ["--config", tiny_file, f"data.path={folder}", "training.steps=2"]
    code, _, err = recipe(*arguments)
    assert code == 2
    assert "--skip-bad-files" in err
    code, _, err = recipe(*arguments, "--skip-bad-files")
    assert code == 0, err
    assert [line for line in err.splitlines() if line.startswith("warning: ") and "1_b_9.wav" in line]
