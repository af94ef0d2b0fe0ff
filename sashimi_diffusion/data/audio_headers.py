"""Headers of audio files: where they say the audio is, to find files that are cut short.

libsndfile reads as much as a file has and does not report that its header states more.
"""

import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_UNKNOWN_32 = 2**32 - 1
_SOX_AND_ARECORD = range(0x7FFFEF00, 0x7FFFFF01)  # they write nearly 2 GB where they cannot know the size
_OGG_PAGE = 65307  # the largest page, in bytes
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_MAX_CHUNKS = 10_000


@dataclass(frozen=True)
class AudioData:
    """The audio data in a file, in bytes.

    Attributes:
        stated: size that the header states; None if the program that wrote the header could not know it.
        present: bytes from the beginning of the data to the end of the file.
        size_field: position of a size of 0 that means "unknown", which libsndfile takes for an empty file; else None.
    """

    stated: int | None
    present: int
    size_field: int | None = None


@dataclass(frozen=True)
class _Chunk:
    name: bytes
    size_field: int
    start: int
    size: int


def find_audio_data(file: BinaryIO) -> AudioData | None:
    """Return the audio data of a RIFF, RIFX, RF64, W64, AIFF, AU or NIST file; None for others and malformed files."""
    file.seek(0)
    beginning = file.read(40)
    length = os.fstat(file.fileno()).st_size
    kind = beginning[:4]
    if kind in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return _of_riff(file, length, ">4sI" if kind == b"RIFX" else "<4sI")
    if kind == b"riff" and len(beginning) == 40:
        data = _named(_chunks(file, 40, length, "<16sQ", including_header=True, alignment=8), b"data")
        return AudioData(data.size, length - data.start) if data else None
    if kind == b"FORM" and beginning[8:12] in (b"AIFF", b"AIFC"):
        data = _named(_chunks(file, 12, length, ">4sI"), b"SSND")
        # An offset and a block size come before the audio.
        return AudioData(data.size - 8, length - data.start - 8) if data else None
    if kind == b".snd" and len(beginning) >= 12:
        start, size = struct.unpack(">II", beginning[4:12])
        return AudioData(None if size == _UNKNOWN_32 else size, length - start)
    if kind == b"NIST":
        return _of_nist(file, length)
    return None


def mp3_frame_count(file: BinaryIO) -> int | None:
    """Return how many frames an MP3 file states in the tag in its first frame; None if it has no such tag."""
    file.seek(0)
    beginning = file.read(10)
    if beginning[:3] == b"ID3" and len(beginning) == 10:
        a, b, c, d = beginning[6:]  # the size of an ID3 tag has seven bits in each byte
        file.seek(10 + ((a & 127) << 21 | (b & 127) << 14 | (c & 127) << 7 | d & 127))
    else:
        file.seek(0)
    tag = re.search(b"(?:Xing|Info)...[\x01\x03\x05\x07\x09\x0b\x0d\x0f](.{4})", file.read(4096), re.DOTALL)
    return int.from_bytes(tag[1], "big") if tag else None


def is_cut_ogg(file: BinaryIO) -> bool:
    """Return whether a file is Ogg and its last page is incomplete, or not marked as the end of the stream."""
    file.seek(0)
    if file.read(4) != b"OggS":
        return False
    length = os.fstat(file.fileno()).st_size
    file.seek(max(0, length - 2 * _OGG_PAGE))
    end = file.read()
    position = end.rfind(b"OggS\0")
    if position < 0:  # other data follows the stream
        return False
    page = end[position:]
    size = _ogg_page_size(page)
    return not (size and size <= len(page) and page[5] & 4)


def damaged_ogg_page(file: BinaryIO) -> int | None:
    """Return the number of the first page of an Ogg file that is missing or was changed; None if there is none.

    Decoders leave such a page out without an error. Pages after the end of the first stream are ignored.
    """
    file.seek(0)
    if file.read(4) != b"OggS":
        return None
    position, serial, number = 0, b"", 0
    while True:
        file.seek(position)
        page = file.read(_OGG_PAGE)
        size = _ogg_page_size(page)
        if not page.startswith(b"OggS\0") or not size or size > len(page):
            return number or None  # without a first page, it is no Ogg file
        serial = serial or page[14:18]
        if page[14:18] == serial:  # not of another stream, such as a picture
            if page[18:22] != number.to_bytes(4, "little") or page[22:26] != _ogg_checksum(page[:size]):
                return number
            number += 1
            if page[5] & 4:
                return None
        position += size


def _ogg_page_size(page: bytes) -> int:
    """Return the size of the Ogg page at the beginning of ``page``, or 0 if its header is incomplete."""
    if len(page) < 27 or len(page) < 27 + page[26]:
        return 0
    return 27 + page[26] + sum(page[27 : 27 + page[26]])


def _ogg_checksum(page: bytes) -> bytes:
    """Return the checksum of a page: the CRC-32 of zlib without its inversions and with the bits in reverse order."""
    content = (page[:22] + bytes(4) + page[26:]).translate(_REVERSED_BITS)
    return (zlib.crc32(content, 2**32 - 1) ^ (2**32 - 1)).to_bytes(4, "big").translate(_REVERSED_BITS)


def _of_riff(file: BinaryIO, length: int, layout: str) -> AudioData | None:
    long_size = None
    for chunk in _chunks(file, 12, length, layout):
        if chunk.name == b"ds64":  # the sizes of RF64: of the file, then of the data
            file.seek(chunk.start + 8)
            field = file.read(8)
            long_size = int.from_bytes(field, "little") if len(field) == 8 else None
        if chunk.name != b"data":
            continue
        present = length - chunk.start
        if chunk.size == _UNKNOWN_32:
            return AudioData(long_size, present)
        if chunk.size in _SOX_AND_ARECORD:
            return AudioData(None, present)
        if chunk.size == 0 and present > 0 and not _only_chunks(file, chunk.start, length, layout):
            return AudioData(None, present, chunk.size_field)
        return AudioData(chunk.size, present)
    return None


def _of_nist(file: BinaryIO, length: int) -> AudioData | None:
    """Return the audio data of a SPHERE file. Its header is text. In speech corpora, such files are named .wav."""
    file.seek(0)
    header = file.read(1024)
    size = re.match(rb"NIST_1A\n *(\d{1,9})\n", header)
    fields = dict(re.findall(rb"^(\w+) -\w+ (\d{1,18})$", header, re.MULTILINE))
    names = (b"sample_count", b"channel_count", b"sample_n_bytes")
    if size is None or not all(name in fields for name in names):
        return None
    return AudioData(math.prod(int(fields[name]) for name in names), length - int(size[1]))


def _only_chunks(file: BinaryIO, start: int, length: int, layout: str) -> bool:
    """Return whether a file continues at ``start`` with complete chunks to its end."""
    end = start
    for chunk in _chunks(file, start, length, layout):
        if not re.fullmatch(rb"[ -~]{4}", chunk.name):
            return False
        end = chunk.start + chunk.size
    return 0 <= length - end <= 1


def _chunks(
    file: BinaryIO, start: int, length: int, layout: str, including_header: bool = False, alignment: int = 2
) -> Iterator[_Chunk]:
    """Yield the chunks from position ``start`` on, without reading their content.

    Args:
        file: the file.
        start: position of the first chunk.
        length: size of the file.
        layout: format of the name and the size of a chunk, for ``struct``.
        including_header: whether the size counts name and size.
        alignment: chunks begin at multiples of this.
    """
    header = struct.Struct(layout)
    for _ in range(_MAX_CHUNKS):
        if start + header.size > length:
            return
        file.seek(start)
        name, size = header.unpack(file.read(header.size))
        size -= header.size if including_header else 0
        if size < 0:
            return
        begin = start + header.size
        yield _Chunk(name, begin - struct.calcsize(layout[0] + layout[-1]), begin, size)
        start = begin + -(-size // alignment) * alignment


def _named(chunks: Iterator[_Chunk], name: bytes) -> _Chunk | None:
    return next((chunk for chunk in chunks if chunk.name.startswith(name)), None)
