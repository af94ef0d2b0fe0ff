"""Tests of the files of a run folder: measured.json, metrics.jsonl, config.yaml of older versions."""

import json
import shutil

import pytest

from sashimi_diffusion import files
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.training.config import from_tree, to_tree
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import Trainer, train
from sashimi_diffusion.training.run_folder import MetricsFile, config_of_command, read_measured
from sashimi_diffusion.training.yaml_files import read_yaml_file

OLD_CONFIG = """\
seed: 0
output_dir: /runs/old
data:
  kind: folder
  path: /recordings
  download: false
  sample_rate: 8000
  length: 256
  pattern: '{label}_{speaker}_{index}'
  where: {}
  holdout:
    index:
    - 0
  splits:
  - 0.88
  - 0.06
  - 0.06
  order: shuffled
  random_shift: 40
  cache_dir: null
  speakers: null
  normalize_rms: 0.1
  gain_db: 3.0
  mel:
    n_fft: 1024
    f_min: 0.0
    f_max: 8000.0
optimizer:
  name: adamw
  lr: 0.002
  ssm_lr: 0.001
  weight_decay: 0.0
  betas:
  - 0.9
  - 0.999
  momentum: 0.9
  warmup_steps: 2
  decay: cosine
  plateau_factor: 0.2
  plateau_patience: 20
  gradient_clip: 1.0
training:
  steps: 8
  max_minutes: null
  batch_size: 4
  gradient_accumulation: 1
  mixed_precision: fp32
  cpu_threads: 1
  ema_decay: 0.9995
  log_every: 1
  checkpoint_every: 4
  keep_checkpoints: 2
  validate_every: 4
  validation_examples: 512
  sample_every: null
  max_nonfinite: 10
  trackers: []
model:
  name: sashimi
  class_conditional: true
  waveform_std: 0.105315
  d_model: 8
  n_layers:
  - 0
  - 1
  pool:
  - 4
  n_state: 4
  parameterization: diag
  initialization: lin
  discretization: zoh
  embedding_hidden: 16
  embedding_dim: 16
schedule:
  num_train_timesteps: 200
  beta_start: 0.0001
  beta_end: 0.02
  beta_schedule: squaredcos_cap_v2
  prediction_type: v_prediction
objective:
  min_snr_gamma: null
  label_dropout: 0.1
sampling:
  num_samples: 2
  steps: 2
  scheduler: ddim
  guidance_scale: 1.0
  seed: 0
"""


NEW_DATA_SETTINGS = {
    **dict.fromkeys(("subset", "audio_column", "label_column", "validation_split", "test_split")),
    "more_paths": [],
    "words": None,
    "min_contrast_db": None,
    "whole": False,
    "train_split": "train",
    "shuffle_buffer": 1000,
}
"""Settings of the data that this config lacks, with their defaults."""

NEW_MEL_SETTINGS = {
    **{"win_length": None, "mel_scale": "slaney", "norm": "slaney", "power": 1},
    **{"log": "natural", "floor": 1e-5, "padding": "center"},
}


def test_a_measured_value_is_stored_with_the_run(tiny, tmp_path):
    config = from_tree(DiffusionConfig, tiny("training.steps=4"))
    run = train(DiffusionTask, config)
    assert config == from_tree(DiffusionConfig, tiny("training.steps=4"))
    assert read_yaml_file(run / "config.yaml")["model"]["waveform_std"] is None
    measured = json.loads((run / "measured.json").read_text())
    assert 0.05 < measured["waveform_std"] < 0.2
    assert SashimiPipeline.from_pretrained(run / "pipeline").model.config.waveform_std == measured["waveform_std"]

    # Another value shows that a resumed run reads it and does not measure again.
    (run / "measured.json").write_text('{"waveform_std": 0.125}')
    (run / "pipeline").rename(tmp_path / "moved")
    train(DiffusionTask, from_tree(DiffusionConfig, tiny()), resume=True)
    assert SashimiPipeline.from_pretrained(run / "pipeline").model.config.waveform_std == 0.125
    (run / "measured.json").write_text("{")
    with pytest.raises(UserError, match=r"measured.json is damaged"):
        train(DiffusionTask, from_tree(DiffusionConfig, tiny()), resume=True)


def test_a_given_value_is_not_measured(tiny):
    run = train(DiffusionTask, from_tree(DiffusionConfig, tiny("training.steps=1", "model.waveform_std=0.2")))
    assert read_measured(run) == {}
    assert SashimiPipeline.from_pretrained(run / "pipeline").model.config.waveform_std == 0.2


def test_a_resumed_run_accepts_its_measured_value_and_no_other(tiny, tiny_file):
    run = train(DiffusionTask, from_tree(DiffusionConfig, tiny("training.steps=1")))
    measured = read_measured(run)["waveform_std"]

    def resume(*overrides):
        overrides = [f"output_dir={run}", *overrides]
        return config_of_command(DiffusionConfig, None, tiny_file, overrides, resume=True)

    assert resume().model.arguments["waveform_std"] is None
    assert resume(f"model.waveform_std={measured}").model.arguments["waveform_std"] == measured
    with pytest.raises(UserError, match=rf"model\.waveform_std is 0\.3, but the run .* was started with {measured}"):
        resume("model.waveform_std=0.3")


def test_the_config_of_an_older_version_loads_and_resumes(tiny, tiny_file):
    """In older versions config.yaml contains the measured value."""
    run = train(DiffusionTask, from_tree(DiffusionConfig, tiny("training.steps=4")))
    (run / "measured.json").unlink()
    (run / "config.yaml").write_text(OLD_CONFIG)
    tree = read_yaml_file(run / "config.yaml")
    assert to_tree(from_tree(DiffusionConfig, tree)) == tree | {
        "training": tree["training"]
        | {"gradient_checkpointing": False, "cuda_graph": "auto", "compile": False}
        | {"initial_pipeline": None, "transfer": False, "lora_rank": None, "validate_bound": False},
        "objective": tree["objective"]
        | {"name": "diffusion", "noise_mean": None, "noise_std": None, "timestep_exponent": 1.0},
        "schedule": tree["schedule"] | {"rescale_betas_zero_snr": False},
        "data": tree["data"] | NEW_DATA_SETTINGS | {"mel": tree["data"]["mel"] | NEW_MEL_SETTINGS},
        "tracking": {"project": "sashimi-diffusion", "run": None},
        "card": {"title": None, "license": None, "datasets": [], "language": [], "text": None},
    }
    data = tiny()["data"]
    overrides = [f"output_dir={run}", f"data.path={data['path']}", f"data.cache_dir={data['cache_dir']}"]
    for file in (None, tiny_file):  # the file has waveform_std: null
        config = config_of_command(DiffusionConfig, file, tiny_file, overrides, resume=True)
        assert config.model.arguments["waveform_std"] == 0.105315
        assert config.training.steps == 8
        assert config.output_dir == str(run)
    train(DiffusionTask, config, resume=True)
    assert SashimiPipeline.from_pretrained(run / "pipeline").model.config.waveform_std == 0.105315
    assert read_yaml_file(run / "config.yaml")["model"]["waveform_std"] == 0.105315
    assert not (run / "measured.json").exists()


def test_files_are_replaced_when_the_block_ends(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "kept").write_text("kept")
    (folder / "old").write_text("old")
    with files.files_written_beside(folder) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "new").write_text("new")
        (temporary / "old").write_text("newer")
        assert (folder / "old").read_text() == "old"
    assert {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()} == {
        "kept": "kept",
        "old": "newer",
        "new": "new",
    }

    def write_and_fail() -> None:
        with files.files_written_beside(folder) as temporary:
            (temporary / "old").write_text("damaged")
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    assert (folder / "old").read_text() == "newer"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_after_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    for step in range(1, 6):
        metrics.write({"step": step, "loss": step / 10})
    metrics.write({"step": 5, "validation_loss": 1.0})
    assert len(read(path)) == 6  # each line is there as soon as it is written
    metrics.close()
    with path.open("a") as file:
        file.write('{"step": 6, "lo')
    metrics = MetricsFile(path, 3)
    metrics.write({"step": 4, "loss": 0.5})
    metrics.sync()
    assert [line["step"] for line in read(path)] == [1, 2, 3, 4]
    metrics.close()


def test_a_new_run_starts_with_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    MetricsFile(path, 0).close()
    assert path.read_text() == ""


def test_a_run_folder_that_is_removed_during_the_run(tiny_config, tmp_path, monkeypatch):
    original = Trainer._step

    def removing(self, progress):
        if self.counters.step == 5:
            shutil.rmtree(self.folder)
        return original(self, progress)

    monkeypatch.setattr(Trainer, "_step", removing)
    with pytest.raises(UserError, match=r"metrics\.jsonl was removed or replaced during the run"):
        train(DiffusionTask, tiny_config("training.sample_every=0"))
    assert not (tmp_path / "run/pipeline").exists()


def test_a_resumed_run_says_what_is_different(tiny, tmp_path, capsys):
    run = train(DiffusionTask, from_tree(DiffusionConfig, tiny("training.steps=4")))
    assert "changed: " not in capsys.readouterr().out
    run.rename(tmp_path / "moved")
    changes = ("training.steps=5", "optimizer.lr=0.003", "sampling.num_samples=0", f"output_dir={tmp_path / 'moved'}")
    train(DiffusionTask, from_tree(DiffusionConfig, tiny(*changes)), resume=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("changed: ")]
    assert [line.partition(": ")[2].partition(":")[0] for line in lines] == [
        "optimizer.lr",
        "training.steps",
        "sampling.num_samples",
    ]
    assert lines[1] == "changed: training.steps: 4 -> 5"


def test_a_run_that_is_over_says_so(tiny, capsys):
    train(DiffusionTask, from_tree(DiffusionConfig, tiny("training.steps=4")))
    assert "nothing to train" not in capsys.readouterr().out
    train(DiffusionTask, from_tree(DiffusionConfig, tiny("training.steps=3")), resume=True)
    assert "nothing to train: the run has 4 steps" in capsys.readouterr().out
