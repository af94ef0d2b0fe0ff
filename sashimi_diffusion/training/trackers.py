"""The trackers of a run, such as tensorboard, wandb and trackio: names, values, and samples to hear and to see."""

import contextlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from PIL import Image

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import write_file
from sashimi_diffusion.paths import read_json, status
from sashimi_diffusion.strict_json import json_text
from sashimi_diffusion.suggestions import did_you_mean
from sashimi_diffusion.terminal import first_line, printable
from sashimi_diffusion.training.config import flat_settings
from sashimi_diffusion.training.reporting import TrackingConfig

TRACKING = "tracking.json"
_MOST_CLIPS = 16
"""Clips of each set of samples that trackers get; the run folder has all of them."""


def installed_trackers(names: list[str]) -> list[str]:
    """Return the installed trackers of ``names``.

    Raises:
        UserError: a tracker does not exist or is not installed. A missing tensorboard, the default, is no error.
    """
    available = [str(tracker.value) for tracker in get_available_trackers()]
    known = sorted(LOGGER_TYPE_TO_CLASS)
    for name in names:
        if name not in known:
            raise UserError(
                f"training.trackers has {short_form(name)}{did_you_mean(name, known)}: expected some of "
                f"{', '.join(known)}"
            )
        if name not in available and name != "tensorboard":
            raise UserError(f"training.trackers names {name}, which is not installed: pip install {name}")
    return [name for name in names if name in available]


@dataclass(frozen=True)
class TrackedRun:
    """The names of a run in its trackers, which tracking.json keeps, so that a resumed run goes on under them.

    Args:
        project: name of the project.
        run: name of the run.
        id: identifier of the run.
    """

    project: str
    run: str
    id: str


def tracked_run(folder: Path, config: TrackingConfig, resume: bool) -> tuple[TrackedRun, bool]:
    """Return the names of a run, and whether they are new.

    Args:
        folder: the run folder.
        config: names that the user has chosen. Others than before start a new run in the trackers.
        resume: whether the run may have been tracked before.

    Raises:
        UserError: tracking.json is damaged.
    """
    stored = _read_tracked_run(folder / TRACKING) if resume else None
    run = config.run or (printable(folder.resolve().name) if stored is None else stored.run)
    if stored is not None and (stored.project, stored.run) == (config.project, run):
        return stored, False
    return TrackedRun(config.project, run, secrets.token_hex(8)), True


def _read_tracked_run(path: Path) -> TrackedRun | None:
    if status(path) is None:
        return None
    values = read_json(path, "the names of a run in its trackers")
    names = ("project", "run", "id")
    if not isinstance(values, dict) or not all(isinstance(values.get(name), str) for name in names):
        raise UserError(
            f"{printable(path)} is damaged: expected the texts {', '.join(names)}; remove it to begin a new run in the "
            "trackers"
        )
    return TrackedRun(*(values[name] for name in names))


class Trackers:
    """The open trackers of a run. Only the main process has one.

    Args:
        names: result of :func:`installed_trackers`.
        folder: the run folder.
        run: the names of the run.
        new: whether the run is new to the trackers.
        settings: the config as a nested dictionary, which the trackers store.
        step: optimizer steps done. In a resumed run, tensorboard drops the values of later steps.
        tracked_step: last step of which the trackers have values. They are not sent again to trackers that cannot drop
            them; if the settings are the same, they are equal.

    Raises:
        UserError: a tracker cannot be started.
    """

    def __init__(
        self, names: list[str], folder: Path, run: TrackedRun, new: bool, settings: dict, step: int, tracked_step: int
    ) -> None:
        self._run, self._new, self._step = run, new, step
        self._first_step = 0 if new else max(step, tracked_step)
        self._open: list[GeneralTracker] = []
        if not names:
            return
        write_file(folder / TRACKING, (json_text(asdict(run), indent=1) + "\n").encode())
        try:
            for name in names:
                self._start(name, folder, settings, step)
        except BaseException:
            self.close()
            raise

    def _start(self, name: str, folder: Path, settings: dict, step: int) -> None:
        kind = LOGGER_TYPE_TO_CLASS[name]
        project = "tensorboard" if name == "tensorboard" else self._run.project
        places = [folder] if kind.requires_logging_directory else []
        tracker = kind(project, *places, **self._options(name, folder, step))
        try:
            tracker.start()
            self._open.append(tracker)
            # tensorboard stores the settings as another run.
            if self._new or name != "tensorboard":
                tracker.store_init_configuration(_flat(settings))
        except Exception as error:  # every tracker has exceptions of its own
            advice = "; WANDB_MODE=offline tracks without the network" if name == "wandb" else ""
            raise UserError(
                f"the tracker {name} cannot be started: {first_line(error)}; correct it, or leave {name} out of "
                f"training.trackers{advice}"
            ) from error

    def _options(self, name: str, folder: Path, step: int) -> dict[str, Any]:
        """Return the arguments by which a tracker goes on with an earlier run."""
        if name == "tensorboard":
            return {"purge_step": step + 1}
        if name == "wandb":
            place = {} if os.environ.get("WANDB_DIR") else {"dir": str(folder)}
            return {"name": self._run.run, "id": self._run.id, "resume": "allow", **place}
        if name == "trackio":
            return {"name": self._run.run, "resume": "never" if self._new else "allow", "embed": False}
        return {}

    @property
    def keep_later_values(self) -> list[str]:
        """The trackers that keep values of steps after the one from which the run was resumed."""
        resumed_earlier = not self._new and self._first_step > self._step
        return [tracker.name for tracker in self._open if resumed_earlier and tracker.name != "tensorboard"]

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send the values of a step."""
        for tracker in self._receivers(step):
            tracker.log(dict(values), step=step)

    def log_samples(self, folder: Path, step: int) -> None:
        """Send the clips and the contact sheet of a folder of samples to tensorboard, wandb and trackio."""
        receivers = [tracker for tracker in self._receivers(step) if tracker.name in _SENDERS]
        if receivers:
            clips = sorted(folder.glob("*.wav"))[:_MOST_CLIPS]
            for tracker in receivers:
                _SENDERS[tracker.name](tracker, clips, folder / "contact_sheet.png", step)

    def _receivers(self, step: int) -> list[GeneralTracker]:
        """Return the trackers that do not have the values of ``step`` yet."""
        return [tracker for tracker in self._open if step > self._first_step or tracker.name == "tensorboard"]

    def close(self) -> None:
        """End all trackers: they write what they have, and stop their processes and threads."""
        with contextlib.ExitStack() as stack:  # the others are closed if one fails
            for tracker in self._open:
                stack.callback(_end, tracker)
            self._open = []


def _end(tracker: GeneralTracker) -> None:
    if tracker.name == "trackio":
        import trackio

        trackio.finish()  # also ends the run in trackio's own list, so that it is not ended again at exit
    else:
        tracker.finish()


def _send_to_tensorboard(tracker: GeneralTracker, clips: list[Path], sheet: Path, step: int) -> None:
    writer: Any = tracker.tracker
    for clip in clips:
        audio, rate = soundfile.read(clip, dtype="float32", always_2d=True)  # (L, channels)
        writer.add_audio(f"samples/{clip.stem}", torch.from_numpy(audio.mean(axis=1)), step, sample_rate=rate)
    with Image.open(sheet) as picture:
        writer.add_image("samples/contact_sheet", np.asarray(picture.convert("RGB")), step, dataformats="HWC")
    writer.flush()


def _send_to_wandb(tracker: GeneralTracker, clips: list[Path], sheet: Path, step: int) -> None:
    import wandb

    audio = [wandb.Audio(str(clip), caption=clip.stem) for clip in clips]
    tracker.log({"samples": audio, "contact_sheet": wandb.Image(str(sheet))}, step=step)


def _send_to_trackio(tracker: GeneralTracker, clips: list[Path], sheet: Path, step: int) -> None:
    import trackio

    audio = {f"samples/{clip.stem}": trackio.Audio(str(clip), caption=clip.stem) for clip in clips}
    tracker.log({**audio, "samples/contact_sheet": trackio.Image(str(sheet))}, step=step)


_SENDERS = {"tensorboard": _send_to_tensorboard, "wandb": _send_to_wandb, "trackio": _send_to_trackio}


def _flat(settings: dict) -> dict[str, int | float | str | bool]:
    """Return settings by their full names; lists and null become text, because trackers accept plain values only."""
    flat = flat_settings(settings).items()
    return {name: value if isinstance(value, (int, float, str, bool)) else str(value) for name, value in flat}
