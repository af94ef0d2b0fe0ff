"""Checkpoints of a run, in folders such as checkpoints/step-000100.

They replace Accelerate's checkpoints: a manifest with SHA-256 sums shows any damage before a run resumes.
"""

import contextlib
import hashlib
import io
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import folder_written_beside, remove_folder, sync_folder, write_file
from sashimi_diffusion.paths import entries, is_file, is_folder, kind, read_json, reason, status
from sashimi_diffusion.strict_json import json_text
from sashimi_diffusion.terminal import one_line, printable
from sashimi_diffusion.training.counters import Counters, read_counters
from sashimi_diffusion.training.ema import Ema
from sashimi_diffusion.training.muon import CombinedOptimizer
from sashimi_diffusion.training.optimizer import load_optimizer, require_same_kind

MODEL, AVERAGE, OPTIMIZER, COUNTERS = "model.safetensors", "ema.safetensors", "optimizer.pt", "counters.json"
MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{6,})", re.ASCII)


def checkpoint_name(step: int) -> str:
    """Return the name of the folder for ``step``."""
    return f"step-{step:06d}"


def step_of(folder: Path) -> int:
    """Return the step in the name of a checkpoint."""
    return int(folder.name.removeprefix("step-"))


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first, damaged ones included.

    Raises:
        UserError: the folder of the checkpoints cannot be read.
    """
    folder = run / "checkpoints"
    found = status(folder)
    if found is None:
        return []
    if not is_folder(folder):
        raise UserError(f"{printable(folder)} is {kind(found)}: expected the folder of the checkpoints")
    return sorted((path for path in entries(folder) if _NAME.fullmatch(path.name)), key=step_of)


def save_checkpoint(
    run: Path,
    model: nn.Module,
    ema: Ema,
    optimizer: torch.optim.Optimizer | CombinedOptimizer,
    counters: Counters,
    keep: int,
) -> Path:
    """Write the checkpoint of ``counters.step``, remove all except the ``keep`` newest, and return its folder.

    Raises:
        OSError: the checkpoint cannot be written; the earlier checkpoints are unchanged.
    """
    target = run / "checkpoints" / checkpoint_name(counters.step)
    optimizer_bytes = io.BytesIO()
    torch.save(optimizer.state_dict(), optimizer_bytes)
    contents = {
        MODEL: safetensors.torch.save(_tensors(model)),
        AVERAGE: safetensors.torch.save(_tensors(ema.model)),
        OPTIMIZER: optimizer_bytes.getvalue(),
        COUNTERS: json_text({**asdict(counters), "ema_updates": ema.updates}, indent=1).encode(),
    }
    manifest = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    with folder_written_beside(target) as folder:
        for name, content in contents.items():
            write_file(folder / name, content)
        write_file(folder / MANIFEST, json_text(manifest, indent=1).encode())
    remove_old(run, keep)
    return target


def remove_old(run: Path, keep: int) -> None:
    """Remove all checkpoints except the ``keep`` newest."""
    for old in list_checkpoints(run)[:-keep]:
        remove_folder(old)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def verify_checkpoint(folder: Path) -> None:
    """Compare every file of a checkpoint with its manifest, and read its counters.

    Raises:
        UserError: a file is missing, truncated or changed, or the checkpoint is of a newer version; the message names
            the first one.
    """
    for name, (size, digest) in _read_manifest(folder).items():
        path = folder / name
        found = status(path)
        if found is None:
            raise UserError(f"{printable(path)} is missing")
        if not is_file(path):
            raise UserError(f"{printable(path)} is {kind(found)}: expected a file of a checkpoint")
        if found.st_size != size:
            raise UserError(
                f"{printable(path)} has {found.st_size} bytes instead of {size}: it is truncated or was edited"
            )
        if _sha256(path) != digest:
            raise UserError(
                f"{printable(path)} was changed after it was written: its SHA-256 differs from the manifest's"
            )
    counters, _ = _read_counters(folder)
    if checkpoint_name(counters.step) != folder.name:
        raise UserError(f"{printable(folder)} was renamed: it is the checkpoint of step {counters.step}")


def _read_manifest(folder: Path) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of every file of a checkpoint."""
    path = folder / MANIFEST
    manifest = read_json(path, "the manifest of a checkpoint")
    try:
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{printable(path)} is damaged: it must have the size and the SHA-256 of every file") from None
    for name in (MODEL, AVERAGE, OPTIMIZER, COUNTERS):
        if name not in expected:
            raise UserError(f"{printable(path)} is damaged: it does not list {name}")
    for name in expected:
        if name not in (MODEL, AVERAGE, OPTIMIZER, COUNTERS):
            raise UserError(f"{printable(path)} lists {printable(name)}, which this version does not know")
    return expected


def _read_counters(folder: Path) -> tuple[Counters, int]:
    path = folder / COUNTERS
    stored = read_json(path, "the counters of a checkpoint")
    try:
        return read_counters(stored)
    except UserError as error:
        raise UserError(f"{printable(path)} cannot be used: {error}") from None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {reason(error)}") from error
    return digest.hexdigest()


def find_checkpoint(run: Path, chosen: str | None = None) -> Path | None:
    """Return the folder of the checkpoint to resume from, after verifying it; None if the run has no checkpoint.

    Args:
        run: the run folder.
        chosen: name of a checkpoint, also as "checkpoints/NAME", or its path. None: the newest.

    Raises:
        UserError: the checkpoint does not exist or is damaged; the message names the newest undamaged one before it.
    """
    checkpoints = list_checkpoints(run)
    if chosen is None:
        if not checkpoints:
            return None
        folder = checkpoints[-1]
    else:
        matches = [path for path in checkpoints if path.name == Path(chosen).name]
        if not matches:
            names = ", ".join(path.name for path in checkpoints) or "none"
            raise UserError(
                f"there is no checkpoint {printable(chosen)} in {printable(run / 'checkpoints')}: it has {names}"
            )
        folder = matches[0]
        # A name, or a path in the run folder, is this checkpoint; other paths may be of another run.
        if len(Path(chosen).parts) > 2 and os.path.realpath(chosen) != os.path.realpath(folder):
            raise UserError(
                f"{printable(chosen)} is not in {printable(folder.parent)}: give the name of a checkpoint of this run, "
                "or set output_dir to the other run"
            )
    with _with_way_out(folder):
        verify_checkpoint(folder)
    return folder


@contextlib.contextmanager
def _with_way_out(folder: Path) -> Iterator[None]:
    """Add to a UserError about a checkpoint what to do instead of using it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error}; {_way_out(folder)}") from error


def _way_out(damaged: Path) -> str:
    checkpoints = list_checkpoints(damaged.parent.parent)
    for folder in reversed(checkpoints[: checkpoints.index(damaged)]):
        try:
            verify_checkpoint(folder)
        except UserError:
            continue
        return f"continue from the one before it with --resume-from checkpoints/{folder.name}"
    return "there is no undamaged checkpoint before it: start again in another output_dir"


def load_checkpoint(
    folder: Path, model: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer | CombinedOptimizer
) -> Counters:
    """Load a verified checkpoint into ``model``, ``ema`` and ``optimizer``, and return its counters.

    Raises:
        UserError: a file cannot be read, or it is of another network, another optimizer or another version. The
            message names the newest undamaged checkpoint before it. Some weights may have been loaded.
    """
    with _with_way_out(folder):
        counters, updates = _read_counters(folder)
        _load_tensors(folder / MODEL, model)
        _load_tensors(folder / AVERAGE, ema.model)
        path = folder / OPTIMIZER
        with _readable(path), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are not of PyTorch, which become an error
            stored = torch.load(path, weights_only=True, map_location="cpu")
    require_same_kind(optimizer, stored, printable(path))  # outside: an earlier checkpoint would not help
    with _with_way_out(folder):
        try:
            load_optimizer(optimizer, stored)
        except UserError as error:
            raise UserError(f"{printable(path)} cannot be used: {error}") from error
    ema.updates = updates
    return counters


def _load_tensors(path: Path, model: nn.Module) -> None:
    """Load a file of weights.

    Raises:
        UserError: it cannot be read, it is of another network, or it has weights that are not finite.
    """
    with _readable(path):
        tensors = safetensors.torch.load_file(path)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(
            f"{printable(path.parent)} does not fit this network: continue with the version that wrote it "
            f"({one_line(error)})"
        ) from error
    for name, _ in model.named_parameters():
        if not tensors[name].isfinite().all():
            raise UserError(f"{printable(path)} has values that are not finite in {name}: the run had diverged")


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Name the file if reading it fails."""
    try:
        yield
    except Exception as error:  # files that are not what they should be raise errors of many classes
        raise UserError(f"{printable(path)} cannot be read: {type(error).__name__}: {one_line(error)}") from error


def set_later_aside(run: Path, folder: Path) -> list[Path]:
    """Rename the checkpoints after ``folder``, so that it becomes the newest one, and return their new folders."""
    checkpoints = list_checkpoints(run)
    later = checkpoints[checkpoints.index(folder) + 1 :]
    moved = []
    for path in later:
        target = path.with_name(f"set-aside-{path.name}")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(path, target)
        moved.append(target)
    if moved:
        sync_folder(run / "checkpoints")
    return moved
