"""``sashimi-sample --audio``: the given recordings, what becomes of them, and notes about them."""

import argparse
import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.commands.sample_folder import require_outside
from sashimi_diffusion.data.audio import read_audio
from sashimi_diffusion.data.audio_files import find_usable_audio
from sashimi_diffusion.data.decoding import decode_audio
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import is_folder
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.pipelines.given_audio import level_note
from sashimi_diffusion.pipelines.schedule import Schedule, checked_jumps
from sashimi_diffusion.terminal import printable, say

USES = {"strength": "--strength", "keep": "--keep", "continue": "--continue"}
"""Name of an option that says what to do with given audio -> its flag."""


@dataclass(frozen=True)
class GivenFile:
    """A recording that is given.

    Args:
        path: the file.
        rate: its sample rate in Hz.
        channels: its channels.
        samples: its length at the rate of the model.
        length: samples of the clips that are made of it.
        note: what is unusual about its level, or None.
    """

    path: Path
    rate: int
    channels: int
    samples: int
    length: int
    note: str | None


def is_given(value: Any) -> bool:
    """Return whether an option with this value was given: it is no flag that is off, and not None; 0 is given."""
    return value is not None and value is not False


def given_paths(options: argparse.Namespace) -> list[Path]:
    """Return the recordings of ``--audio``, a file or a folder; none without this option.

    Raises:
        UserError: an option for given audio lacks ``--audio``, is missing or contradicts another one, or the folder has
            no audio or something that is no regular file.
    """
    uses = [flag for name, flag in USES.items() if is_given(getattr(options, name))]
    if options.audio is None:
        for flag in [*uses, *(["--jumps"] if options.jumps is not None else [])]:
            raise UserError(f"{flag} needs a recording: give it with --audio")
        return []
    if len(uses) > 1:
        raise UserError(f"{' and '.join(uses)} were given: give one of them")
    if not uses:
        raise UserError(
            "--audio needs to know what to do: --strength for a variation, --keep to generate the rest, or --continue"
        )
    if options.seconds is not None and uses != ["--continue"]:
        raise UserError(f"--seconds does not apply to {uses[0]}, which keeps the length of the recording: leave it out")
    if options.seconds is None and uses == ["--continue"]:
        raise UserError("--continue needs --seconds, the length of the whole clip with the recording")
    if options.jumps is not None and uses == ["--strength"]:
        raise UserError("--jumps does not apply to --strength, which keeps no samples: leave it out")
    require_strength(options.strength)
    checked_jumps(options.jumps, used=uses != ["--strength"])
    if not is_folder(options.audio):
        return [options.audio]
    return find_usable_audio(options.audio)


def require_strength(strength: float | None) -> None:
    """Raise UserError if ``--strength`` is no number above 0, up to 1."""
    if strength is not None and not 0 < strength <= 1:
        raise UserError(f"--strength is {strength:g}: expected a number above 0, up to 1")


class GivenFiles:
    """The recordings of ``--audio``, examined before anything is written.

    Args:
        paths: the files.
        options: the options of the command.
        pipe: the pipeline, whose timesteps are set.

    Raises:
        UserError: the strength is below the last step of the sampler, a file is no audio with the channels of the
            model, a range of ``--keep`` does not fit it, it is not shorter than its continuation, or it is in the
            output folder and ``--overwrite`` would remove it.
    """

    def __init__(self, paths: Sequence[Path], options: argparse.Namespace, pipe: SashimiPipeline) -> None:
        self._config, self._strength, self._jumps = pipe.model.config, options.strength, options.jumps
        if self._strength is not None:
            Schedule(pipe.scheduler).check_strength(self._strength)
        self._ranges = None if options.keep is None else keep_ranges(options.keep)
        self._keep = options.keep
        require_outside("--audio", paths, options)
        continued = pipe.length_in_samples(options.seconds) if getattr(options, "continue") else None
        self.files = [self._examined(path, continued) for path in paths]

    def _examined(self, path: Path, continued: int | None) -> GivenFile:
        decoded = decode_audio(path, max_seconds=1 / 1000)
        waveform = self.read(path)
        samples, own = waveform.shape[-1], self._config["sample_rate"]
        if self._ranges is not None:
            self._mask(path, samples)
        if continued is not None and continued <= samples:
            raise UserError(
                f"{printable(path)} has {samples / own:g} s, --seconds asks for {continued / own:g} s with its "
                "continuation: ask for more --seconds"
            )
        note = level_note(torch.from_numpy(waveform), self._config)
        return GivenFile(path, decoded.sample_rate, decoded.channels, samples, continued or samples, note)

    def read(self, path: Path) -> np.ndarray:
        """Return a recording at the rate of the model, float32 (C, L)."""
        channels = self._config["in_channels"]
        return np.atleast_2d(read_audio(path, self._config["sample_rate"], channels=channels))

    def arguments(self, files: Sequence[GivenFile]) -> dict[str, Any]:
        """Return the arguments of a call of the pipeline for recordings of the same length."""
        audio = torch.from_numpy(np.stack([self.read(file.path) for file in files]))  # (B, C, L)
        arguments: dict[str, Any] = {"audio": audio, "jumps": self._jumps}
        if self._strength is not None:
            return {**arguments, "strength": self._strength}
        if self._ranges is not None:
            return {**arguments, "mask": self._mask(files[0].path, files[0].samples)}
        return {**arguments, "audio_length_in_s": files[0].length / self._config["sample_rate"]}

    def _mask(self, path: Path, samples: int) -> torch.Tensor:
        """Return which samples of a recording ``--keep`` keeps, bool (L,)."""
        rate = self._config["sample_rate"]
        mask = torch.zeros(samples, dtype=torch.bool)
        for start, end in self._ranges or ():
            if max(start, end or 0.0) * rate > samples + 0.5:
                raise UserError(
                    f"--keep {short_form(self._keep)} goes beyond the end of {printable(path)}, which has "
                    f"{samples / rate:g} s"
                )
            mask[round(start * rate) : samples if end is None else round(end * rate)] = True
        if mask.all() or not mask.any():
            what = "everything" if mask.all() else "nothing"
            raise UserError(f"--keep {short_form(self._keep)} keeps {what} of {printable(path)}: choose other ranges")
        return mask

    def generated(self, index: int) -> list[tuple[float, float]]:
        """Return the parts of a clip, in seconds, that are generated beside kept ones; none of a variation."""
        file = self.files[index % len(self.files)]
        kept = np.zeros(file.length, dtype=bool)
        if self._ranges is not None:
            kept[:] = self._mask(file.path, file.samples).numpy()
        else:
            kept[: file.samples] = True
        edges = np.flatnonzero(np.diff(np.pad(~kept, 1).astype(np.int8)))
        seconds: list[float] = (edges / self._config["sample_rate"]).tolist()
        return list(zip(seconds[::2], seconds[1::2], strict=True))

    def notes(self, window: float | None, chosen: bool) -> list[str]:
        """Return what is unusual about the recordings, a line for each kind.

        Args:
            window: seconds of the windows in which they are denoised, or None.
            chosen: whether the user asked for windows.
        """
        rate, trained = self._config["sample_rate"], self._config["sample_size"]
        resampled = [file for file in self.files if file.rate != rate]
        mixed = [file for file in self.files if file.channels != self._config["in_channels"]]
        unusual = [file for file in self.files if file.note is not None]
        long = [file for file in self.files if file.length > trained]
        lines = []
        if resampled:
            text = f"is resampled from {resampled[0].rate} Hz to the model's {rate} Hz"
            lines.append(f"{_named(resampled)} {text}")
        if mixed:
            lines.append(f"{_named(mixed)} has {mixed[0].channels} channels, and the model gets their mean")
        if unusual:
            lines.append(f"{_named(unusual)} {unusual[0].note}")
        if long and not chosen:
            how = "at once" if window is None else f"in windows of {window:g} s"
            lines.append(
                f"a clip of {long[0].length / rate:g} s is longer than the {trained / rate:g} s of the training: it is "
                f"generated {how} (see --window)"
            )
        return lines

    def record(self, options: argparse.Namespace) -> dict[str, Any]:
        """Return what was given, for ``samples.json``."""
        uses = {name: getattr(options, name) for name in USES}
        files = [
            {
                "file": str(file.path),
                "sha256": hashlib.sha256(file.path.read_bytes()).hexdigest(),
                "sample_rate": file.rate,
                "channels": file.channels,
                "samples": file.samples,
            }
            for file in self.files
        ]
        return {**uses, "jumps": checked_jumps(options.jumps, options.strength is None), "files": files}


def keep_ranges(text: str) -> list[tuple[float, float | None]]:
    """Return the ranges of ``--keep`` in seconds, such as "0:0.25,0.5:"; None is the end of the recording.

    Raises:
        UserError: a range is none, or ends before it begins.
    """
    ranges = []
    for part in text.split(","):
        first, colon, last = part.strip().partition(":")
        try:
            start, end = float(first or 0), float(last) if last else None
        except ValueError:
            colon = ""
            start, end = 0.0, None
        if not colon or not (math.isfinite(start) and start >= 0) or not (end is None or math.isfinite(end)):
            raise UserError(
                f"--keep {short_form(text)}: {short_form(part)} is no range: expected START:END in seconds, as in "
                "0:0.25,0.5:"
            )
        if end is not None and end <= start:
            raise UserError(f"--keep {short_form(text)}: the range {part.strip()} ends before it begins")
        ranges.append((start, end))
    return ranges


def say_notes(notes: Sequence[str]) -> None:
    """Print notes about given audio on stderr."""
    for note in notes:
        say(f"note: {note}", sys.stderr)


def _named(files: Sequence[GivenFile]) -> str:
    """Return the name of the first file, with the number of the others."""
    others = f" (and {len(files) - 1} more)" if len(files) > 1 else ""
    return f"{printable(files[0].path)}{others}"
