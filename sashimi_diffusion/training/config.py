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

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import printable
from sashimi_diffusion.training.data_config import without_settings_of_replaced
from sashimi_diffusion.training.model_config import ModelConfig
from sashimi_diffusion.training.reporting import CardConfig, TrackingConfig
from sashimi_diffusion.training.settings import (
    PositiveFinite,
    Seed,
    Settings,
    Text,
    first_problem,
    read_overrides,
)
from sashimi_diffusion.training.yaml_files import apply_overrides, read_yaml_file

Config = TypeVar("Config", bound="RunConfig")

MAX_STEPS = 1_000_000_000
"""At a hundred steps per second, they take four months. The longest published run has a million steps."""
MAX_MINUTES = 10_000_000
"""19 years."""
MAX_BATCH = 65_536
"""The examples of a batch are in memory at the same time."""
MAX_SAMPLES = 10_000
"""The samples drawn during training are in memory at the same time, and on one contact sheet."""


class OptimizerConfig(Settings):
    """The optimizer and the learning rate over the run."""

    name: Literal["adamw", "sgd", "muon"] = Field(
        default="adamw",
        description='"adamw"; "sgd" with momentum; or "muon" for the weight matrices with AdamW for everything else, '
        "which often needs fewer steps to the same loss, at the same learning rates",
    )
    lr: PositiveFinite = Field(default=2e-4, description="peak learning rate")
    ssm_lr: PositiveFinite = Field(
        default=1e-3,
        description="peak learning rate of the state-space parameters dt, A and B; values above 1e-3 act as 1e-3",
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        le=1000,  # at any useful learning rate, it would erase the weights in a few steps
        description="weight decay of the weight matrices; state-space parameters, biases and norms have none",
    )
    betas: list[float] = Field(default=[0.9, 0.999], description="betas of AdamW")
    momentum: float = Field(
        default=0.9, ge=0, lt=1, description="momentum of SGD, and of Muon, for which 0.95 is recommended"
    )
    warmup_steps: int = Field(
        default=0, ge=0, le=MAX_STEPS, description="the learning rate rises linearly from 0 over these steps"
    )
    decay: Literal["constant", "cosine", "plateau"] = Field(
        default="constant",
        description='"constant"; "cosine": to 0 at the end of `training.steps` or `training.max_minutes`, whichever is '
        'first; "plateau": multiplied by `plateau_factor` after more than `plateau_patience` validations in a row that '
        "do not lower the loss by at least 0.01 %",
    )
    plateau_factor: float = Field(default=0.2, ge=0, lt=1, description='factor of decay "plateau"')
    plateau_patience: int = Field(default=20, ge=0, le=MAX_STEPS, description='validations of decay "plateau"')
    gradient_clip: PositiveFinite | None = Field(
        default=1.0, description="largest 2-norm of the whole gradient; null: no clipping"
    )

    @field_validator("betas")
    @classmethod
    def _check_betas(cls, value: list[float]) -> list[float]:
        if len(value) != 2 or not all(0 <= beta < 1 for beta in value):
            raise ValueError("it must be two numbers, each at least 0 and below 1")
        return value


class TrainingConfig(Settings):
    """The length of a run, the size of its batches, and when it writes what."""

    steps: int = Field(default=10000, ge=1, le=MAX_STEPS, description="optimizer steps of the whole run")
    max_minutes: float | None = Field(
        default=None,
        gt=0,
        le=MAX_MINUTES,
        description="largest time spent in optimizer steps, in minutes; the number of steps then depends on the "
        "machine; null: no limit",
    )
    batch_size: int = Field(default=16, ge=1, le=MAX_BATCH, description="examples per process and accumulation step")
    gradient_accumulation: int = Field(default=1, ge=1, le=MAX_BATCH, description="batches per optimizer step")
    gradient_checkpointing: bool = Field(
        default=False,
        description="recompute activations in the backward pass instead of storing them: less memory, more time",
    )
    mixed_precision: Literal["fp32", "bf16"] | None = Field(
        default=None, description="null: the setting of `accelerate launch`"
    )
    cuda_graph: bool | Literal["auto"] = Field(
        default="auto",
        description="CUDA only: record the whole optimizer step as a CUDA graph and replay it, which takes less time "
        'of the host; "auto": where it is possible; true: an error where it is not',
    )
    compile: bool = Field(
        default=False,
        description="compile the blocks of the network with torch.compile, which needs a compiler and some minutes",
    )
    cpu_threads: int | None = Field(
        default=None,
        ge=1,
        le=4096,  # no computer has more cores, and the system may refuse more threads
        description="threads of each process on a CPU; null: all cores, shared among the processes",
    )
    ema_decay: float = Field(
        default=0.9995,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights, which validation, samples and the pipeline use; the "
        "first steps use a lower decay; 0: no averaging",
    )
    log_every: int = Field(
        default=10,
        ge=1,
        le=1_000_000,  # the results of so many steps are kept on the device
        description="steps between lines of metrics.jsonl",
    )
    checkpoint_every: int = Field(
        default=1000, ge=1, le=MAX_STEPS, description="steps between checkpoints; the last step always has one"
    )
    keep_checkpoints: int = Field(default=2, ge=1, le=MAX_STEPS, description="number of newest checkpoints to keep")
    validate_every: int = Field(default=1000, ge=0, le=MAX_STEPS, description="steps between validations; 0: never")
    validation_examples: int = Field(
        default=512, ge=1, le=MAX_STEPS, description="largest number of held-out examples per validation, evenly spaced"
    )
    sample_every: int | None = Field(
        default=None,
        ge=0,
        le=MAX_STEPS,
        description="steps between sets of samples; null: at every checkpoint; 0: never",
    )
    max_nonfinite: int = Field(
        default=10,
        ge=1,
        le=MAX_STEPS,
        description="stop after this many steps in a row without a finite loss and gradient",
    )
    trackers: list[str] = Field(
        default=["tensorboard"],
        description="trackers of Accelerate in addition to metrics.jsonl; tensorboard is ignored if not installed",
    )


class RunConfig(Settings):
    """Configuration of a training run.

    A resumed run may not change the groups named in ``fixed`` and the settings of ``training`` named in
    ``fixed_training``: they determine its batches, network and loss.
    """

    fixed: ClassVar[tuple[str, ...]] = ("seed", "model", "data")
    automatic: ClassVar[tuple[str, ...]] = ()
    """Settings for which null is a value that the data determine."""
    fixed_training: ClassVar[tuple[str, ...]] = ()

    seed: Seed = Field(default=0, description="seed of all random numbers of the run")
    output_dir: Text = Field(default="runs/run", description="the run folder")
    model: ModelConfig
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    card: CardConfig = Field(default_factory=CardConfig)

    @model_validator(mode="after")
    def _check_plateau(self) -> "RunConfig":
        if self.optimizer.decay == "plateau" and not self.training.validate_every:
            raise UserError(
                "optimizer.decay=plateau needs validations, but training.validate_every is 0: set it to 1 or more"
            )
        return self


def load_config(kind: type[Config], file: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Return the config of a YAML file with ``key.sub=value`` overrides.

    Args:
        kind: the class of the config.
        file: the YAML file; None: only defaults and overrides.
        overrides: settings that replace those of the file. If they replace the pattern of the file names or the kind of
            the data, the settings of the file that belong to it are left out, see
            :func:`sashimi_diffusion.training.data_config.without_settings_of_replaced`.

    Raises:
        UserError: unreadable file, unknown key (the message suggests one), wrong type or value out of range.
    """
    tree = apply_overrides(read_yaml_file(file) if file is not None else {}, overrides)
    return from_tree(kind, without_settings_of_replaced(tree))


def from_tree(kind: type[Config], tree: dict) -> Config:
    """Return the config of a nested dictionary; raise :class:`UserError` as :func:`load_config` does."""
    tree = read_overrides(kind, tree)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise first_problem(error, kind, tree) from None


def to_tree(config: RunConfig) -> dict[str, Any]:
    """Return a config as a nested dictionary, which :func:`from_tree` reads."""
    return config.model_dump()


def write_schema(kind: type[RunConfig]) -> str:
    """Return the JSON schema of a config as text; editors use it to complete and check YAML files."""
    schema = {"$comment": f"written with pydantic {pydantic.VERSION}", **kind.model_json_schema()}
    return json.dumps(schema, indent=1) + "\n"


def with_measured(config: Config, values: Mapping[str, Any]) -> Config:
    """Return a copy of ``config`` with ``values`` in place of measured arguments of the network that are null.

    Args:
        config: configuration of a run.
        values: measured values by the names of the arguments; other names are ignored.
    """
    missing = {name for name in config.model.measured if config.model.argument(name) is None}
    model = config.model.model_copy(update={name: values[name] for name in missing & values.keys()})
    return config.model_copy(update={"model": model})


def check_same_run(config: RunConfig, stored: RunConfig) -> None:
    """Check that a run that started with ``stored`` may continue with ``config``.

    The settings that determine its batches, network and loss must be equal.

    Raises:
        UserError: one of them differs; the message names the first.
    """
    new, old = _fixed_settings(config), _fixed_settings(stored)
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if before != after and not (after is None and name in config.automatic):
            raise UserError(
                f"{printable(name)} is {short_form(after)}, but the run in {printable(config.output_dir)} was started "
                f"with {short_form(before)}: resume with {printable(name)}={_as_override(before)}, or start again in "
                "another output_dir"
            )


def changed_settings(config: RunConfig, stored: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ from those of a run, each as "NAME: OLD -> NEW".

    Args:
        config: the config with which the run is resumed.
        stored: content of its config.yaml. Settings that it lacks, because an older version wrote it, are left out.
    """
    old, new = flat_settings(stored), flat_settings(to_tree(config))
    names = [name for name in new if name in old and old[name] != new[name] and name != "output_dir"]
    return [f"{name}: {short_form(old[name])} -> {short_form(new[name])}" for name in names]


def flat_settings(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return all settings of nested groups by their full names: {"a": {"b": 1}} as {"a.b": 1}."""
    settings: dict[str, Any] = {}
    for key, value in tree.items():
        settings |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return settings


def _as_override(value: Any) -> str:
    """Return a value as an override has it."""
    return printable(value) if isinstance(value, str) else json.dumps(value)


def _fixed_settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that a resumed run may not change, by their full names."""
    tree = to_tree(config)
    settings: dict[str, Any] = {}
    for section in config.fixed:
        value = tree[section]
        settings |= _named(value, f"{section}.") if isinstance(value, dict) else {section: value}
    return settings | {f"training.{name}": tree["training"][name] for name in config.fixed_training}


def _named(group: dict, prefix: str) -> dict[str, Any]:
    """Return the settings of a group by their full names, without the paths of the data, because data may be moved."""
    settings: dict[str, Any] = {}
    for key, value in group.items():
        # A dictionary of groups, such as the sources of a classifier: each source has paths.
        if isinstance(value, dict) and value and all(isinstance(part, dict) for part in value.values()):
            for name, part in value.items():
                settings |= _named(part, f"{prefix}{key}.{name}.")
        elif key not in ("path", "more_paths", "cache_dir", "download"):
            settings[prefix + key] = value
    return settings
