"""Recordings in tar files (shards), for corpora that are larger than the audio cache or than one disk.

The layout is that of the library WebDataset, but its pipelines are not used: their shuffle buffer is filled from a
stream, so a run that resumes would have to store the buffer, or to read the stream again up to its position. Here each
shard has an index of the positions of its recordings, which takes one pass over the headers and is cached. Any
recording can then be read at once, and the order of a shuffle buffer is a function of the seed and the position in the
run (:class:`sashimi_diffusion.training.examples.ShuffledShards`). A run resumes exactly without any stored state, and
the batches do not depend on the number of processes. The index has 28 bytes in memory for each recording.
"""

import hashlib
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from sashimi_diffusion.cache_files import cache_folder
from sashimi_diffusion.data.cache import Format, in_form, rms_of, writing_cache
from sashimi_diffusion.data.decoding import AudioFileError, decode_content
from sashimi_diffusion.data.levels import level_warning
from sashimi_diffusion.data.partition import SPLITS, check_division
from sashimi_diffusion.data.recordings import Recordings, changes_of, check_request, report_bad_files
from sashimi_diffusion.data.tar_corpus import Request, find_shards, read_corpus
from sashimi_diffusion.data.tar_index import Member, ShardIndex, read_member, shard_index
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import printable

_KEPT_SAMPLES = 2**26  # of decoded recordings, 256 MB
_KEPT_MEMBERS = 200_000  # of the indexes of shards
_LOOKED_AT = 20  # recordings that are decoded before the run, to say what reading changes
_WARNINGS = 20  # recordings that are named in warnings
_Value = TypeVar("_Value")


class TarShards(Recordings):
    """Data set of the recordings in tar files; each recording is one item, which starts at its first sample.

    Recordings are read and decoded when they are used; nothing is written to the audio cache except the index.

    A hash of ``seed`` and the name of a recording without its ending, as a share of its largest value, decides about
    its part: below ``splits[1]`` validation, below the sum of ``splits[1]`` and ``splits[2]`` test, above it training.
    Recordings with the same name in several shards are in the same part, and new shards do not move recordings.

    A recording that cannot be used is found when it is read. It is an error, or, with ``skip_bad_files``, the next one
    in the order of the shards takes its place, so batches remain a function of the position in the run.

    Args:
        path: a folder with tar files, a tar file, or a pattern such as ``shards/train-{000000..000009}.tar``.
        split: "train", "validation", "test" or "all".
        sample_rate: in Hz; recordings at other rates are resampled.
        length: samples in an item.
        pattern: pattern of the names without endings, see :class:`sashimi_diffusion.data.AudioFolder`.
        audio: ending of the audio, for example "mic1.flac"; None: wav, flac, ogg or mp3.
        labels, speakers: see :class:`sashimi_diffusion.data.tar_corpus.Request`.
        splits: ratios of training, validation and test recordings.
        shuffle_buffer: recordings among which the training order is shuffled.
        seed: seed of the division into parts.
        cache_dir: folder for the index; default :func:`sashimi_diffusion.cache_files.default_cache_dir`.
        skip_bad_files: skip recordings that cannot be used, with a warning.
        channels: see ``AudioFolder``.

    Attributes:
        groups: number of items in each shard, in the order of the items.

    Raises:
        UserError: there is no shard, a shard cannot be read, a field does not exist, the part is empty, or recordings
            cannot be used.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        sample_rate: int = 16000,
        length: int = 16000,
        pattern: str | None = None,
        audio: str | None = None,
        labels: str | None = None,
        speakers: str | None = None,
        splits: Sequence[float] = (0.88, 0.06, 0.06),
        shuffle_buffer: int = 1000,
        seed: int = 0,
        cache_dir: Path | str | None = None,
        skip_bad_files: bool = False,
        channels: int = 1,
    ) -> None:
        check_request(sample_rate, length, split, SPLITS)
        check_division(splits, "shuffled")
        request = Request(pattern, labels, speakers, tuple(splits), seed)
        self._texts, self._audio, self._cache = request.texts, audio, cache_folder(cache_dir)
        self._form, self._skip = Format(sample_rate, None, channels), skip_bad_files
        self.shuffle_buffer, self._shards = shuffle_buffer, find_shards(path)
        with writing_cache(self._cache):
            corpus = read_corpus(self._shards, self._index, request)
        root = Path(os.path.commonpath([shard.absolute().parent for shard in self._shards]))
        bad = {root / file.absolute().relative_to(root): reason for file, reason in corpus.bad.items()}
        chosen = corpus.part(split, splits)
        report_bad_files(bad, len(corpus.part("all", splits)) + len(bad), root, skip_bad_files, cache_dir)
        if not len(chosen):
            raise UserError(
                f"the {split} split of {printable(path)} is empty: it has {len(corpus.shard):,} recordings, and a hash "
                "of its name decides about the part of each; change data.splits, or add recordings"
            )
        self._shard, self._number = corpus.shard[chosen], corpus.number[chosen]
        super().__init__(
            _Beginnings(len(chosen)),
            np.full(len(chosen), -1) if corpus.classes is None else corpus.classes[0][chosen],
            sample_rate,
            length,
            channels,
            class_names=None if corpus.classes is None else corpus.classes[1],
            speakers=None if corpus.speakers is None else corpus.speakers[0][chosen],
            speaker_names=None if corpus.speakers is None else corpus.speakers[1],
        )
        self.groups = [int(count) for count in np.bincount(self._shard) if count]
        self._digest, self._contents = corpus.digest, corpus.contents
        self._indexes = _Recent[ShardIndex](_members_in, _KEPT_MEMBERS)
        self._decoded = _Recent[_Loaded](_samples_in, _KEPT_SAMPLES)
        self._bad: set[int] = set()
        self._named: set[int] = set()
        self.changes = self._look()

    def load(self, recording: int) -> tuple[np.ndarray, float]:
        """Read and decode a recording, see :meth:`Recordings.load`.

        Raises:
            UserError: it cannot be used.
        """
        loaded = self._loaded(recording)
        return loaded.samples, loaded.rms

    def usable(self, index: int) -> int:
        """Return ``index``, or that of the next recording that can be used, in the order of the shards.

        Raises:
            UserError: the recording cannot be used and such recordings are not skipped, or there is no usable one.
        """
        for number in range(len(self)):
            candidate = (index + number) % len(self)
            if candidate in self._bad:
                continue
            try:
                self.load(candidate)
            except AudioFileError as error:
                if not self._skip:
                    raise UserError(
                        f"{self.name(candidate)}: {error.reason}; repair or remove it, or skip such recordings with "
                        "skip_bad_files=True (--skip-bad-files on the command line)"
                    ) from error
                self._bad.add(candidate)
                self._say(candidate, f"{error.reason}; going on without it")
            else:
                return candidate
        raise UserError("no recording of the tar files can be used")

    def name(self, index: int) -> str:
        """Return the shard and the name of a recording, escaped for messages."""
        path, member = self._member(index)
        return f"{printable(path)}/{printable(member.name)}"

    def fingerprint(self) -> tuple[str, str]:
        """Return hashes of the names, texts and parts of the recordings, and of some bytes of each.

        The bytes are the first, middle and last 1024 of its file.
        """
        parts = [self.labels, self._shard, self._number, *([] if self.speakers is None else [self.speakers])]
        names = hashlib.sha256(self._digest + b"".join(part.tobytes() for part in parts))
        return names.hexdigest(), hashlib.sha256(self._digest + self._contents).hexdigest()

    def _index(self, path: Path) -> ShardIndex:
        return shard_index(path, self._texts, self._audio, self._cache)

    def _member(self, index: int) -> tuple[Path, Member]:
        shard = int(self._shard[index])
        members = self._indexes.get(shard, lambda: self._index(self._shards[shard])).members
        return self._shards[shard], members[self._number[index]]

    def _loaded(self, index: int) -> "_Loaded":
        return self._decoded.get(index, lambda: self._read(index))

    def _read(self, index: int) -> "_Loaded":
        path, member = self._member(index)
        decoded = decode_content(read_member(path, member), member.name, self._form.channels)
        samples = in_form(decoded, self._form)
        if warning := level_warning(samples):
            self._say(index, f"{warning}; it is used as it is")
        return _Loaded(samples, rms_of(samples), decoded.sample_rate, decoded.channels)

    def _say(self, index: int, text: str) -> None:
        if index in self._named or len(self._named) > _WARNINGS:
            return
        self._named.add(index)
        last = "; further recordings are not named" if len(self._named) > _WARNINGS else ""
        warnings.warn(f"{self.name(index)}: {text}{last}", stacklevel=3)

    def _look(self) -> str:
        """Decode some recordings, and return what reading changes, see the attribute ``changes``."""
        spread = np.unique(np.linspace(0, len(self) - 1, min(_LOOKED_AT, len(self))).round().astype(int))
        chosen = dict.fromkeys(self.usable(int(index)) for index in spread)
        loaded = [self._loaded(index) for index in chosen]
        sources = np.asarray([(one.sample_rate, one.channels) for one in loaded])
        return changes_of(sources, self._form.sample_rate, self._form.channels, "recordings that were looked at")


class _Recent(Generic[_Value]):
    """The values that were used last, up to a total size; threads may share it.

    Args:
        size: a function from a value to its size.
        largest: total size of the values that are kept; the newest value is always kept.
    """

    def __init__(self, size: Callable[[_Value], int], largest: int) -> None:
        self._size, self._largest = size, largest
        self._clear()

    def _clear(self) -> None:
        self._values: OrderedDict[int, _Value] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple[Callable[[_Value], int], int]:
        return self._size, self._largest  # worker processes that are spawned keep values of their own

    def __setstate__(self, state: tuple[Callable[[_Value], int], int]) -> None:
        self._size, self._largest = state
        self._clear()

    def get(self, key: int, create: Callable[[], _Value]) -> _Value:
        """Return the value of a key; it is created if it is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = create()  # without the lock, so that threads decode at the same time
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._total += self._size(value)
            while self._total > self._largest and len(self._values) > 1:
                self._total -= self._size(self._values.popitem(last=False)[1])
        return value


class _Loaded(NamedTuple):
    """A decoded recording, its root mean square, and the rate and the channels of its file."""

    samples: np.ndarray
    rms: float
    sample_rate: int
    channels: int


def _members_in(index: ShardIndex) -> int:
    return len(index.members)


def _samples_in(loaded: _Loaded) -> int:
    return loaded.samples.size


class _Beginnings(Sequence[tuple[int, int]]):
    """The items (0, 0), (1, 0), …"""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # no part of it is ever requested
        if not 0 <= index < self._count:
            raise IndexError(index)
        return index, 0
