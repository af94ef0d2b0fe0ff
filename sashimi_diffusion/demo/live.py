"""Sounds that are played while they are generated: a wav file that the server sends piece by piece."""

import asyncio
import io
import secrets
import threading
import wave
from collections.abc import AsyncIterator

import numpy as np

_KEPT = 4
_PAUSE = 0.05


class LiveSound:
    """A sound to which blocks are appended, and which several players may read from its beginning.

    Args:
        rate: sample rate in Hz.
        length: number of samples that the whole sound will have; the header states it.
    """

    def __init__(self, rate: int, length: int) -> None:
        self._content, self._ended = bytearray(_header(rate, length)), False

    def append(self, block: np.ndarray) -> None:
        """Append samples in [-1, 1), shape (n,)."""
        self._content += (block.astype(np.float64) * 2**15).round().astype("<i2").tobytes()

    def end(self) -> None:
        """Say that nothing will follow."""
        self._ended = True

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the content until the end, as soon as it is there."""
        sent = 0
        while True:
            ended = self._ended  # before the content is read, so that nothing is missed
            piece = bytes(self._content[sent:])
            sent += len(piece)
            if piece:
                yield piece
            if ended:
                return
            await asyncio.sleep(_PAUSE)


class LiveSounds:
    """The last sounds that were begun, each under a name that cannot be guessed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sounds: dict[str, LiveSound] = {}

    def begin(self, rate: int, length: int) -> tuple[str, LiveSound]:
        """Return a new sound and its name."""
        name, sound = secrets.token_urlsafe(16), LiveSound(rate, length)
        with self._lock:
            self._sounds[name] = sound
            while len(self._sounds) > _KEPT:
                self._sounds.pop(next(iter(self._sounds))).end()
        return name, sound

    def find(self, name: str) -> LiveSound | None:
        """Return the sound with this name; None if it is not kept."""
        return self._sounds.get(name)

    def end_all(self) -> None:
        """End all sounds, so that no player waits."""
        with self._lock:
            for sound in self._sounds.values():
                sound.end()


def _header(rate: int, length: int) -> bytes:
    """Return the header of a mono PCM16 wav file of ``length`` samples."""
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, rate, length, "NONE", ""))
        file.writeframesraw(b"")
        return content.getvalue()
