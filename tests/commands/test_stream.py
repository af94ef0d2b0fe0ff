"""Tests of wav files that are written block by block."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sashimi_diffusion.commands.sample import main
from sashimi_diffusion.commands.stream import write_stream
from sashimi_diffusion.errors import UserError

RATE = 1000
SOUND = np.sin(np.arange(70) / 3).astype(np.float32) / 2


def blocks() -> Iterator[np.ndarray]:
    yield from np.split(SOUND, [30, 60])


def test_the_file_is_valid_after_every_block(tmp_path: Path) -> None:
    lengths = []

    def observed() -> Iterator[np.ndarray]:
        for block in blocks():
            yield block
            lengths.append(soundfile.info(tmp_path / "x.wav").frames)

    write_stream(tmp_path / "x.wav", observed(), len(SOUND), RATE)
    assert lengths == [30, 60, 70]
    samples, rate = soundfile.read(tmp_path / "x.wav")
    np.testing.assert_allclose(samples, SOUND, atol=1 / 2**15)
    assert (rate, soundfile.info(tmp_path / "x.wav").subtype) == (RATE, "PCM_16")


def test_links_are_followed_and_a_longer_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file.wav").write_bytes(bytes(10_000))
    (tmp_path / "link.wav").symlink_to("file.wav")
    write_stream(tmp_path / "link.wav", blocks(), len(SOUND), RATE)
    assert (tmp_path / "link.wav").is_symlink()
    assert (tmp_path / "file.wav").stat().st_size == 44 + 2 * len(SOUND)


def test_a_fifo_receives_the_same_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wav")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "fifo.wav").read_bytes()))
    reader.start()
    for name in ("fifo.wav", "x.wav"):
        write_stream(tmp_path / name, blocks(), len(SOUND), RATE)
    reader.join(timeout=60)
    assert received == [(tmp_path / "x.wav").read_bytes()]


def test_an_error_of_the_first_block_leaves_an_existing_file(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        raise UserError("not finite")
        yield SOUND

    (tmp_path / "x.wav").write_bytes(b"made before")
    with pytest.raises(UserError, match="not finite"):
        write_stream(tmp_path / "x.wav", broken(), len(SOUND), RATE)
    assert (tmp_path / "x.wav").read_bytes() == b"made before"


def test_a_full_disk_is_named() -> None:
    with pytest.raises(UserError, match="cannot write to /dev/full: the disk is full"):
        write_stream(Path("/dev/full"), blocks(), len(SOUND), RATE)


@pytest.mark.parametrize("name", ["piano.mp3", "piano.FLAC", "folder/piano.ogg"])
def test_a_stream_into_a_file_of_another_format_is_refused(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["--pipeline", "sashimi-piano", "--stream", name]) == 2
    assert "a stream is a wav file, not " in capsys.readouterr().err
    assert not Path(name).exists()
