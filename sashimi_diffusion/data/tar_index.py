"""The index of a tar file of recordings (a shard): where each recording is, and the texts beside it."""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from sashimi_diffusion.cache_files import read_undamaged_record, write_cache_record
from sashimi_diffusion.data.audio import EXTENSIONS
from sashimi_diffusion.data.decoding import AudioFileError
from sashimi_diffusion.data.fingerprints import is_settled
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import reason, require_file
from sashimi_diffusion.terminal import printable

_FORMAT = 2  # version of the stored indexes
_LONGEST_TEXT = 1 << 16  # bytes of a member that contains a label
_BLOCK = 512
_COMPARED = 1024  # bytes at the beginning, in the middle and at the end of a recording


class Member(NamedTuple):
    """A recording in a shard.

    Attributes:
        name: path in the shard.
        offset: position of its content in the shard, in bytes.
        size: bytes of its content.
        texts: the requested texts beside it by name, see :func:`shard_index`.
    """

    name: str
    offset: int
    size: int
    texts: dict[str, str]


class ShardIndex(NamedTuple):
    """What is in a shard.

    Attributes:
        members: the recordings in their order.
        bad: the reasons why other content cannot be used, by name.
        sample: hash of some bytes of each recording, so that a shard with other recordings of the same names and sizes
            is another shard.
    """

    members: list[Member]
    bad: dict[str, str]
    sample: str


def shard_index(path: Path, wanted: Sequence[str], audio: str | None, cache: Path) -> ShardIndex:
    """Return the index of a shard; it is read from ``cache`` if the shard has not changed.

    The members ``folder/7.wav``, ``folder/7.cls`` and ``folder/7.json`` are one recording with two texts: the name of a
    member up to the first dot of its last part is the key of the recording, the rest is its ending. Hidden members are
    ignored.

    Args:
        path: a tar file that is not compressed.
        wanted: names of texts: the ending of a member, such as "cls" or "txt", or a key of the object in the member
            ending in "json".
        audio: ending of the members that are the recordings, without the first dot; None: wav, flac, ogg or mp3.
        cache: an existing folder.

    Raises:
        UserError: the shard does not exist, cannot be read, or is no tar file.
        OSError: the index cannot be stored.
    """
    found = require_file(path, "a tar file of recordings")
    stamps = [_FORMAT, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    key = hashlib.sha256(repr((os.fsencode(path.absolute()), sorted(wanted), audio)).encode()).hexdigest()[:32]
    memo = cache / f"{key}.shard.json"
    stored = read_undamaged_record(memo, "the tar file is read again")
    if isinstance(stored, dict) and stored.get("stamps") == stamps:
        return ShardIndex([Member(*member) for member in stored["members"]], stored["bad"], stored["sample"])
    settled = is_settled(found)  # before the file is read, which may take long
    try:
        with open(path, "rb") as file:
            index = _read(path, file, wanted, audio)
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {reason(error)}") from error
    if settled:
        write_cache_record(memo, {"stamps": stamps, **index._asdict()})
    return index


def _read(path: Path, file: BinaryIO, wanted: Sequence[str], audio: str | None) -> ShardIndex:
    groups: dict[str, dict[str, tarfile.TarInfo]] = {}
    bad: dict[str, str] = {}
    size = os.fstat(file.fileno()).st_size
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in _members(archive, size, bad):
                key, ending = _key(info.name)
                group = groups.setdefault(key, {})
                if ending in group:
                    bad[info.name] = "its name is in the tar file twice"
                group[ending] = info
            if problem := _problem_of_end(file, archive.offset, size):
                bad[""] = f"{problem} after {len(groups)} recordings"
    except tarfile.TarError as error:
        raise UserError(
            f"{printable(path)} is no tar file that can be read ({printable(error)}): expected one that is not "
            "compressed"
        ) from error
    found = [_member(file, key, group, wanted, audio, bad) for key, group in groups.items()]
    members = [member for member in found if member is not None and member.name not in bad]
    return ShardIndex(members, bad, _sample(file, members))


def _sample(file: BinaryIO, members: Sequence[Member]) -> str:
    """Return a hash of the beginning, the middle and the end of each recording."""
    digest = hashlib.blake2b(digest_size=16)
    for member in members:
        for start in (0, (member.size - _COMPARED) // 2, member.size - _COMPARED):
            first = max(start, 0)
            file.seek(member.offset + first)
            digest.update(file.read(min(_COMPARED, member.size - first)))
    return digest.hexdigest()


def _members(archive: tarfile.TarFile, size: int, bad: dict[str, str]) -> Iterator[tarfile.TarInfo]:
    """Yield the files of a tar file up to its end, or to where it is cut short."""
    while True:
        try:
            info = archive.next()
        except tarfile.ReadError as error:
            if archive.offset == 0:  # no tar file
                raise
            bad[""] = printable(error)
            return
        if info is None:
            return
        archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all; its type lacks the list
        name = PurePosixPath(info.name).name
        if info.isdir() or name.startswith((".", "__")):
            continue
        if not info.isreg() or info.issparse():
            bad[info.name] = "no regular file"
        elif info.offset_data + info.size > size:
            bad[info.name] = f"cut short: header says {info.size} bytes, file has {size - info.offset_data}"
        else:
            yield info


def _problem_of_end(file: BinaryIO, offset: int, size: int) -> str:
    """Return what is wrong with the end of a tar file, or "": tarfile takes a damaged header for the end."""
    if offset + _BLOCK > size:
        return "cut short"
    file.seek(offset)
    return "" if file.read(_BLOCK).strip(b"\0") == b"" else f"damaged at byte {offset}"


def key_of(name: str) -> str:
    """Return the key of a recording: its name without the ending."""
    return _key(name)[0]


def _key(name: str) -> tuple[str, str]:
    """Return the key and the ending of a member."""
    folder, slash, last = name.rpartition("/")
    key, _, ending = last.partition(".")
    return folder + slash + key, ending.lower()


def _member(
    file: BinaryIO,
    key: str,
    group: dict[str, tarfile.TarInfo],
    wanted: Sequence[str],
    audio: str | None,
    bad: dict[str, str],
) -> Member | None:
    """Return a recording with its texts; None, with a reason in ``bad``, if it cannot be used."""
    endings = [ending for ending in group if (f".{ending}".endswith(EXTENSIONS) if audio is None else ending == audio)]
    if len(endings) != 1:
        known = ", ".join(sorted(group))
        bad[key] = f"{len(endings)} audio files ({known})" if endings else f"no audio file ({known})"
        return None
    info = group[endings[0]]
    texts: dict[str, str] = {}
    try:
        for name in wanted:
            if name in group:
                texts[name] = _text(file, group[name]).strip()
        others = [name for name in wanted if name not in texts]
        if others and "json" in group:
            values = _object(_text(file, group["json"]), group["json"].name)
            texts |= {name: str(values[name]) for name in others if isinstance(values.get(name), (str, int))}
    except ValueError as error:
        bad[info.name] = printable(error)
        return None
    return Member(info.name, info.offset_data, info.size, {name: text for name, text in texts.items() if text})


def _object(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} is no JSON object")
    return value


def _text(file: BinaryIO, info: tarfile.TarInfo) -> str:
    if info.size > _LONGEST_TEXT:
        raise ValueError(f"{info.name} has {info.size} bytes, too many for a label")
    file.seek(info.offset_data)
    try:
        return file.read(info.size).decode()
    except UnicodeDecodeError:
        raise ValueError(f"{info.name} is not UTF-8 text") from None


def read_member(path: Path, member: Member) -> bytes:
    """Return the content of a recording.

    Raises:
        AudioFileError: the shard cannot be read, or is shorter than when its index was made.
    """
    try:
        with open(path, "rb") as file:
            file.seek(member.offset)
            content = file.read(member.size)
    except OSError as error:
        raise AudioFileError(member.name, f"unreadable ({reason(error)})") from error
    if len(content) < member.size:
        raise AudioFileError(member.name, "the tar file has become shorter")
    return content
