"""Play audio through the sound card while it is generated. It needs sounddevice (extra ``play``)."""

import collections
import importlib
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import soundfile

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import counted, one_line, say

_FIRST_SECONDS = 0.5  # of audio are in the buffer when playing begins, and when it goes on after an under-run
_MOST_SECONDS = 10.0  # of audio in the buffer; with more, generation waits
_PAUSE_SECONDS = 0.4  # between two clips
_POLL_SECONDS = 0.1  # after which a waiting thread looks again, so that an interrupt or a removed card ends the wait


class Player:
    """The sound card, which plays audio from a buffer; a context manager.

    The card asks for audio in a thread of its own. If the buffer is empty before the end, it plays silence until the
    buffer has half a second again: an under-run. A block that ends with an exception stops playing at once.

    Args:
        rate: sample rate in Hz.
        channels: number of channels.

    Attributes:
        underruns: number of times that the buffer was empty, or that the card got audio too late, so far.
        silence: samples of silence that were played in their place.

    Raises:
        UserError: sounddevice, its library or a sound card is missing, or the card does not play this format.
    """

    def __init__(self, rate: int, channels: int = 1) -> None:
        self._sounddevice = _import_sounddevice()
        self._format = {"samplerate": rate, "channels": channels, "dtype": "float32"}
        self._rate, self._channels = rate, channels
        self._blocks: collections.deque[np.ndarray] = collections.deque()
        self._buffered = self.underruns = self.silence = self.played = 0
        self._filling, self._complete, self._stopped = True, False, False
        self._changed = threading.Condition()
        try:
            self._sounddevice.check_output_settings(**self._format)
        except (self._sounddevice.PortAudioError, ValueError) as error:
            raise self._card_error(error) from error

    def __enter__(self) -> "Player":
        try:
            self._stream = self._sounddevice.OutputStream(
                **self._format, callback=self._fill, finished_callback=self._stop, latency="high"
            )
            self._stream.start()
        except self._sounddevice.PortAudioError as error:
            raise self._card_error(error) from error
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if error is not None:
            self._stream.abort(ignore_errors=True)
        self._stream.close(ignore_errors=True)

    def playing(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yield the blocks of audio, and play each one after it was used; they are as in :meth:`write`."""
        for block in blocks:
            yield block
            self.write(block)

    def write(self, block: np.ndarray) -> None:
        """Append audio to the buffer; wait while the buffer is full.

        Args:
            block: samples in [-1, 1), (n,) or (n, channels).

        Raises:
            UserError: the sound card has stopped.
        """
        with self._changed:
            while self._buffered > _MOST_SECONDS * self._rate and self._plays():
                self._changed.wait(_POLL_SECONDS)
            if not self._plays():
                raise UserError("the sound card has stopped playing: was it disconnected?")
            self._blocks.append(block.reshape(-1, self._channels))
            self._buffered += len(block)

    def finish(self) -> None:
        """Wait until all audio in the buffer was played.

        Raises:
            UserError: the sound card has stopped before that.
        """
        with self._changed:
            self._complete = True
            while self._plays():
                self._changed.wait(_POLL_SECONDS)
            if self._buffered:
                raise UserError("the sound card has stopped before the end: was it disconnected?")

    def report(self) -> str:
        """Return one line about what was played, and about the under-runs."""
        played = f"played {self.played / self._rate:.1f} s of audio"
        if not self.underruns:
            return f"{played} without an under-run"
        return f"{played} with {counted(self.underruns, 'under-run')}, {self.silence / self._rate:.2f} s of silence"

    def _plays(self) -> bool:
        return self._stream.active and not self._stopped

    def _fill(self, out: np.ndarray, frames: int, time: Any, status: Any) -> None:
        """Fill the samples ``out`` (frames, channels) for which the card asks, from its thread."""
        with self._changed:
            if status.output_underflow:  # the card played silence, because this thread got no core in time
                self.underruns += 1
            taken = 0
            if not self._filling or self._complete or self._buffered >= _FIRST_SECONDS * self._rate:
                self._filling = False
                taken = self._take(out)
            out[taken:] = 0
            self.played += taken
            if taken < frames and self._complete:
                raise self._sounddevice.CallbackStop  # after this block was played
            if self.played:  # the silence before the first sample is no under-run
                self.silence += frames - taken
                if taken < frames and not self._filling:
                    self.underruns += 1
                    self._filling = True
            self._changed.notify_all()

    def _take(self, out: np.ndarray) -> int:
        """Move samples from the buffer to ``out`` and return their number."""
        taken = 0
        while self._blocks and taken < len(out):
            block = self._blocks.popleft()
            part = block[: len(out) - taken]
            out[taken : taken + len(part)] = part
            taken += len(part)
            if len(part) < len(block):
                self._blocks.appendleft(block[len(part) :])
        self._buffered -= taken
        return taken

    def _stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _card_error(self, error: Exception) -> UserError:
        channels = counted(self._channels, "channel")
        return UserError(f"--play: no sound card plays {self._rate} Hz, {channels}: {one_line(error)}")


def play_files(player: Player, files: Iterable[Path]) -> None:
    """Play wav files, one after the other, with a pause between them, and print the report."""
    with player:
        for number, file in enumerate(files):
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
            if number:
                player.write(np.zeros((round(_PAUSE_SECONDS * rate), samples.shape[1]), np.float32))
            player.write(samples)
        player.finish()
    say(player.report())


def _import_sounddevice() -> Any:
    try:
        return importlib.import_module("sounddevice")
    except ImportError as error:
        raise UserError("--play needs the package sounddevice: pip install sounddevice") from error
    except OSError as error:  # the library is part of the package on Windows and macOS only
        raise UserError(
            f"--play needs the library PortAudio ({one_line(error)}): install it, for example with "
            "apt install libportaudio2"
        ) from error
