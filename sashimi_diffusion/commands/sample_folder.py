"""The output folder of sampling commands: wav files, a contact sheet, and ``samples.json``, which names them all."""

import argparse
import contextlib
import io
import json
import math
import os
import platform
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from sashimi_diffusion.data.audio import EXTENSIONS
from sashimi_diffusion.data.pictures import contact_sheet
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import file_written_beside, remove_abandoned, remove_empty_folders, writing
from sashimi_diffusion.launch import is_lost_connection
from sashimi_diffusion.output_files import write_output_file
from sashimi_diffusion.paths import entries, kind, missing_folders, nearest_existing, read_json, status
from sashimi_diffusion.strict_json import strict
from sashimi_diffusion.terminal import counted, listed, printable, say

SHEET_CLIPS = 60
"""Maximum number of clips on the contact sheet."""

_RECORD, _SHEET = "samples.json", "contact_sheet.png"
_LARGEST_RECORD = 2**31
_RECORD_BYTES = 400  # of a clip in the record
_WAV_HEADER, _DISK_BLOCK = 44, 4096
_LARGEST_WAV = 2**32 - 1  # the header counts bytes in 32 bits
_SECONDS_OF_NETWORK_DISKS = 10  # until a machine sees what another one has written
_MOST_RECORDS = 100  # a record of many clips takes as long to write as the clips do


Clip = TypeVar("Clip")


def share_of_batches(clips: Sequence[Clip], batch_size: int, state: PartialState) -> list[Sequence[Clip]]:
    """Return the batches of this process.

    They are smaller than ``batch_size`` if a process would have no batch otherwise. All processes have the same number
    of batches; the last one may be empty.
    """
    size = min(batch_size, math.ceil(len(clips) / state.num_processes))
    batches = [clips[start : start + size] for start in range(0, len(clips), size)]
    rounds = math.ceil(len(batches) / state.num_processes)
    batches += [clips[:0]] * (rounds * state.num_processes - len(batches))
    return batches[state.process_index :: state.num_processes]


def require_wav_size(length: int, rate: int, channels: int = 1) -> None:
    """Raise UserError if a PCM16 wav file cannot hold ``length`` samples per channel."""
    size = _WAV_HEADER + 2 * channels * length
    if size > _LARGEST_WAV:
        raise UserError(
            f"a clip would be a wav file of {size / 1e6:.3g} MB, and such a file holds at most "
            f"{_LARGEST_WAV / 1e6:.0f} MB: ask for fewer --seconds, at most {_LARGEST_WAV // (2 * channels * rate)}"
        )


def require_space(out: Path, count: int, samples: int, overwrite: bool) -> None:
    """Check before generation that the disk has space for the clips.

    Args:
        out: the output folder; it need not exist.
        count: number of clips.
        samples: audio samples of a clip, of all channels.
        overwrite: the clips that the record in ``out`` names will be removed.

    Raises:
        UserError: the disk has less free space, or ``out`` is not a folder.
    """
    place = nearest_existing(out)
    found = os.stat(place)
    if not stat.S_ISDIR(found.st_mode):
        raise UserError(f"--out {printable(out)}: {printable(place)} is {kind(found)}, expected a folder")
    blocks = math.ceil((_WAV_HEADER + 2 * samples) / _DISK_BLOCK)
    needed = count * (blocks * _DISK_BLOCK + _RECORD_BYTES)
    disk = shutil.disk_usage(place)
    free = disk.free
    if overwrite:
        free += sum(os.lstat(out / name).st_size for name in _recorded_clips(out))
    if disk.total and needed > free:  # some file systems do not state their size
        raise UserError(
            f"{printable(out)} needs {needed / 1e6:.0f} MB and the disk has {free / 1e6:.0f} MB left: free some space, "
            "choose another place, or ask for fewer --num-samples"
        )


def require_outside(option: str, paths: Iterable[Path], options: argparse.Namespace) -> None:
    """Check that ``--overwrite`` removes no file that an option gives, under whatever name.

    Raises:
        UserError: a file is in the output folder.
    """
    if not options.overwrite:
        return
    own = {(found.st_dev, found.st_ino) for path in entries(options.out) if (found := status(path)) is not None}
    for path in paths:
        found = status(path)
        if found is not None and (found.st_dev, found.st_ino) in own:
            raise UserError(
                f"{option} {printable(path)} is in the folder of --out, whose clips --overwrite removes: choose "
                "another --out"
            )


def require_finite(values: np.ndarray, options: argparse.Namespace) -> None:
    """Raise UserError if the waveforms or likelihoods that a pipeline has computed are not finite."""
    if not np.isfinite(values).all():
        raise UserError(
            f"the pipeline {printable(options.pipeline)} computes values that are not finite (NaN or infinity) in "
            f"{options.dtype}: use another checkpoint{'' if options.dtype == 'float32' else ', or --dtype float32'}"
        )


class SampleFolder:
    """The output folder of a sampling command; a context manager that all processes enter, and leave, together.

    The record is written before the first clip, and names all clips. After each batch it is completed with what was
    measured, at most a hundred times; a killed run therefore leaves no clip that it does not name. If the block fails
    before the first clip, folders that were created are removed.

    Args:
        path: the folder.
        clips: the clips of all processes: dataclasses with ``index`` and ``file``. Their fields are recorded.
        record: content of the record besides the clips.
        overwrite: remove the clips that an earlier record in the folder names.
        state: the processes.
        numbered: :meth:`number_files` will be called.

    Raises:
        UserError: the folder already has clips and ``overwrite`` is False, has a file of the user under the name of a
            clip, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        clips: list[Any],
        record: dict[str, Any],
        overwrite: bool,
        state: PartialState,
        numbered: bool = False,
    ) -> None:
        self.path, self.clips = path, clips
        self._names = {clip.file for clip in clips} | {_numbered(clip.index) for clip in clips if numbered}
        self._record = {**record, "complete": False}
        self._overwrite, self._state = overwrite, state
        self._created: list[Path] = []
        self._started, self._unrecorded = False, 0

    def __enter__(self) -> "SampleFolder":
        self._require_free()
        self._wait()  # no process has created files that another one finds
        if self._state.is_main_process:
            self._created = _create(self.path)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is None or not self._state.is_main_process:
            return
        if self._started:
            # The record on the disk still names all clips if this one cannot be written.
            with contextlib.suppress(UserError):
                self._write_record()
        else:
            remove_empty_folders(self._created)

    def start(self) -> None:
        """Remove earlier clips and write the record, once, before the first clip is written."""
        if self._started:
            return
        if self._state.is_main_process:
            others = self._require_free()
            with writing(f"to {printable(self.path)}"):
                for name in _recorded_clips(self.path) if self._overwrite else []:
                    (self.path / name).unlink()
                remove_abandoned(self.path)
            if others:
                say(
                    f"note: {printable(self.path)} keeps {counted(len(others), 'clip')} that its samples.json does not "
                    f"name: {listed(others, 3)}",
                    sys.stderr,
                )
            self._write_record()
        self._started = True
        self._wait()
        self._require_shared()

    def add(self, batch: Sequence[Any]) -> None:
        """Record the clips that each process has written, in one call of all processes."""
        with _other_processes():
            written = gather_object(list(batch))
        for clip in written:
            self.clips[clip.index] = clip
        self._unrecorded += len(written)
        if self._state.is_main_process and self._unrecorded * _MOST_RECORDS >= len(self.clips):
            self._write_record()
            self._unrecorded = 0

    def number_files(self, clips: Sequence[Any]) -> None:
        """Give the files of ``clips`` the numbers from 0 in this order, and remove those of all other clips."""
        earlier = {clip.index: str(clip.file) for clip in self.clips}
        for clip in self.clips:
            clip.file = None
        for number, clip in enumerate(clips):
            clip.file = _numbered(number)
        self._record["renamed"] = list(earlier.values())  # until all are renamed, a file has one name or the other
        self._write_record()
        with writing(f"to {printable(self.path)}"):
            for clip in self.clips:
                if clip.file is None:
                    (self.path / earlier[clip.index]).unlink()
                else:
                    os.replace(self.path / earlier[clip.index], self.path / clip.file)
        del self._record["renamed"]

    def finish(
        self,
        waveforms: Sequence[np.ndarray],
        rate: int,
        titles: Sequence[str],
        marked: Sequence[Sequence[tuple[float, float]]] | None = None,
        **measured: Any,
    ) -> None:
        """Write the contact sheet of some clips, and the complete record with the values ``measured``.

        Parts of the clips are marked as in :func:`~sashimi_diffusion.data.pictures.contact_sheet`.
        """
        picture = io.BytesIO()
        contact_sheet(waveforms, rate, titles, marked=marked).save(picture, "PNG")
        write_output_file(self.path / _SHEET, picture.getvalue())
        self._record.update(measured, complete=True)
        self._write_record()

    def _require_free(self) -> list[str]:
        """Check that no file is in the way; return the names of clips in the folder that its record does not name."""
        names = {path.name for path in entries(self.path)}
        clips = {name for name in names if name.lower().endswith(EXTENSIONS)}
        found = counted(len(clips), "clip") if clips else ", ".join(sorted(names & {_RECORD, _SHEET}))
        if found and not self._overwrite:
            raise UserError(f"{printable(self.path)} already has {found}: choose another --out, or --overwrite")
        others = clips.difference(_recorded_clips(self.path))
        for name in sorted(others & self._names):
            raise UserError(
                f"{printable(self.path / name)} is in the way, and samples.json does not name it: choose another "
                "--out, or move that file"
            )
        return sorted(others)

    def _require_shared(self) -> None:
        """Check that this process sees the record that the main process has written."""
        deadline = time.monotonic() + _SECONDS_OF_NETWORK_DISKS
        while status(self.path / _RECORD) is None:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--out {printable(self.path)} must be a folder that all machines share: another machine has begun "
                    "to write there, and this one does not see it"
                )
            time.sleep(0.5)

    def _write_record(self) -> None:
        """Write ``samples.json``, clip by clip, because there may be millions."""
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: version(name) for name in ("sashimi-diffusion", "diffusers", "accelerate")},
        }
        # Some settings of schedulers are infinite; their text shows which.
        head = json.dumps(strict({**self._record, "versions": versions}, str), indent=2, allow_nan=False)
        with (
            writing(f"to {printable(self.path)}"),
            file_written_beside(Path(os.path.realpath(self.path / _RECORD))) as file,
        ):
            file.write(head.removesuffix("\n}").encode() + b',\n  "samples": [')
            for number, clip in enumerate(self.clips):
                entry = json.dumps(strict(vars(clip), str), allow_nan=False)
                file.write(f"{',' if number else ''}\n    {entry}".encode())
            file.write(b"\n  ]\n}\n")

    def _wait(self) -> None:
        with _other_processes():
            self._state.wait_for_everyone()


@contextlib.contextmanager
def _other_processes() -> Iterator[None]:
    """Turn the error of a process that waits for one that has ended into one line."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise UserError("another process of this run has ended: see its message") from error


def _numbered(number: int) -> str:
    return f"{number:04d}.wav"


def _create(path: Path) -> list[Path]:
    """Create a folder if it does not exist; return the folders that were created, the innermost first.

    Raises:
        UserError: the folder cannot be created or written.
    """
    missing = missing_folders(path)
    try:
        with writing(f"to {printable(path)}"):
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                return missing
    except UserError:
        remove_empty_folders(missing)
        raise


def _recorded_clips(out: Path) -> list[str]:
    """Return the files in ``out`` that its record names as clips, each once; none if there is no record.

    Raises:
        UserError: there is a ``samples.json`` that is no record of a sampling command.
    """
    path = out / _RECORD
    if status(path) is None:
        return []
    record = read_json(path, "the record of an earlier sashimi-sample", _LARGEST_RECORD)
    try:
        names = dict.fromkeys([*(sample["file"] for sample in record["samples"]), *record.get("renamed", ())])
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{printable(path)} is no record of sashimi-sample: choose another --out") from error
    # Names with a folder come from elsewhere, and their files are not in this folder.
    plain = [name for name in names if isinstance(name, str) and Path(name).name == name and name.endswith(".wav")]
    return [name for name in plain if os.path.lexists(out / name) and not os.path.isdir(out / name)]
