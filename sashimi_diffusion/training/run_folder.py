"""The folder of a run: config.yaml, measured.json, metrics.jsonl and pipeline/."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import files_written_beside, folder_written_beside, write_file
from sashimi_diffusion.training.checkpoints import list_checkpoints
from sashimi_diffusion.training.config import (
    Config,
    RunConfig,
    check_same_run,
    from_tree,
    load_config,
    to_tree,
    with_measured,
)
from sashimi_diffusion.training.yaml_files import apply_overrides, read_yaml_file, write_yaml

CONFIG = "config.yaml"
MEASURED = "measured.json"


def config_of_command(
    kind: type[Config],
    file: str | Path | None,
    default_file: str | Path,
    overrides: Iterable[str] = (),
    resume: bool = False,
) -> Config:
    """Return the config of a run for the arguments of a command line.

    It is read from ``file``; without ``file`` from the run folder if the run is resumed, and otherwise from
    ``default_file``. The overrides are applied in each case.

    Args:
        kind: the class of the config.
        file: the YAML file of ``--config``, or None.
        default_file: the YAML file of the recipe.
        overrides: settings that replace those of the file, as ``key.sub=value``.
        resume: whether a run is resumed; its folder is the ``output_dir`` of these files and overrides.

    Raises:
        UserError: as :func:`load_config`; or the settings of a resumed run would change its data, network or loss.
    """
    overrides = list(overrides)
    file_config = load_config(kind, file or default_file, overrides) if file or not resume else None
    if file_config is not None and not resume:
        return file_config
    run = Path(_output_dir(kind, file or default_file, overrides))
    if not (run / CONFIG).is_file():
        return file_config or load_config(kind, default_file, overrides)
    stored = from_tree(kind, read_yaml_file(run / CONFIG))
    config = file_config or from_tree(kind, apply_overrides(to_tree(stored), overrides) | {"output_dir": str(run)})
    # Older versions wrote measured values to config.yaml. They remain valid where the new config has null.
    config = with_measured(config, {name: stored.model.argument(name) for name in stored.model.measured})
    measured = read_measured(run)
    check_same_run(with_measured(config, measured), with_measured(stored, measured))
    return config


def _output_dir(kind: type[RunConfig], file: str | Path, overrides: list[str]) -> str:
    tree = apply_overrides(read_yaml_file(file), overrides)
    output_dir = tree.get("output_dir", kind.model_fields["output_dir"].default)
    if not isinstance(output_dir, str):
        raise UserError(f"output_dir must be text, not {output_dir!r}")
    return output_dir


def check_startable(run: Path, resume: bool) -> None:
    """Check that a run may start, or resume, in the folder ``run``.

    Raises:
        UserError: ``run`` is a file, or it contains a run and ``resume`` is false.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"output_dir {run} is a file, not a folder: set another output_dir")
    if not resume and ((run / CONFIG).exists() or list_checkpoints(run)):
        raise UserError(f"{run} already holds a run: continue it with --resume, or choose another output_dir=FOLDER")


def write_config(run: Path, config: RunConfig) -> None:
    """Write config.yaml."""
    run.mkdir(parents=True, exist_ok=True)
    write_file(run / CONFIG, write_yaml(to_tree(config)).encode())


def write_measured(run: Path, values: Mapping[str, float]) -> None:
    """Write the arguments of the network that were measured on the training data to measured.json."""
    run.mkdir(parents=True, exist_ok=True)
    write_file(run / MEASURED, (json.dumps(dict(values), indent=1) + "\n").encode())


def read_measured(run: Path) -> dict[str, Any]:
    """Return the values of measured.json, or an empty dictionary if there is no such file.

    Raises:
        UserError: measured.json is damaged.
    """
    file = run / MEASURED
    try:
        return dict(json.loads(file.read_text())) if file.is_file() else {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error}): restore it, or start again in another output_dir") from None


class MetricsFile:
    """The file metrics.jsonl: one JSON object per line, complete up to the last step even if the process is killed.

    Args:
        path: the file; it is created if it does not exist.
        last_step: lines of later steps, and a line that a killed process did not finish, are removed, so that the file
            of a resumed run equals that of an uninterrupted one.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _is_up_to(line, last_step)]
            write_file(path, "".join(line + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: dict) -> None:
        """Append one line and flush it to the operating system, so that it survives a killed process."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_up_to(line: str, last_step: int) -> bool:
    """Return whether a line is complete and belongs to ``last_step`` or an earlier step."""
    try:
        return json.loads(line)["step"] <= last_step
    except (json.JSONDecodeError, KeyError, TypeError):
        return False


class Saveable(Protocol):
    """A pipeline, or any object that saves itself like one."""

    def save_pretrained(self, folder: Path) -> None:
        """Write all files into ``folder``."""


def save_pipeline(run: Path, pipeline: Saveable) -> None:
    """Write or update ``run``/pipeline, which can be loaded with from_pretrained at any time.

    A new folder appears with all its files at once. In an existing folder each file is replaced in one operation. Only
    weights and metrics change within a run, so old and new files fit together in between.
    """
    target = run / "pipeline"
    with files_written_beside(target) if target.exists() else folder_written_beside(target) as folder:
        pipeline.save_pretrained(folder)
