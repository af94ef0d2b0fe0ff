"""What every training run can be told: nested dataclasses, one YAML file per experiment.

A kind of run adds its own groups to :class:`RunConfig`. ``load_config(KIND, FILE, ["training.steps=1000"])`` reads a
file and applies overrides; :func:`to_tree` gives the plain dictionary that is written to the run folder as config.yaml.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from diffusers import ModelMixin

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.typed_yaml import apply_overrides, build, check_arguments, read_yaml_file

Config = TypeVar("Config", bound="RunConfig")


@dataclass
class ModelConfig:
    """Which network, and its constructor's arguments: in YAML they stand side by side under ``model``.

    Args:
        name: of the network; a kind of run says which there are.
        arguments: the rest.
    """

    # Arguments of the constructors that the data decide, and those that may be null though the constructor has no null.
    from_data: ClassVar[tuple[str, ...]] = ("sample_rate", "sample_size")
    measured: ClassVar[tuple[str, ...]] = ()
    networks: ClassVar[Mapping[str, type[ModelMixin]]]

    name: str = "sashimi"
    arguments: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_tree(cls, tree: Any, prefix: str) -> "ModelConfig":
        """The inverse of :meth:`to_tree`; errors name the nearest argument of the network's constructor."""
        tree = dict(tree or {})
        names = {entry.name for entry in dataclasses.fields(cls)} - {"arguments"}
        config = build(cls, {key: tree.pop(key) for key in names & tree.keys()}, prefix)
        given = {key: value for key, value in tree.items() if not (key in cls.measured and value is None)}
        check_arguments(config.network_class.__init__, given, prefix, cls.from_data)
        config.arguments = tree
        return config

    @property
    def network_class(self) -> type[ModelMixin]:
        """The class that ``name`` stands for."""
        return self.networks[self.name]

    def to_tree(self) -> dict:
        """As it stands in YAML."""
        own = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        arguments = own.pop("arguments")
        return own | arguments


@dataclass
class DataConfig:
    """What to train on.

    Args:
        kind: "speech_commands" (the ten digits of Speech Commands, its official split) or "folder" (any recordings).
        path: the folder.
        download: speech_commands only: fetch the data set into ``path`` when it is not there.
        sample_rate: Hz; recordings of another rate are resampled.
        length: samples of a training example.
        pattern: folder only: file names as fields, for instance "{label}_{speaker}_{index}"; null: the labels are the
            names of the sub-folders, or there are none.
        where: folder only: keep the files whose field has one of these values, for instance {speaker: [theo]}.
        holdout: folder only: the validation files, by field and values, for instance {index: [0, 1]}; null: a share of
            the files chosen by ``splits``.
        splits: folder only: shares of files for training, validation and test.
        order: folder only: how ``splits`` takes the files: "shuffled", class by class, or "name": the first are for
            training, the last for test, as music data sets are split in the papers.
        random_shift: how far the start may move, in samples: where in the window a short recording begins, where in a
            long one the window begins. 0: never; null: anywhere.
        cache_dir: where decoded audio is kept; null: the data module's own place.
    """

    least: ClassVar[dict[str, int]] = {"sample_rate": 1, "length": 1, "random_shift": 0}

    kind: Literal["speech_commands", "folder"] = "folder"
    path: str | None = None
    download: bool = False
    sample_rate: int = 16000
    length: int = 16000
    pattern: str | None = None
    where: dict[str, list[str | int]] = field(default_factory=dict)
    holdout: dict[str, list[str | int]] | None = None
    splits: list[float] = field(default_factory=lambda: [0.88, 0.06, 0.06])
    order: Literal["shuffled", "name"] = "shuffled"
    random_shift: int | None = 0
    cache_dir: str | None = None


@dataclass
class OptimizerConfig:
    """The optimiser and its learning rate over the run.

    Args:
        name: "adamw"; "sgd" with momentum; or "muon" for the weight matrices and AdamW for everything else, at the same
            rates: often fewer steps for the same loss.
        lr: peak learning rate.
        ssm_lr: that of the state-space parameters, never above 1e-3: they are sensitive.
        weight_decay: of weight matrices; state-space parameters, biases and norms have none.
        betas: of AdamW.
        momentum: of SGD (0.9 is usual) and Muon (0.95).
        warmup_steps: the rate rises linearly from 0 over so many steps.
        decay: "constant"; "cosine" (to 0 at the end, of ``training.steps`` or ``training.max_minutes``, whichever is
            nearer); or "plateau": times ``plateau_factor`` after more than ``plateau_patience`` validations in a row
            without a better loss (by a ten-thousandth of it).
        gradient_clip: largest norm of the whole gradient; null: not clipped.
    """

    name: Literal["adamw", "sgd", "muon"] = "adamw"
    lr: float = 2e-4
    ssm_lr: float = 1e-3
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    momentum: float = 0.9
    warmup_steps: int = 0
    decay: Literal["constant", "cosine", "plateau"] = "constant"
    plateau_factor: float = 0.2
    plateau_patience: int = 20
    gradient_clip: float | None = 1.0


@dataclass
class TrainingConfig:
    """How long, how much at once, and what is written when.

    Args:
        steps: optimiser steps of the whole run.
        max_minutes: end the run after so many minutes of training steps, if it has not reached ``steps`` by then; null:
            only ``steps`` counts. Where such a run stops depends on the machine.
        batch_size: examples per process and accumulation step.
        gradient_accumulation: batches per optimiser step.
        mixed_precision: "fp32" or "bf16"; null: what ``accelerate launch`` says.
        cpu_threads: threads of each process on a CPU; null: all cores, shared among the processes.
        ema_decay: of the averaged weights that validation, samples and the pipeline use; it starts lower, so short
            runs work too. 0: no averaging.
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
    max_minutes: float | None = None
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
class RunConfig:
    """A whole training run.

    Groups named in ``fixed`` may not change while a run is continued: they make its batches, its network and its loss.
    """

    fixed: ClassVar[tuple[str, ...]] = ("seed", "model", "data")

    seed: int = 0
    output_dir: str = "runs/run"
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def check(self) -> None:
        """Raise UserError for a number no run can use."""
        require_at_least(
            self,
            {
                "training.steps": 1,
                "training.batch_size": 1,
                "training.gradient_accumulation": 1,
                "training.cpu_threads": 1,
                "training.log_every": 1,
                "training.checkpoint_every": 1,
                "training.keep_checkpoints": 1,
                "training.validate_every": 0,
                "training.validation_examples": 1,
                "training.sample_every": 0,
                "training.max_nonfinite": 1,
                "optimizer.warmup_steps": 0,
                "optimizer.plateau_patience": 0,
                "seed": 0,
            },
        )
        require_at_least(self, {f"data.{name}": minimum for name, minimum in self.data.least.items()})
        require_above_zero(
            self, ["optimizer.lr", "optimizer.ssm_lr", "optimizer.gradient_clip", "training.max_minutes"]
        )
        require_share(self, ["training.ema_decay", "optimizer.plateau_factor", "optimizer.momentum"])
        if self.optimizer.decay == "plateau" and not self.training.validate_every:
            raise UserError("optimizer.decay=plateau watches validations, but training.validate_every is 0: set it")


def load_config(kind: type[Config], file: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """The config a YAML file and ``key.sub=value`` overrides make.

    Raises:
        UserError: unreadable file, unknown key (the nearest valid one is named), wrong type or value out of range.
    """
    return from_tree(kind, apply_overrides(read_yaml_file(file) if file is not None else {}, overrides))


def from_tree(kind: type[Config], tree: dict) -> Config:
    """The config a nested dictionary holds; raises :class:`UserError` as :func:`load_config` does."""
    config = build(kind, tree)
    config.check()
    return config


def to_tree(config: RunConfig) -> dict:
    """The nested dictionary that :func:`from_tree` reads back."""
    tree = dataclasses.asdict(config)
    tree["model"] = config.model.to_tree()
    return tree


def check_same_run(config: RunConfig, stored: RunConfig) -> None:
    """A run may be continued with other settings only where they leave its batches, its network and its loss alone.

    Raises:
        UserError: names the first key that differs and may not.
    """
    new, old = _fixed_settings(config), _fixed_settings(stored)
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if before != after:
            raise UserError(
                f"{name} is {after!r}, but the run in {config.output_dir} was started with {before!r}: resume with "
                f"{name}={before!r}, or start anew in another output_dir"
            )


def _fixed_settings(config: RunConfig) -> dict[str, Any]:
    """What may not change while a run is continued, by its full names."""
    tree = to_tree(config)
    settings = {}
    for section in config.fixed:
        own = tree[section]
        settings |= _named(own, f"{section}.") if isinstance(own, dict) else {section: own}
    return settings


def _named(group: dict, prefix: str) -> dict[str, Any]:
    """The settings of a group by their full names; where the data lie is left out: they themselves are compared."""
    settings = {}
    for key, value in group.items():
        if isinstance(value, dict) and value and all(isinstance(part, dict) for part in value.values()):
            for name, part in value.items():
                settings |= _named(part, f"{prefix}{key}.{name}.")
        elif key not in ("path", "cache_dir", "download"):
            settings[prefix + key] = value
    return settings


def require_at_least(config: RunConfig, least: Mapping[str, int]) -> None:
    """Raise UserError for a setting that is below its least value; null is no number and passes."""
    for name, minimum in least.items():
        value = _setting(config, name)
        if value is not None and value < minimum:
            raise UserError(f"{name} is {value}: it must be at least {minimum}")


def require_above_zero(config: RunConfig, names: Iterable[str]) -> None:
    """Raise UserError for a setting that is not above 0; null passes."""
    for name in names:
        value = _setting(config, name)
        if value is not None and not value > 0:
            raise UserError(f"{name} is {value}: it must be above 0")


def require_share(config: RunConfig, names: Iterable[str]) -> None:
    """Raise UserError for a setting outside of [0, 1)."""
    for name in names:
        value = _setting(config, name)
        if not 0 <= value < 1:
            raise UserError(f"{name} is {value}: it must be at least 0 and below 1")


def _setting(config: RunConfig, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), config)
