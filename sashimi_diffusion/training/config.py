"""Configuration of every training run: nested groups of settings, one YAML file per experiment.

A kind of run adds its own groups to :class:`RunConfig`. ``load_config(KIND, FILE, ["training.steps=1000"])`` reads a
file and applies overrides; :func:`to_tree` returns the plain dictionary that is written to the run folder as
config.yaml.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import pydantic
from pydantic import Field, ValidationError, field_validator, model_validator

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.model_config import ModelConfig
from sashimi_diffusion.training.settings import Settings, first_problem
from sashimi_diffusion.training.yaml_files import apply_overrides, read_yaml_file

Config = TypeVar("Config", bound="RunConfig")


class DataConfig(Settings):
    """The recordings to train on."""

    kind: Literal["speech_commands", "folder"] = Field(
        default="folder",
        description='"speech_commands" (ten digits of Speech Commands, official split) or "folder" (any recordings)',
    )
    path: str | None = Field(default=None, description="folder of the recordings")
    download: bool = Field(
        default=False, description="speech_commands only: download the data set into `path` if it is not there"
    )
    sample_rate: int = Field(default=16000, ge=1, description="in Hz; recordings of another rate are resampled")
    length: int = Field(default=16000, ge=1, description="samples of a training example")
    pattern: str | None = Field(
        default=None,
        description='folder only: fields in the file names, for instance "{label}_{speaker}_{index}"; null: the names '
        "of the sub-folders are the labels, if there are sub-folders",
    )
    where: dict[str, list[str | int]] = Field(
        default={},
        description="folder only: use only files whose field has one of these values, for instance {speaker: [theo]}",
    )
    holdout: dict[str, list[str | int]] | None = Field(
        default=None,
        description="folder only: validation files, by field and values, for instance {index: [0, 1]}; null: chosen "
        "by `splits`",
    )
    splits: list[float] = Field(
        default=[0.88, 0.06, 0.06], description="folder only: shares of the files for training, validation and test"
    )
    order: Literal["shuffled", "name"] = Field(
        default="shuffled",
        description='folder only: "shuffled": `splits` applies to the shuffled files of each class; "name": the first '
        "files are for training and the last for test, as papers split music data sets",
    )
    random_shift: int | None = Field(
        default=0,
        ge=0,
        description="largest random shift of the start, in samples: of a short recording in its window, of the window "
        "in a long recording; 0: none; null: any position",
    )
    cache_dir: str | None = Field(default=None, description="folder for decoded audio; null: the user's cache folder")


class OptimizerConfig(Settings):
    """The optimizer and the learning rate over the run."""

    name: Literal["adamw", "sgd", "muon"] = Field(
        default="adamw",
        description='"adamw"; "sgd" with momentum; or "muon" for the weight matrices and AdamW for everything else, '
        "at the same learning rates: often fewer steps to the same loss",
    )
    lr: float = Field(default=2e-4, gt=0, description="peak learning rate")
    ssm_lr: float = Field(
        default=1e-3,
        gt=0,
        description="peak learning rate of the state-space parameters, which are sensitive; limited to 1e-3",
    )
    weight_decay: float = Field(
        default=0.0, description="of weight matrices; state-space parameters, biases and norms have none"
    )
    betas: list[float] = Field(default=[0.9, 0.999], description="of AdamW")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="of SGD (default 0.9) and Muon (0.95 recommended)")
    warmup_steps: int = Field(default=0, ge=0, description="the learning rate rises linearly from 0 over these steps")
    decay: Literal["constant", "cosine", "plateau"] = Field(
        default="constant",
        description='"constant"; "cosine": to 0 at the end of `training.steps` or `training.max_minutes`, whichever is '
        'first; "plateau": multiplied by `plateau_factor` after more than `plateau_patience` validations in a row '
        "without a lower loss (by at least 0.01 %)",
    )
    plateau_factor: float = Field(default=0.2, ge=0, lt=1, description='factor of decay "plateau"')
    plateau_patience: int = Field(default=20, ge=0, description='validations of decay "plateau"')
    gradient_clip: float | None = Field(
        default=1.0, gt=0, description="largest norm of the whole gradient; null: no clipping"
    )

    @field_validator("betas")
    @classmethod
    def _check_betas(cls, value: list[float]) -> list[float]:
        if len(value) != 2 or not all(0 <= beta < 1 for beta in value):
            raise ValueError("it must be two numbers, each at least 0 and below 1")
        return value


class TrainingConfig(Settings):
    """The length of a run, the size of its batches, and when it writes what."""

    steps: int = Field(default=10000, ge=1, description="optimizer steps of the whole run")
    max_minutes: float | None = Field(
        default=None,
        gt=0,
        description="end the run after this many minutes of training steps if it has not reached `steps`; the last "
        "step then depends on the machine; null: no limit",
    )
    batch_size: int = Field(default=16, ge=1, description="examples per process and accumulation step")
    gradient_accumulation: int = Field(default=1, ge=1, description="batches per optimizer step")
    gradient_checkpointing: bool = Field(
        default=False,
        description="recompute activations in the backward pass instead of storing them: less memory, more time",
    )
    mixed_precision: Literal["fp32", "bf16"] | None = Field(
        default=None, description="null: the setting of `accelerate launch`"
    )
    cpu_threads: int | None = Field(
        default=None, ge=1, description="threads of each process on a CPU; null: all cores, shared among the processes"
    )
    ema_decay: float = Field(
        default=0.9995,
        ge=0,
        lt=1,
        description="decay of the averaged weights, which validation, samples and the pipeline use; it starts lower, "
        "for short runs; 0: no averaging",
    )
    log_every: int = Field(default=10, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: int = Field(
        default=1000, ge=1, description="steps between checkpoints; the last step always has one"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="number of newest checkpoints to keep")
    validate_every: int = Field(default=1000, ge=0, description="steps between validations; 0: never")
    validation_examples: int = Field(
        default=512, ge=1, description="largest number of held-out examples to validate on, spread evenly over them"
    )
    sample_every: int | None = Field(
        default=None, ge=0, description="steps between sets of samples; null: at every checkpoint; 0: never"
    )
    max_nonfinite: int = Field(
        default=10, ge=1, description="stop after this many steps in a row without a finite loss and gradient"
    )
    trackers: list[str] = Field(
        default=["tensorboard"],
        description="trackers of Accelerate in addition to metrics.jsonl; tensorboard is ignored if not installed",
    )


class RunConfig(Settings):
    """Configuration of a training run.

    A resumed run may not change the groups named in ``fixed``: they determine its batches, network and loss.
    """

    fixed: ClassVar[tuple[str, ...]] = ("seed", "model", "data")

    seed: int = Field(default=0, ge=0, description="of all random numbers of the run")
    output_dir: str = Field(default="runs/run", description="the run folder")
    model: ModelConfig
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)

    @model_validator(mode="after")
    def _check_plateau(self) -> "RunConfig":
        if self.optimizer.decay == "plateau" and not self.training.validate_every:
            raise UserError("optimizer.decay=plateau watches validations, but training.validate_every is 0: set it")
        return self


def load_config(kind: type[Config], file: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Return the config of a YAML file with ``key.sub=value`` overrides.

    Raises:
        UserError: unreadable file, unknown key (the message suggests one), wrong type or value out of range.
    """
    return from_tree(kind, apply_overrides(read_yaml_file(file) if file is not None else {}, overrides))


def from_tree(kind: type[Config], tree: dict) -> Config:
    """Return the config of a nested dictionary; raise :class:`UserError` as :func:`load_config` does."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise first_problem(error, kind, tree) from None


def to_tree(config: RunConfig) -> dict[str, Any]:
    """Return the nested dictionary that :func:`from_tree` reads back."""
    return config.model_dump()


def write_schema(kind: type[RunConfig]) -> str:
    """Return the JSON schema of a config, with which editors complete and check its YAML files."""
    schema = {"$comment": f"written with pydantic {pydantic.VERSION}", **kind.model_json_schema()}
    return json.dumps(schema, indent=1) + "\n"


def with_measured(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy of ``config`` in which ``values`` replace measured arguments of the network that are null."""
    missing = {name for name in config.model.measured if config.model.argument(name) is None}
    model = config.model.model_copy(update={name: values[name] for name in missing & values.keys()})
    return config.model_copy(update={"model": model})


def check_same_run(config: RunConfig, stored: RunConfig) -> None:
    """Check that a run may continue with other settings: its batches, network and loss must stay the same.

    Raises:
        UserError: names the first key that differs and must not.
    """
    new, old = _fixed_settings(config), _fixed_settings(stored)
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if before != after:
            raise UserError(
                f"{name} is {after!r}, but the run in {config.output_dir} was started with {before!r}: resume with "
                f"{name}={before!r}, or start again in another output_dir"
            )


def _fixed_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that a resumed run may not change, by their full names."""
    tree = to_tree(config)
    settings: dict[str, Any] = {}
    for section in config.fixed:
        own = tree[section]
        settings |= _named(own, f"{section}.") if isinstance(own, dict) else {section: own}
    return settings


def _named(group: dict, prefix: str) -> dict[str, Any]:
    """Return the settings of a group by their full names, without the places of the data, which may be moved."""
    settings: dict[str, Any] = {}
    for key, value in group.items():
        if isinstance(value, dict) and value and all(isinstance(part, dict) for part in value.values()):
            for name, part in value.items():
                settings |= _named(part, f"{prefix}{key}.{name}.")
        elif key not in ("path", "cache_dir", "download"):
            settings[prefix + key] = value
    return settings
