"""Tests of the training loop: run folders, resuming, steps that are not finite, refused settings."""

import json
import math
import os

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion import files
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SashimiDenoiser
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.training import checkpoints
from sashimi_diffusion.training.config import from_tree
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import Trainer, train
from sashimi_diffusion.training.run_folder import config_of_command, save_pipeline
from sashimi_diffusion.training.splits import fingerprint, open_split


def lines(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run) -> list[tuple]:
    """Return the values of metrics.jsonl without the times."""
    return [tuple(v for k, v in line.items() if not k.startswith("seconds")) for line in lines(run)]


def test_a_run_folder(tiny_config, tmp_path):
    run = train(DiffusionTask, tiny_config())
    assert run == tmp_path / "run"
    assert [path.name for path in checkpoints.list_checkpoints(run)] == ["step-000004", "step-000008"]
    training = [line for line in lines(run) if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, 9))
    assert {"gradient_norm", "learning_rate", "nonfinite_steps", "seconds_per_step", "seconds"} < set(training[0])
    assert [line["step"] for line in lines(run) if "validation_loss" in line] == [4, 8]
    for step in ("step-000004", "step-000008"):
        assert sorted(path.name for path in (run / "samples" / step).iterdir()) == [
            "00-0.wav",
            "01-1.wav",
            "contact_sheet.png",
        ]
    assert soundfile.info(run / "samples/step-000008/00-0.wav").frames == 256
    assert not [path for path in run.rglob("*") if ".tmp" in path.name]

    pipeline = SashimiPipeline.from_pretrained(run / "pipeline")
    assert pipeline.model.config.class_names == ["0", "1"]
    assert 0.05 < pipeline.model.config.waveform_std < 0.2
    ema = checkpoints.safetensors.torch.load_file(run / "checkpoints/step-000008/ema.safetensors")
    assert all(torch.equal(ema[name], tensor) for name, tensor in pipeline.model.state_dict().items())
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline(class_labels=1, num_inference_steps=2).audios.shape == (1, 1, 256)


def test_a_run_with_speaker_conditioning(tiny_config, tiny_file):
    """Saving, sampling, guidance and validation use class and speaker labels; resuming requires the same setting."""
    settings = ["data.speakers=speaker", "sampling.num_samples=4", "sampling.guidance_scale=2", "optimizer.lr=0.01"]
    run = train(DiffusionTask, tiny_config(*settings))
    names = [path.name for path in (run / "samples/step-000008").glob("*.wav")]
    assert sorted(names) == ["00-0-a.wav", "01-1-a.wav", "02-0-b.wav", "03-1-b.wav"]
    pipeline = SashimiPipeline.from_pretrained(run / "pipeline")
    assert (pipeline.model.config.class_names, pipeline.model.config.speaker_names) == (["0", "1"], ["a", "b"])
    assert pipeline.config.guidance_scale == 2
    embedding = pipeline.model.speaker_embedding.weight
    assert embedding.shape == (3, 16)
    assert (embedding[:2].abs().sum(dim=1) > 0).all()
    assert pipeline(2, 2, class_labels=["1", "0"], speaker_labels="b", guidance_scale=2.0).audios.shape == (2, 1, 256)
    before = losses(run)
    train(DiffusionTask, tiny_config(*settings), resume_from="checkpoints/step-000004")
    assert losses(run) == before
    with pytest.raises(UserError, match=r"data\.speakers is None, but the run .* was started with 'speaker'"):
        config_of_command(DiffusionConfig, None, tiny_file, [f"output_dir={run}", "data.speakers=null"], resume=True)
    held_out = DiffusionTask(tiny_config(*settings), torch.device("cpu"), False).validation
    assert held_out.validation_batch(range(4)).speakers.tolist() == held_out.dataset.speakers.tolist() == [0, 1, 0, 1]


def test_speaker_conditioning_with_speech_commands_is_refused(tiny_config):
    with pytest.raises(UserError, match=r"data\.speakers is 'speaker', but it needs data\.kind=folder"):
        train(DiffusionTask, tiny_config("data.kind=speech_commands", "data.speakers=speaker"))


def test_the_fingerprint_of_a_split_depends_on_the_speakers(tiny_config):
    data = tiny_config().data
    split = open_split(data, "train", data.length, speakers="speaker")
    before = fingerprint(split)
    assert before != fingerprint(open_split(data, "train", data.length))
    split.speakers = 1 - split.speakers
    assert fingerprint(split) != before


def test_training_learns(tiny_config):
    overrides = [
        "training.steps=100",
        "training.checkpoint_every=100",
        "training.validate_every=50",
        "optimizer.lr=5e-3",
        "schedule.prediction_type=epsilon",
    ]
    run = train(DiffusionTask, tiny_config(*overrides, "model.d_model=16"))
    training = [line["loss"] for line in lines(run) if "loss" in line]
    assert np.mean(training[-20:]) < 0.7 * np.mean(training[:20])
    validation = [line["validation_loss"] for line in lines(run) if "validation_loss" in line]
    assert validation[-1] < validation[0]


def test_a_resumed_run_is_the_same_run(tiny_config, tmp_path):
    whole = train(DiffusionTask, tiny_config(f"output_dir={tmp_path / 'whole'}", "training.log_every=3"))
    config = tiny_config("training.log_every=3")
    stopped = Trainer(DiffusionTask, config, False, None, False)
    original = stopped._step
    stopped._step = lambda progress: (
        original(progress) if stopped.counters.step < 6 else (_ for _ in ()).throw(InterruptedError)
    )
    with pytest.raises(InterruptedError):
        stopped.run()
    assert lines(tmp_path / "run")[-1]["step"] == 6
    resumed = train(DiffusionTask, tiny_config("training.log_every=3"), resume=True)
    assert losses(resumed) == losses(whole)
    for name in ("model.safetensors", "ema.safetensors"):
        path = f"checkpoints/step-000008/{name}"
        assert (resumed / path).read_bytes() == (whole / path).read_bytes()


def test_a_run_without_a_checkpoint_resumes_from_its_start(tiny_config, tmp_path):
    Trainer(DiffusionTask, tiny_config(), False, None, False)
    assert losses(train(DiffusionTask, tiny_config(), resume=True)) == losses(
        train(DiffusionTask, tiny_config(f"output_dir={tmp_path / 'whole'}"))
    )


def test_a_finished_run_can_be_lengthened(tiny_config):
    constant = "optimizer.decay=constant"
    run = train(DiffusionTask, tiny_config(constant))
    before = losses(run)
    train(DiffusionTask, tiny_config(constant, "training.steps=12"), resume=True)
    assert losses(run)[: len(before)] == before
    assert lines(run)[-1]["step"] == 12


def test_resuming_from_an_earlier_checkpoint(tiny_config):
    run = train(DiffusionTask, tiny_config())
    before = losses(run)
    (run / "checkpoints/step-000008/model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model.safetensors has 0 bytes .* --resume-from checkpoints/step-000004"):
        train(DiffusionTask, tiny_config(), resume=True)
    train(DiffusionTask, tiny_config(), resume_from="checkpoints/step-000004")
    assert losses(run) == before
    assert checkpoints.find_checkpoint(run).name == "step-000008"
    assert (run / "checkpoints/set-aside-step-000008").is_dir()


def test_a_run_is_not_overwritten(tiny_config):
    run = train(DiffusionTask, tiny_config())
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="already holds a run: continue it with --resume"):
        train(DiffusionTask, tiny_config())
    with pytest.raises(UserError, match="made with 4 examples per step"):
        train(DiffusionTask, tiny_config("training.batch_size=8"), resume=True)
    with pytest.raises(UserError, match="made with other recordings"):
        train(DiffusionTask, tiny_config("data.where.speaker=[a]"), resume=True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_the_command_of_a_resumed_run(tiny_config, tiny_file, tmp_path):
    """--resume without a config file uses the settings of the run; a config file must agree with them."""
    run = train(DiffusionTask, tiny_config())
    overrides = [f"output_dir={run}", "training.steps=20"]
    config = config_of_command(DiffusionConfig, None, tiny_file, overrides, resume=True)
    assert config.training.steps == 20
    assert config.model.arguments["waveform_std"] is None
    assert config_of_command(DiffusionConfig, tiny_file, "", overrides, resume=True) == config
    with pytest.raises(UserError, match="seed is 5, but the run"):
        config_of_command(DiffusionConfig, tiny_file, "", [*overrides, "seed=5"], resume=True)
    moved = run.rename(tmp_path / "moved")
    assert config_of_command(DiffusionConfig, None, tiny_file, [f"output_dir={moved}"], resume=True).output_dir == str(
        moved
    )


def test_accumulation_gives_the_losses_of_the_whole_batch(tiny_config, tmp_path):
    whole = losses(train(DiffusionTask, tiny_config(f"output_dir={tmp_path / 'whole'}")))
    parts = losses(train(DiffusionTask, tiny_config("training.batch_size=1", "training.gradient_accumulation=4")))
    assert np.allclose([line[1] for line in whole], [line[1] for line in parts], rtol=1e-4)


def test_steps_that_are_not_finite_are_skipped_and_counted(tiny_config, monkeypatch):
    original = DiffusionTask.loss
    calls = iter(range(1000))
    monkeypatch.setattr(
        DiffusionTask, "loss", lambda *args: original(*args) * (math.nan if next(calls) in (2, 3, 5) else 1.0)
    )
    run = train(DiffusionTask, tiny_config("training.max_nonfinite=3"))
    training = [line for line in lines(run) if "loss" in line]
    assert [line["nonfinite_steps"] for line in training] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert [line["loss"] is None for line in training] == [False, False, True, True, False, True, False, False]
    assert all(
        tensor.isfinite().all() for tensor in SashimiPipeline.from_pretrained(run / "pipeline").model.parameters()
    )


def test_too_many_steps_that_are_not_finite_name_the_parameter(tiny_config):
    trainer = Trainer(DiffusionTask, tiny_config("training.max_nonfinite=2"), False, None, False)
    broken = dict(trainer.network.named_parameters())
    name = list(broken)[5]
    with torch.no_grad():
        broken[name].view(-1)[0] = math.inf
    with pytest.raises(UserError, match=f"2 steps in a row were not finite: first of all the parameter {name}; "):
        trainer.run()


def test_a_gradient_that_is_not_finite_is_named(tiny_config):
    trainer = Trainer(DiffusionTask, tiny_config("training.max_nonfinite=1"), False, None, False)
    names = [name for name, _ in trainer.network.named_parameters()]
    chosen = dict(trainer.network.named_parameters())[names[7]]
    chosen.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(UserError, match=f"the gradient of the parameter {names[7]}; "):
        trainer.run()


def test_a_disk_that_fills_up_during_training(tiny_config, monkeypatch):
    original = checkpoints.write_file

    def write_file(path, content):
        if "step-000008" in str(path):
            raise OSError(28, "No space left on device")
        original(path, content)

    monkeypatch.setattr(checkpoints, "write_file", write_file)
    with pytest.raises(UserError, match=r"disk is full; the last good checkpoint is .*step-000004: make room"):
        train(DiffusionTask, tiny_config())
    monkeypatch.undo()
    assert lines(train(DiffusionTask, tiny_config(), resume=True))[-1]["step"] == 8


def test_the_pipeline_loads_while_it_is_replaced(tiny_config, monkeypatch):
    """The pipeline is loaded after every file operation of the replacement."""
    trainer = Trainer(DiffusionTask, tiny_config(), False, None, False)
    save_pipeline(trainer.folder, trainer.task.pipeline(trainer.ema.model))
    with torch.no_grad():
        for parameter in trainer.ema.model.parameters():
            parameter.add_(1)
    loads, original = [], files.os.replace

    def replace(source, target):
        original(source, target)
        if "pipeline" in str(target):
            loads.append(SashimiPipeline.from_pretrained(trainer.folder / "pipeline"))

    monkeypatch.setattr(files.os, "replace", replace)
    save_pipeline(trainer.folder, trainer.task.pipeline(trainer.ema.model))
    assert len(loads) >= 3
    expected, loaded = next(trainer.ema.model.parameters()), next(loads[-1].model.parameters())
    assert torch.equal(expected, loaded)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.path=null", "data.path is not set: .*clone https.*set data.path="),
        ("data.path=/nowhere/at/all", "/nowhere/at/all does not exist"),
        ("data.length=254", "multiples of 4 samples .*: 256 is the next"),
        ("data.pattern=null", "recordings have no labels"),
        ("data.speakers=speeker", "speakers names the field 'speeker', .*; did you mean 'speaker'"),
        ("sampling.scheduler=dim", "unknown scheduler 'dim', did you mean 'ddim'"),
        ("sampling.steps=500", "sampling.steps is 500: it must not exceed schedule.num_train_timesteps=200"),
        ("sampling.steps=29", "sampling.steps=29 does not fit .*: DDIMScheduler cannot divide 200 into 29 steps"),
        ("sampling.scheduler=diffwave-fast", "sampling.steps=2 does not fit .*: this fast schedule has 6 steps"),
        ("training.trackers=[tensorbord]", "training.trackers has 'tensorbord', did you mean 'tensorboard'"),
        ("training.trackers=[all]", "training.trackers has 'all': expected some of .*tensorboard, trackio, wandb"),
        ("model.parameterization=full", "parameterization"),
    ],
)
def test_impossible_settings_are_refused_before_training(tiny_config, override, expected, tmp_path):
    overrides = [override, "data.holdout=null"] if override == "data.pattern=null" else [override]
    with pytest.raises(UserError, match=expected):
        train(DiffusionTask, tiny_config(*overrides))
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_vocoder(tiny_config):
    pytest.importorskip("torchaudio", reason="needs torchaudio, which this torch build cannot import", exc_type=OSError)
    overrides = [
        "model.class_conditional=false",
        "model.mel_channels=4",
        "model.mel_upsample=[4, 8]",
        "data.random_shift=null",
    ]
    run = train(DiffusionTask, tiny_config(*overrides, "data.mel={n_fft: 64, f_max: 4000}", "training.steps=4"))
    pipeline = SashimiPipeline.from_pretrained(run / "pipeline")
    assert pipeline(mel=torch.zeros(1, 4, 8), num_inference_steps=2).audios.shape == (1, 1, 256)
    assert (run / "samples/step-000004/contact_sheet.png").exists()


def test_a_wavenet_without_classes_or_held_out_recordings(tiny):
    tree = tiny("data.pattern=null", "data.holdout=null", "data.splits=[1, 0, 0]", "training.steps=2")
    tree["model"] = {"name": "wavenet", "residual_channels": 4, "skip_channels": 4, "n_layers": 3, "dilation_cycle": 3}
    tree["model"] |= {"embedding_hidden": 8, "embedding_dim": 8}
    run = train(DiffusionTask, from_tree(DiffusionConfig, tree))
    assert not [line for line in lines(run) if "validation_loss" in line]
    assert SashimiPipeline.from_pretrained(run / "pipeline")(num_inference_steps=2).audios.shape == (1, 1, 256)


def test_tensorboard(tiny_config):
    pytest.importorskip("tensorboard")
    run = train(
        DiffusionTask, tiny_config("training.trackers=[tensorboard]", "training.steps=2", "sampling.num_samples=0")
    )
    assert list((run / "tensorboard").rglob("events.out.tfevents.*"))
    assert not (run / "samples").exists()


def test_a_run_ends_after_max_minutes(tiny_config):
    run = train(DiffusionTask, tiny_config("training.max_minutes=1e-6", "training.steps=1000"))
    assert [path.name for path in checkpoints.list_checkpoints(run)] == ["step-000001"]
    assert [line["step"] for line in lines(run) if "validation_loss" in line] == [1]
    longer = train(DiffusionTask, tiny_config("training.steps=3"), resume=True)
    assert lines(longer)[-1]["step"] == 3


def test_gradient_checkpointing_gives_the_same_run(tiny_config, tmp_path):
    stored = train(DiffusionTask, tiny_config(f"output_dir={tmp_path / 'stored'}"))
    trainer = Trainer(DiffusionTask, tiny_config("training.gradient_checkpointing=true"), False, None, False)
    assert trainer.network.is_gradient_checkpointing
    trainer.run()
    for one, other in zip(losses(trainer.folder), losses(stored), strict=True):
        assert one[:2] == pytest.approx(other[:2], rel=1e-4)


def test_a_network_without_gradient_checkpointing_is_refused(tiny_config, monkeypatch, tmp_path):
    monkeypatch.setattr(SashimiDenoiser, "_supports_gradient_checkpointing", False)
    with pytest.raises(UserError, match=r"gradient_checkpointing is true, but SashimiDenoiser does not support it"):
        train(DiffusionTask, tiny_config("training.gradient_checkpointing=true"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("label", ["z" * 200, "語" * 70])
def test_long_labels_name_samples(tiny_config, tmp_path, label):
    """A file name has at most 255 bytes, and an ideograph has three."""
    for name in (label, "b"):
        for index in range(2):
            soundfile.write(tmp_path / f"{name}_a_{index}.wav", np.full(300, 0.1), 8000)
    config = tiny_config(f"data.path={tmp_path}", "training.steps=1", "data.speakers=label")
    run = train(DiffusionTask, config)
    names = sorted(path.name for path in (run / "samples/step-000001").glob("*.wav"))
    assert any(label[:20] in name for name in names)
    assert all(len(name.encode()) < 150 for name in names)


def test_samples_that_fail_cost_no_training(tiny_config, monkeypatch):
    """The checkpoint is there, and the resumed run draws the samples that are missing."""

    def fail(*_):
        raise OSError(36, "File name too long")

    monkeypatch.setattr(DiffusionTask, "save_samples", fail)
    with pytest.raises(UserError, match=r"cannot write the samples: .*step-000004.*continue with --resume"):
        train(DiffusionTask, tiny_config())
    monkeypatch.undo()
    run = train(DiffusionTask, tiny_config(), resume=True)
    assert sorted(path.name for path in (run / "samples").iterdir()) == ["step-000004", "step-000008"]


def test_a_folder_whose_name_is_no_text(tiny_config, tmp_path, monkeypatch):
    """The card has the name of the run folder, which may be that of the working directory."""
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    monkeypatch.chdir(folder)
    train(DiffusionTask, tiny_config("output_dir=.", "training.steps=1", "sampling.num_samples=1"))
    assert r"# \udcff" in (folder / "pipeline/README.md").read_text()
