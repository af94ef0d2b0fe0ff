"""Checkpoints of a run, in folders such as checkpoints/step-000100.

They replace Accelerate's checkpoints: a manifest with SHA-256 sums shows any damage before a run resumes.
"""

import hashlib
import io
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import folder_written_beside, sync_folder, write_file
from sashimi_diffusion.training.ema import Ema
from sashimi_diffusion.training.muon import CombinedOptimizer

MANIFEST = "manifest.json"
_NAME = re.compile(r"step-(\d{6,})")


@dataclass
class Counters:
    """The state of a run in addition to its tensors.

    Args:
        step: optimizer steps done, including skipped ones.
        seconds: time spent in optimizer steps.
        nonfinite_total: steps skipped because the loss or the gradient was not finite.
        nonfinite_in_row: steps skipped since the last finite one.
        loss_sum: sum of the finite losses since the last training line of metrics.jsonl.
        loss_count: number of those losses.
        global_batch: examples per optimizer step, of all processes together.
        data: fingerprint of the training data.
        plateau_factor: factor of the learning rate after plateaus of the validation loss.
        plateau_loss: lowest validation loss so far.
        plateau_validations: validations since that loss, or since the last change of ``plateau_factor``.
    """

    step: int = 0
    seconds: float = 0.0
    nonfinite_total: int = 0
    nonfinite_in_row: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    global_batch: int = 0
    data: str = ""
    plateau_factor: float = 1.0
    plateau_loss: float = float("inf")
    plateau_validations: int = 0


def checkpoint_name(step: int) -> str:
    """Return the name of the folder for ``step``."""
    return f"step-{step:06d}"


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, oldest first, damaged ones included."""
    folder = run / "checkpoints"
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


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
        "model.safetensors": safetensors.torch.save(_tensors(model)),
        "ema.safetensors": safetensors.torch.save(_tensors(ema.model)),
        "optimizer.pt": optimizer_bytes.getvalue(),
        "counters.json": json.dumps({**asdict(counters), "ema_updates": ema.updates}, indent=1).encode(),
    }
    manifest = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    with folder_written_beside(target) as folder:
        for name, content in contents.items():
            write_file(folder / name, content)
        write_file(folder / MANIFEST, json.dumps(manifest, indent=1).encode())
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return target


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def verify_checkpoint(folder: Path) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        UserError: a file is missing, truncated or changed; the message names the first one.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / MANIFEST} is missing or damaged") from None
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing")
        if path.stat().st_size != size:
            raise UserError(f"{path} has {path.stat().st_size} bytes instead of {size}: it is truncated or was edited")
        if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            raise UserError(f"{path} was changed after it was written: its SHA-256 differs from the manifest's")


def find_checkpoint(run: Path, chosen: str | None = None) -> Path | None:
    """Return the folder of the checkpoint to resume from, after verifying it; None if the run has no checkpoint.

    Args:
        run: the run folder.
        chosen: name or path of a checkpoint; only the last component of a path is used. None: the newest.

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
            raise UserError(f"there is no checkpoint {chosen} in {run / 'checkpoints'}: it has {names}")
        folder = matches[0]
    try:
        verify_checkpoint(folder)
    except UserError as error:
        raise UserError(f"{error}; {_advice(run, folder)}") from None
    return folder


def _advice(run: Path, damaged: Path) -> str:
    """Return what to do instead of using a damaged checkpoint."""
    checkpoints = list_checkpoints(run)
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
        UserError: the tensors do not fit this network, because another version of the project wrote them.
    """
    settings = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
    try:
        model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
        ema.model.load_state_dict(safetensors.torch.load_file(folder / "ema.safetensors"))
        optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu"))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{folder} does not fit this network: continue with the version that wrote it ({error})"
        ) from error
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        # The moments come from the checkpoint; learning rates and betas from the config, which may have changed.
        group.update(setting)
    stored = json.loads((folder / "counters.json").read_text())
    ema.updates = stored.pop("ema_updates")
    return Counters(**stored)


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
