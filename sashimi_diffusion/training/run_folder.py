"""The folder of a run: what may be started or continued in it."""

from collections.abc import Iterable
from pathlib import Path

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import write_file
from sashimi_diffusion.training.checkpoints import list_checkpoints
from sashimi_diffusion.training.config import Config, RunConfig, check_same_run, from_tree, load_config, to_tree
from sashimi_diffusion.training.typed_yaml import apply_overrides, read_yaml_file, write_yaml

CONFIG = "config.yaml"


def config_of_command(
    kind: type[Config],
    file: str | Path | None,
    default_file: str | Path,
    overrides: Iterable[str] = (),
    resume: bool = False,
) -> Config:
    """The config of a run of ``kind`` that a command line asks for.

    Without ``file`` that is ``default_file``, or, when a run is resumed, what the run was started with; overrides apply
    in each case.

    Raises:
        UserError: as :func:`load_config`; a resumed run may not change its data, network or loss.
    """
    overrides = list(overrides)
    config = load_config(kind, file or default_file, overrides) if file or not resume else None
    if not resume:
        return config
    output_dir = _output_dir(kind, file or default_file, overrides)
    stored_file = Path(output_dir) / CONFIG
    if not stored_file.is_file():
        return config or load_config(kind, default_file, overrides)
    stored = from_tree(kind, read_yaml_file(stored_file))
    if config is None:
        config = from_tree(kind, apply_overrides(to_tree(stored), overrides))
        config.output_dir = output_dir
    for name in config.model.measured:  # when the run began
        if config.model.arguments.get(name, 1.0) is None:
            config.model.arguments[name] = stored.model.arguments[name]
    check_same_run(config, stored)
    return config


def _output_dir(kind: type[RunConfig], file: str | Path, overrides: list[str]) -> str:
    tree = apply_overrides(read_yaml_file(file), overrides)
    output_dir = tree.get("output_dir", kind().output_dir)
    if not isinstance(output_dir, str):
        raise UserError(f"output_dir must be text, not {output_dir!r}")
    return output_dir


def check_startable(run: Path, resume: bool) -> None:
    """Refuse to start anew where a run is.

    Raises:
        UserError: the folder holds a run (or is a file) and ``resume`` was not asked for.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"output_dir {run} is a file: name a folder")
    if not resume and ((run / CONFIG).exists() or list_checkpoints(run)):
        raise UserError(f"{run} already holds a run: continue it with --resume, or choose another output_dir=FOLDER")


def write_config(run: Path, config: RunConfig) -> None:
    """Write config.yaml."""
    run.mkdir(parents=True, exist_ok=True)
    write_file(run / CONFIG, write_yaml(to_tree(config)).encode())
