"""The folder of a run: config.yaml, measured.json, metrics.jsonl and pipeline/."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import files_written_beside, folder_written_beside, write_file, writing
from sashimi_diffusion.paths import is_folder, kind, read_bytes, read_json, status
from sashimi_diffusion.strict_json import json_text
from sashimi_diffusion.terminal import printable
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
from sashimi_diffusion.training.settings import read_overrides
from sashimi_diffusion.training.yaml_files import apply_overrides, read_yaml_file, write_yaml

CONFIG = "config.yaml"
MEASURED = "measured.json"
METRICS = "metrics.jsonl"
_LARGEST_METRICS = 1 << 32


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
        default_file: the YAML file that is used without ``--config``.
        overrides: settings that replace those of the file, as ``key.sub=value``.
        resume: whether a run is resumed; its folder is the ``output_dir`` of these files and overrides.

    Raises:
        UserError: as :func:`load_config`; the run folder has no run and no ``file`` is given, or has a run of another
            kind; or the settings of a resumed run would change its data, network or loss.
    """
    overrides = list(overrides)
    file_config = load_config(kind, file or default_file, overrides) if file or not resume else None
    if file_config is not None and not resume:
        return file_config
    run = Path(_output_dir(kind, file or default_file, overrides))
    if status(run / CONFIG) is None:
        if file_config is None:
            raise UserError(_no_run(run))
        return file_config
    stored = _stored_config(run, kind)
    config = file_config or from_tree(kind, apply_overrides(to_tree(stored), overrides) | {"output_dir": str(run)})
    # Older versions wrote measured values to config.yaml. They remain valid where the new config has null.
    config = with_measured(config, {name: stored.model.argument(name) for name in stored.model.measured})
    measured = read_measured(run)
    check_same_run(with_measured(config, measured), with_measured(stored, measured))
    return config


def _no_run(run: Path) -> str:
    """Return the text of an error for a folder without config.yaml."""
    if not is_folder(run):
        return (
            f"there is no run to resume: {printable(run)} does not exist; check output_dir, or start without --resume"
        )
    if not list_checkpoints(run):
        return f"there is no run to resume in {printable(run)}; check output_dir, or start without --resume"
    return (
        f"{printable(run / CONFIG)} is missing, but there are checkpoints: restore it, or give the settings of the run "
        "with --config"
    )


def _stored_config(run: Path, kind: type[Config]) -> Config:
    """Return the config of a run.

    Raises:
        UserError: config.yaml is damaged, or belongs to another kind of run.
    """
    path = printable(run / CONFIG)
    advice = "restore it, or start again in another output_dir"
    try:
        tree = read_yaml_file(run / CONFIG)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}; {advice}") from error
    for group in RunConfig.fixed:
        if group not in tree:
            raise UserError(f"{path} is damaged: it has no {group}; {advice}")
    others = sorted(set(map(str, tree)) - set(kind.model_fields)) or sorted(set(kind.fixed) - set(tree))
    if others:
        names = printable(", ".join(others))
        if others[0] in tree:
            raise UserError(
                f"{printable(run)} has a run of another kind, because {CONFIG} has {names}: resume it with the command "
                "that started it, or choose another output_dir"
            )
        raise UserError(
            f"{path} is damaged or has a run of another kind, because it lacks {names}: restore it, resume with the "
            "command that started the run, or choose another output_dir"
        )
    try:
        return from_tree(kind, tree)
    except UserError as error:
        raise UserError(f"{path} does not fit this kind of run: {error}; {advice}") from error


def _output_dir(kind: type[RunConfig], file: str | Path, overrides: list[str]) -> str:
    tree = read_overrides(kind, apply_overrides(read_yaml_file(file), overrides))
    output_dir = tree.get("output_dir", kind.model_fields["output_dir"].default)
    if not isinstance(output_dir, str) or not output_dir:
        raise UserError(f"output_dir must be text, not {short_form(output_dir)}")
    return output_dir


def check_startable(run: Path, resume: bool) -> None:
    """Check that a run may start, or resume, in the folder ``run``.

    Raises:
        UserError: ``run`` is a file, or it contains a run and ``resume`` is false.
    """
    found = status(run)
    if found is not None and not is_folder(run):
        raise UserError(f"output_dir {printable(run)} is {kind(found)}, not a folder: set another output_dir")
    if not resume and (status(run / CONFIG) is not None or list_checkpoints(run)):
        raise UserError(
            f"{printable(run)} already holds a run: continue it with --resume, or choose another output_dir=FOLDER"
        )


def how_to_continue(run: Path, instead: str = "") -> str:
    """Return what the command of an interrupted run does with ``--resume``.

    Args:
        run: the run folder.
        instead: text after ``--resume``, for instance " instead of --resume-from".
    """
    saved = list_checkpoints(run)
    if saved:
        return f"the same command with --resume{instead} continues from {printable(saved[-1])}"
    if status(run / CONFIG) is None:
        return "the run had not begun"
    return f"there is no checkpoint yet, so the same command with --resume{instead} starts from the beginning"


def writing_to(run: Path, what: str) -> contextlib.AbstractContextManager[None]:
    """Return a context that reports a full disk or a missing permission with advice on how to continue a run."""
    saved = list_checkpoints(run)
    last = f"the last good checkpoint is {printable(saved[-1])}: " if saved else ""
    return writing(what, f"{last}make room or allow writing, then continue with --resume")


def write_config(run: Path, config: RunConfig) -> None:
    """Write config.yaml."""
    run.mkdir(parents=True, exist_ok=True)
    write_file(run / CONFIG, write_yaml(to_tree(config)).encode())


def write_measured(run: Path, values: Mapping[str, float]) -> None:
    """Write the arguments of the network that were measured on the training data to measured.json."""
    run.mkdir(parents=True, exist_ok=True)
    write_file(run / MEASURED, (json_text(dict(values), indent=1) + "\n").encode())


def read_measured(run: Path) -> dict[str, Any]:
    """Return the values of measured.json, or an empty dictionary if there is no such file.

    Raises:
        UserError: measured.json is damaged.
    """
    file = run / MEASURED
    if status(file) is None:
        return {}
    advice = "restore it, or start again in another output_dir"
    try:
        values = read_json(file, "the measured values of a run")
    except UserError as error:
        raise UserError(f"{printable(file)} is damaged: {error}; {advice}") from None
    if not isinstance(values, dict) or not all(
        type(value) in (int, float) and math.isfinite(value) for value in values.values()
    ):
        raise UserError(f"{printable(file)} is damaged: it must have numbers by their names; {advice}")
    return values


class MetricsFile:
    """The file metrics.jsonl: one JSON object per line, complete up to the last step even if the process is killed.

    Args:
        path: the file; it is created if it does not exist.
        last_step: lines of later steps, and a line that a killed process did not finish, are removed, so that the file
            of a resumed run equals that of an uninterrupted one.

    Attributes:
        latest: the last value of each metric that was a number, with its step.
        removed_step: last step of the lines that were removed; 0 if there were none.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self._path, self._digest = path, hashlib.sha256()
        self.latest: dict[str, tuple[int, float]] = {}
        self.removed_step = 0
        if status(path) is not None:
            kept = []
            for line, values in _complete_lines(path):
                if values["step"] <= last_step:
                    kept.append(line)
                    self._remember(values)
                else:
                    self.removed_step = max(self.removed_step, values["step"])
            self._digest.update(b"".join(kept))
            write_file(path, b"".join(kept))
        self._file = path.open("a", encoding="utf-8")

    @property
    def digest(self) -> str:
        """The SHA-256 of the whole file."""
        return self._digest.hexdigest()

    def write(self, values: dict) -> None:
        """Append one line and flush it to the operating system, so that it survives a killed process."""
        line = json_text(values) + "\n"
        self._file.write(line)
        self._file.flush()
        self._digest.update(line.encode())
        self._remember(values)

    def _remember(self, values: dict) -> None:
        for name, value in values.items():
            if name != "step" and value is not None:
                self.latest[name] = (values["step"], value)

    def sync(self) -> None:
        """Wait until all lines are on the disk.

        Raises:
            UserError: the file is no longer in the run folder.
        """
        os.fsync(self._file.fileno())
        found = status(self._path)
        if found is None or not os.path.samestat(found, os.fstat(self._file.fileno())):
            raise UserError(
                f"{printable(self._path)} was removed or replaced during the run, so the folder may have a part of the "
                "run only: start again in another output_dir"
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def check_metrics(path: Path, last_step: int, digest: str) -> str:
    """Check metrics.jsonl before a run resumes; return a text for the user if it is missing, otherwise "".

    Args:
        path: the file.
        last_step: step of the checkpoint.
        digest: ``Counters.metrics`` of the checkpoint.

    Raises:
        UserError: the file cannot be read, or its lines up to ``last_step`` have changed.
    """
    if status(path) is None:
        return f"{printable(path)} is missing: it begins anew after step {last_step}" if last_step else ""
    kept = b"".join(line for line, values in _complete_lines(path) if values["step"] <= last_step)
    if digest and hashlib.sha256(kept).hexdigest() != digest:
        raise UserError(
            f"{printable(path)} was changed: its lines up to step {last_step} are not those of the run; restore it, or "
            "move it away to begin a new one"
        )
    return ""


def _complete_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield the complete lines of metrics.jsonl, each with a line feed, and their values."""
    for line in read_bytes(path, "the metrics of a run", limit=_LARGEST_METRICS).splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            values = json.loads(line)
            if isinstance(values, dict) and isinstance(values.get("step"), (int, float)):
                yield line + b"\n", values


class Saveable(Protocol):
    """A pipeline, or any object that saves itself like one."""

    def save_pretrained(self, folder: Path, /) -> object:
        """Write all files into ``folder``."""


def save_pipeline(run: Path, pipeline: Saveable, files: Mapping[str, bytes] = MappingProxyType({})) -> None:
    """Write or update ``run``/pipeline, which can be loaded with from_pretrained at any time.

    A new folder appears with all its files at once. In an existing folder each file is replaced in one operation. Only
    weights, metrics and the card change within a run, so old and new files fit together in between.

    Args:
        run: the run folder.
        pipeline: the pipeline.
        files: contents of further files by their names, such as the card.
    """
    target = run / "pipeline"
    with files_written_beside(target) if target.exists() else folder_written_beside(target) as folder:
        pipeline.save_pretrained(folder)
        for name, content in files.items():
            (folder / name).write_bytes(content)
