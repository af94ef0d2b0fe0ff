"""Everything a training run can be told: nested dataclasses, one YAML file per experiment.

``load_config(FILE, ["training.steps=1000"])`` reads a file and applies overrides; :func:`to_tree` gives the plain
dictionary that is written to the run folder as config.yaml.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.networks import model_class
from sashimi_diffusion.training.typed_yaml import apply_overrides, build, check_arguments, read_yaml_file

FILLED_FROM_DATA = ("in_channels", "out_channels", "sample_rate", "sample_size", "num_classes", "class_names")


@dataclass
class ModelConfig:
    """Which network, and its constructor's arguments: in YAML they stand side by side under ``model``.

    Args:
        name: "sashimi" (SashimiDenoiser) or "wavenet" (WaveNetDenoiser).
        class_conditional: whether the network is told the label; the number and names of classes come from the data.
        arguments: the rest. ``waveform_std: null`` means "measure it on the training data".
    """

    name: Literal["sashimi", "wavenet"] = "sashimi"
    class_conditional: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_tree(cls, tree: Any, prefix: str) -> "ModelConfig":
        """The inverse of :meth:`to_tree`; errors name the nearest argument of the network's constructor."""
        tree = dict(tree or {})
        own = {key: tree.pop(key) for key in ("name", "class_conditional") if key in tree}
        config = build(cls, own, prefix)
        constructor = model_class(config.name).__init__
        check_arguments(
            constructor, {k: v for k, v in tree.items() if (k, v) != ("waveform_std", None)}, prefix, FILLED_FROM_DATA
        )
        config.arguments = tree
        return config

    def to_tree(self) -> dict:
        """As it stands in YAML."""
        return {"name": self.name, "class_conditional": self.class_conditional, **self.arguments}


@dataclass
class MelConfig:
    """The spectrogram that conditions a vocoder; the hop is the product of ``model.mel_upsample``, the bands
    ``model.mel_channels``."""

    n_fft: int = 1024
    f_min: float = 0.0
    f_max: float = 8000.0


@dataclass
class DataConfig:
    """What to train on.

    Args:
        kind: "speech_commands" (the ten digits of Speech Commands, its official split) or "folder" (any recordings).
        path: the folder.
        download: speech_commands only: fetch the data set into ``path`` when it is not there.
        sample_rate: Hz; recordings of another rate are resampled.
        length: samples of a training example; shorter recordings are padded with zeros.
        pattern: folder only: file names as fields, for instance "{label}_{speaker}_{index}"; null: the labels are the
            names of the sub-folders, or there are none.
        where: folder only: keep the files whose field has one of these values, for instance {speaker: [theo]}.
        holdout: folder only: the validation files, by field and values, for instance {index: [0, 1]}; null: a share of
            the files chosen by ``splits``.
        splits: folder only: shares of files for training, validation and test.
        normalize_rms: scale each recording to this root mean square (as a whole, before it is cut); null: as it is.
        random_shift: how far the start may move, in samples: where in the window a short recording begins, where in a
            long one the window begins. 0: never; null: anywhere.
        gain_db: random gain, uniform within plus or minus so many decibels.
        cache_dir: where decoded audio is kept; null: the data module's own place.
        mel: the conditioning spectrogram of a vocoder.
    """

    kind: Literal["speech_commands", "folder"] = "folder"
    path: str | None = None
    download: bool = False
    sample_rate: int = 16000
    length: int = 16000
    pattern: str | None = None
    where: dict[str, list[str | int]] = field(default_factory=dict)
    holdout: dict[str, list[str | int]] | None = None
    splits: list[float] = field(default_factory=lambda: [0.88, 0.06, 0.06])
    normalize_rms: float | None = None
    random_shift: int | None = 0
    gain_db: float = 0.0
    cache_dir: str | None = None
    mel: MelConfig = field(default_factory=MelConfig)


@dataclass
class ScheduleConfig:
    """The diffusion: DiffWaveScheduler's arguments."""

    num_train_timesteps: int = 200
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"


@dataclass
class ObjectiveConfig:
    """The loss.

    Args:
        min_snr_gamma: gamma of Min-SNR weighting (Hang et al. 2023, arXiv 2303.09556); null: the plain mean square.
        label_dropout: share of the examples whose label is hidden, so that classifier-free guidance is possible.
    """

    min_snr_gamma: float | None = None
    label_dropout: float = 0.1


@dataclass
class OptimizerConfig:
    """AdamW and its learning rate over the run.

    Args:
        lr: peak learning rate.
        ssm_lr: that of the state-space parameters, never above 1e-3: they are sensitive.
        weight_decay: of weight matrices; state-space parameters, biases and norms have none.
        betas: of Adam.
        warmup_steps: the rate rises linearly from 0 over so many steps.
        decay: "constant" or "cosine" (to 0 at ``training.steps``).
        gradient_clip: largest norm of the whole gradient; null: not clipped.
    """

    lr: float = 2e-4
    ssm_lr: float = 1e-3
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    warmup_steps: int = 0
    decay: Literal["constant", "cosine"] = "constant"
    gradient_clip: float | None = 1.0


@dataclass
class TrainingConfig:
    """How long, how much at once, and what is written when.

    Args:
        steps: optimiser steps of the whole run.
        batch_size: examples per process and accumulation step.
        gradient_accumulation: batches per optimiser step.
        mixed_precision: "fp32" or "bf16"; null: what ``accelerate launch`` says.
        cpu_threads: threads of each process on a CPU; null: all cores, shared among the processes.
        ema_decay: of the averaged weights that validation, samples and the pipeline use; it starts lower, so short
            runs work too.
        log_every: steps between lines of metrics.jsonl.
        checkpoint_every: steps between checkpoints; there is always one at the end.
        keep_checkpoints: how many of the newest are kept.
        validate_every: steps between validations; 0: never.
        validation_examples: how many of the held-out examples at most, spread evenly over them.
        sample_every: steps between sets of samples; null: at every checkpoint; 0: never.
        max_nonfinite: stop after so many steps in a row without a finite loss and gradient.
        trackers: trackers of Accelerate beside metrics.jsonl; tensorboard is left out where it is not installed.
    """

    steps: int = 10000
    batch_size: int = 16
    gradient_accumulation: int = 1
    mixed_precision: Literal["fp32", "bf16"] | None = None
    cpu_threads: int | None = None
    ema_decay: float = 0.9995
    log_every: int = 10
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    validate_every: int = 1000
    validation_examples: int = 512
    sample_every: int | None = None
    max_nonfinite: int = 10
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])


@dataclass
class SamplingConfig:
    """The samples drawn while training.

    Args:
        num_samples: how many; a class-conditional model goes through its classes.
        steps: denoising steps.
        scheduler: name for ``create_scheduler``; null: the training schedule's own sampler.
        guidance_scale: of classifier-free guidance; 1: none.
        seed: of the noise.
    """

    num_samples: int = 8
    steps: int = 50
    scheduler: str | None = "ddim"
    guidance_scale: float = 1.0
    seed: int = 0


@dataclass
class TrainConfig:
    """A whole training run."""

    seed: int = 0
    output_dir: str = "runs/diffwave"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


def load_config(file: str | Path | None = None, overrides: Iterable[str] = ()) -> TrainConfig:
    """The config a YAML file and ``key.sub=value`` overrides make.

    Raises:
        UserError: unreadable file, unknown key (the nearest valid one is named), wrong type or value out of range.
    """
    return from_tree(apply_overrides(read_yaml_file(file) if file is not None else {}, overrides))


def from_tree(tree: dict) -> TrainConfig:
    """The config a nested dictionary holds; raises :class:`UserError` as :func:`load_config` does."""
    config = build(TrainConfig, tree)
    _check_ranges(config)
    return config


def to_tree(config: TrainConfig) -> dict:
    """The nested dictionary that :func:`from_tree` reads back."""
    tree = dataclasses.asdict(config)
    tree["model"] = config.model.to_tree()
    return tree


def _check_ranges(config: TrainConfig) -> None:
    """Raise UserError for a number no run can use."""
    training, optimizer, data = config.training, config.optimizer, config.data
    at_least = {
        "training.steps": (training.steps, 1),
        "training.batch_size": (training.batch_size, 1),
        "training.gradient_accumulation": (training.gradient_accumulation, 1),
        "training.cpu_threads": (training.cpu_threads, 1),
        "training.log_every": (training.log_every, 1),
        "training.checkpoint_every": (training.checkpoint_every, 1),
        "training.keep_checkpoints": (training.keep_checkpoints, 1),
        "training.validate_every": (training.validate_every, 0),
        "training.validation_examples": (training.validation_examples, 1),
        "training.sample_every": (training.sample_every, 0),
        "training.max_nonfinite": (training.max_nonfinite, 1),
        "optimizer.warmup_steps": (optimizer.warmup_steps, 0),
        "data.sample_rate": (data.sample_rate, 1),
        "data.length": (data.length, 1),
        "data.random_shift": (data.random_shift, 0),
        "data.gain_db": (data.gain_db, 0),
        "schedule.num_train_timesteps": (config.schedule.num_train_timesteps, 1),
        "sampling.num_samples": (config.sampling.num_samples, 0),
        "sampling.steps": (config.sampling.steps, 1),
        "seed": (config.seed, 0),
    }
    for name, (value, least) in at_least.items():
        if value is not None and value < least:
            raise UserError(f"{name} is {value}: it must be at least {least}")
    above_zero = {
        "optimizer.lr": optimizer.lr,
        "optimizer.ssm_lr": optimizer.ssm_lr,
        "optimizer.gradient_clip": optimizer.gradient_clip,
        "objective.min_snr_gamma": config.objective.min_snr_gamma,
        "data.normalize_rms": data.normalize_rms,
    }
    for name, value in above_zero.items():
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value}: it must be above 0")
    for name, value in {
        "objective.label_dropout": config.objective.label_dropout,
        "training.ema_decay": training.ema_decay,
    }.items():
        if not 0 <= value < 1:
            raise UserError(f"{name} is {value}: it must be at least 0 and below 1")


def check_same_run(config: TrainConfig, stored: TrainConfig) -> None:
    """A run may be continued with other settings only where they leave its batches, its network and its loss alone.

    Raises:
        UserError: names the first key that differs and may not.
    """
    new, old = to_tree(config), to_tree(stored)
    free_data = {"path", "cache_dir", "download"}  # the data themselves are compared, wherever they lie
    for section in ("seed", "model", "data", "schedule", "objective"):
        if section == "seed":
            pairs = {"seed": (old["seed"], new["seed"])}
        else:
            keys = [k for k in {**old[section], **new[section]} if section != "data" or k not in free_data]
            pairs = {f"{section}.{k}": (old[section].get(k), new[section].get(k)) for k in keys}
        for name, (before, after) in pairs.items():
            if before != after:
                raise UserError(
                    f"{name} is {after!r}, but the run in {config.output_dir} was started with {before!r}: resume with "
                    f"{name}={before!r}, or start anew in another output_dir"
                )
