"""Generated audio files of many kinds, sound and damaged, each with what reading it must give."""

import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import soundfile

RATE = 16000
LENGTH = 20000
MAX_SAMPLES = 100_000
"""The limit with which the zoo is read, so that the files that exceed it are small."""


@dataclass(frozen=True)
class Decoded:
    """The file is read as these samples.

    Attributes:
        samples: the mean of the channels, shape (length,).
        error: largest root mean square of the difference, relative to that of the samples; 0 is exact.
        warning: beginning of the warning about its level, or None.
        extra: number of samples that the format may add.
    """

    samples: np.ndarray
    error: float = 0.0
    warning: str | None = None
    extra: int = 0


@dataclass(frozen=True)
class Refused:
    """The file is refused with a reason that begins with this text."""

    reason: str


@dataclass(frozen=True)
class Either:
    """The file is read, or refused with a reason: it is damaged where a decoder may not notice it."""


@dataclass(frozen=True)
class Specimen:
    """One file.

    Attributes:
        kind: what the file is an example of.
        name: its name, with an ending.
        content: function that returns its content.
        outcome: what reading it gives.
    """

    kind: str
    name: str
    content: Callable[[], bytes]
    outcome: Decoded | Refused | Either


def signal(channels: int = 1, length: int = LENGTH, rate: int = RATE) -> np.ndarray:
    """Return tones of different frequency in each channel, in steps of 2^-15, shape (length, channels)."""
    time = np.arange(length)[:, None] / rate
    tones = 0.4 * np.sin(2 * np.pi * 300 * (1 + np.arange(channels)) * time)
    return np.round(tones * 2**15) / 2**15


def encoded(samples: np.ndarray, rate: int = RATE, format: str = "WAV", subtype: str = "PCM_16") -> bytes:
    """Return the content of an audio file."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def wav(data: bytes, before: bytes = b"", after: bytes = b"", size: int | None = None, **changes: int) -> bytes:
    """Return a wav file written by hand.

    Args:
        data: the samples.
        before: chunks before the samples.
        after: chunks after the samples.
        size: stated size of the samples; default: the true one.
        changes: fields of the format: tag, channels, rate, align, bits.
    """
    field = {"tag": 1, "channels": 1, "rate": RATE, "align": 2, "bits": 16} | changes
    layout = struct.pack(
        "<HHIIHH",
        field["tag"],
        field["channels"],
        field["rate"],
        field["rate"] * field["align"] % 2**32,
        field["align"],
        field["bits"],
    )
    stated = len(data) if size is None else size
    chunks = chunk(b"fmt ", layout) + before + b"data" + struct.pack("<I", stated) + data + after
    return b"RIFF" + struct.pack("<I", (4 + len(chunks)) % 2**32) + b"WAVE" + chunks


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def pcm16(samples: np.ndarray) -> bytes:
    return np.round(samples * 2**15).astype("<i2").tobytes()


def at(content: bytes, position: int, new: bytes) -> bytes:
    """Return content with other bytes at one position."""
    return content[:position] + new + content[position + len(new) :]


def flipped(content: bytes, position: int, bit: int) -> bytes:
    return at(content, position, bytes([content[position] ^ 1 << bit]))


def flac_total(content: bytes, total: int) -> bytes:
    """Return a FLAC file whose header states this number of samples."""
    field = int.from_bytes(content[18:26], "big") >> 36 << 36 | total
    return at(content, 18, field.to_bytes(8, "big"))


def without_tag(content: bytes) -> bytes:
    """Return an MP3 file without its first frame, which states the length."""
    return content[content.index(content[:2], 100) :]


def all_specimens() -> list[Specimen]:
    """Return the whole zoo."""
    return [
        specimen
        for family in (_sound, _coded, _misnamed, _streamed, _surrounded, _cut, _lying, _levels, _no_audio, _odd, _long)
        for specimen in family()
    ] + list(_flipped())


def _mean(channels: int = 1) -> np.ndarray:
    return signal(channels).mean(axis=1)


def _sound() -> Iterator[Specimen]:
    """Formats without loss, of several channels and rates."""
    formats = {
        "WAV": ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"],
        "FLAC": ["PCM_16", "PCM_24"],
        "WAVEX": ["PCM_16", "FLOAT"],
        "RF64": ["PCM_16", "PCM_24"],
        "W64": ["PCM_16", "FLOAT"],
        "AIFF": ["PCM_16", "PCM_24"],
        "AU": ["PCM_16"],
        "CAF": ["PCM_16", "ALAC_16"],
    }
    for format, subtypes in formats.items():
        for subtype in subtypes:
            for channels, rate in ((1, 16000), (2, 44100), (6, 8000)):
                yield Specimen(
                    f"{format} {subtype}",
                    f"{format}-{subtype}-{channels}-{rate}.{'flac' if format == 'FLAC' else 'wav'}",
                    lambda c=channels, r=rate, f=format, s=subtype: encoded(signal(c), r, f, s),
                    Decoded(_mean(channels), error=1e-7 if channels == 6 else 0),
                )


def _coded() -> Iterator[Specimen]:
    """Formats with loss; some add samples to fill their last block."""
    for format, subtype, ending, error, extra in (
        ("WAV", "PCM_U8", "wav", 0.03, 0),
        ("WAV", "ULAW", "wav", 0.03, 0),
        ("WAV", "ALAW", "wav", 0.03, 0),
        ("WAV", "IMA_ADPCM", "wav", 0.1, 1000),
        ("WAV", "MS_ADPCM", "wav", 0.1, 1000),
        ("WAV", "GSM610", "wav", 0.4, 1000),
        ("OGG", "VORBIS", "ogg", 0.1, 0),
        ("OGG", "OPUS", "ogg", 0.1, 0),
        ("MP3", "MPEG_LAYER_III", "mp3", 0.1, 0),
    ):
        for channels in (1, 2):
            if (subtype, channels) == ("GSM610", 2):
                continue
            yield Specimen(
                subtype,
                f"{subtype}-{channels}.{ending}",
                lambda c=channels, f=format, s=subtype: encoded(signal(c), RATE, f, s),
                Decoded(_mean(channels), error, extra=extra),
            )


def _misnamed() -> Iterator[Specimen]:
    for format, subtype, ending, error in (
        ("AIFF", "PCM_16", "wav", 0),
        ("FLAC", "PCM_16", "mp3", 0),
        ("WAV", "PCM_16", "flac", 0),
        ("OGG", "VORBIS", "wav", 0.1),
        ("MP3", "MPEG_LAYER_III", "ogg", 0.1),
    ):
        yield Specimen(
            "wrong ending",
            f"{format}-as.{ending}",
            lambda f=format, s=subtype: encoded(signal(), RATE, f, s),
            Decoded(_mean(), error),
        )


def _streamed() -> Iterator[Specimen]:
    """Files whose headers were written before the length was known."""
    data = pcm16(signal())
    whole = Decoded(_mean())
    for name, size in {"zero": 0, "ones": 2**32 - 1, "sox": 0x7FFFF000, "arecord": 0x7FFFFF00}.items():
        yield Specimen("streamed WAV", f"streamed-{name}.wav", lambda s=size: wav(data, size=s), whole)
        yield Specimen(
            "streamed WAV",
            f"streamed-{name}-riff.wav",
            lambda s=size: at(wav(data, size=s), 4, struct.pack("<I", min(s, 2**32 - 1))),
            whole,
        )
    note = chunk(b"LIST", b"INFO")
    yield Specimen("streamed WAV", "streamed-before.wav", lambda: wav(data, before=note, size=0), whole)
    yield Specimen("streamed AU", "streamed-au.wav", lambda: at(_of("AU"), 8, b"\xff" * 4), whole)
    yield Specimen("streamed FLAC", "streamed.flac", lambda: flac_total(_of("FLAC"), 0), whole)
    yield Specimen(
        "MP3 without tag", "untagged.mp3", lambda: without_tag(_of("MP3")), Decoded(_mean(), 2.0, None, 3456)
    )
    yield Specimen(
        "MP3 without tag",
        "untagged-id3.mp3",
        lambda: without_tag(_of("MP3")) + b"TAG" + b"\0" * 125,
        Decoded(_mean(), 2.0, None, 3456),
    )


def _of(format: str, channels: int = 1) -> bytes:
    subtype = {"MP3": "MPEG_LAYER_III", "OGG": "VORBIS"}.get(format, "PCM_16")
    return encoded(signal(channels), RATE, format, subtype)


def _surrounded() -> Iterator[Specimen]:
    """Files with other data before or after the audio."""
    data, whole = pcm16(signal()), Decoded(_mean())
    note = chunk(b"LIST", b"INFOISFT" + struct.pack("<I", 6) + b"tests\0")
    yield Specimen("WAV with chunks", "note-before.wav", lambda: wav(data, before=note), whole)
    yield Specimen("WAV with chunks", "note-after.wav", lambda: wav(data, after=note), whole)
    yield Specimen("WAV with chunks", "odd-before.wav", lambda: wav(data, before=chunk(b"junk", b"abc")), whole)
    yield Specimen("WAV with chunks", "zeros-after.wav", lambda: wav(data, after=bytes(5000)), whole)
    yield Specimen("WAV with chunks", "many.wav", lambda: wav(data, before=chunk(b"junk", b"") * 500), whole)
    yield Specimen("FLAC with more data", "zeros-after.flac", lambda: _of("FLAC") + bytes(5000), whole)
    yield Specimen("Ogg with more data", "zeros-after.ogg", lambda: _of("OGG") + bytes(5000), Decoded(_mean(), 0.1))
    id3 = b"ID3\4\0\0" + bytes([0, 0, 7, 104]) + bytes(1000)
    yield Specimen("MP3 with more data", "id3-before.mp3", lambda: id3 + _of("MP3"), Decoded(_mean(), 0.1))
    yield Specimen(
        "MP3 with more data", "id3-after.mp3", lambda: _of("MP3") + b"TAG" + bytes(125), Decoded(_mean(), 0.1)
    )


def _cut() -> Iterator[Specimen]:
    """Files that end early: 1 byte, a third and two thirds are missing."""
    exact, about = "cut short: header says 20000 samples, file has ", "cut short: header says about "
    for format, subtype, ending, reason in (
        ("WAV", "PCM_16", "wav", exact),
        ("WAV", "PCM_24", "wav", exact),
        ("WAV", "FLOAT", "wav", exact),
        ("WAV", "ULAW", "wav", exact),
        ("WAV", "IMA_ADPCM", "wav", about),
        ("WAVEX", "PCM_16", "wav", exact),
        ("RF64", "PCM_16", "wav", exact),
        ("W64", "PCM_16", "wav", exact),
        ("AIFF", "PCM_16", "wav", exact),
        ("AU", "PCM_16", "wav", exact),
        ("FLAC", "PCM_16", "flac", exact),
        ("FLAC", "PCM_24", "flac", exact),
        ("OGG", "VORBIS", "ogg", "cut short: the end of the stream is missing"),
        ("OGG", "OPUS", "ogg", "cut short: the end of the stream is missing"),
        ("MP3", "MPEG_LAYER_III", "mp3", exact),
    ):
        for part, missing in {"one": None, "third": 1 / 3, "two-thirds": 2 / 3}.items():
            if format in ("MP3", "W64") and missing is None:  # less than a frame of MP3; W64 ends with padding
                continue
            if format == "MP3" and part == "two-thirds":  # less than mpg123 needs to begin
                reason = "not audio that soundfile can read (its decoder cannot begin)"
            yield Specimen(
                f"cut {format} {subtype}",
                f"cut-{format}-{subtype}-{part}.{ending}",
                lambda f=format, s=subtype, m=missing: _shortened(encoded(signal(), RATE, f, s), m),
                Refused(reason),
            )
    for format, ending in (("WAV", "wav"), ("FLAC", "flac"), ("OGG", "ogg"), ("MP3", "mp3")):
        for length in (1, 4, 10, 20):
            yield Specimen(
                f"cut {format} header",
                f"cut-{format}-{length}.{ending}",
                lambda f=format, n=length: _of(f)[:n],
                Refused("cut short: " if (format, length) in (("OGG", 10), ("OGG", 20)) else "not audio"),
            )


def _shortened(content: bytes, missing: float | None) -> bytes:
    return content[:-1] if missing is None else content[: round(len(content) * (1 - missing))]


def _lying() -> Iterator[Specimen]:
    """Files whose headers state another length."""
    data = pcm16(signal())
    for factor in (2, 3, 1000):
        reason = f"cut short: header says {LENGTH * factor} samples, file has {LENGTH}"
        name = f"times-{factor}"
        yield Specimen(
            "WAV that claims more", f"{name}.wav", lambda n=factor: wav(data, size=n * len(data)), Refused(reason)
        )
        yield Specimen(
            "AU that claims more",
            f"{name}-au.wav",
            lambda n=factor: at(_of("AU"), 8, struct.pack(">I", n * len(data))),
            Refused(reason),
        )
        yield Specimen(
            "FLAC that claims more",
            f"{name}.flac",
            lambda n=factor: flac_total(_of("FLAC"), n * LENGTH),
            Refused(reason),
        )
    yield Specimen(
        "WAV that claims more",
        "largest.wav",
        lambda: wav(data, size=2**31 - 1),
        Refused("cut short: header says 10737"),
    )
    yield Specimen(
        "FLAC that claims more",
        "largest.flac",
        lambda: flac_total(_of("FLAC"), 2**36 - 1),
        Refused(f"cut short: header says {2**36 - 1} samples, file has {LENGTH}"),
    )
    for byte in range(3):
        yield Specimen(
            "MP3 that claims more",
            f"frames-{byte}.mp3",
            lambda b=byte: flipped(_of("MP3"), _of("MP3").index(b"Xing") + 8 + b, 7),
            Refused("cut short: header says "),
        )
    yield Specimen("WAV that claims less", "half.wav", lambda: wav(data, size=LENGTH), Decoded(_mean()[: LENGTH // 2]))


def _levels() -> Iterator[Specimen]:
    for subtype in ("FLOAT", "DOUBLE"):
        for name, value, reason in (
            ("nan", np.nan, "non-finite samples"),
            ("infinite", -np.inf, "non-finite samples"),
            ("1e19", 1e19, "samples up to 1e+19"),
            ("1e38", -1e38, "samples up to 1e+38"),
            ("50000", 5e4, "samples up to 5e+04"),
        ):
            for channels in (1, 2):
                samples = signal(channels)
                samples[LENGTH // 2] = value
                yield Specimen(
                    f"impossible level, {subtype}",
                    f"{name}-{subtype}-{channels}.wav",
                    lambda x=samples, s=subtype: encoded(x, RATE, "WAV", s),
                    Refused(reason),
                )
        for scale in (1e-11, 1e-30, 1e-40):
            yield Specimen(
                f"level near zero, {subtype}",
                f"scaled-{scale}-{subtype}.wav",
                lambda k=scale, s=subtype: encoded(k * signal(), RATE, "WAV", s),
                Refused("no sample above "),
            )
        for scale, warning in ((1e-6, None), (3.0, None), (24.0, None), (2.0**15, "samples up to 1310")):
            yield Specimen(
                f"unusual level, {subtype}",
                f"scaled-{scale:g}-{subtype}.wav",
                lambda k=scale, s=subtype: encoded(k * signal(), RATE, "WAV", s),
                Decoded(scale * _mean(), 1e-7, warning),
            )
    yield Specimen("overflow", "1e300.wav", lambda: encoded(signal() + 1e300, subtype="DOUBLE"), Refused("non-finite"))
    opposite = signal() * [[1, -1]]
    silent = Decoded(np.zeros(LENGTH), warning="silent")
    yield Specimen("silence", "opposite.wav", lambda: encoded(opposite), silent)
    for format, ending in (("WAV", "wav"), ("FLAC", "flac"), ("OGG", "ogg"), ("MP3", "mp3")):
        subtype = {"MP3": "MPEG_LAYER_III", "OGG": "VORBIS"}.get(format, "PCM_16")
        yield Specimen(
            "silence",
            f"silent-{format}.{ending}",
            lambda f=format, s=subtype: encoded(np.zeros(LENGTH), RATE, f, s),
            silent,
        )


def _no_audio() -> Iterator[Specimen]:
    random = np.random.default_rng(0).bytes(5000)
    contents = {
        "text": b"this is not audio",
        "page": b"<!DOCTYPE html><html><body>404</body></html>",
        "json": b'{"waveform": [0.1, 0.2]}',
        "archive": b"PK\3\4" + random,
        "picture": b"\x89PNG\r\n\x1a\n" + random,
        "random": random,
        "zeros": bytes(5000),
    }
    for name, content in contents.items():
        for ending in ("wav", "flac", "ogg"):
            yield Specimen("not audio", f"{name}.{ending}", lambda c=content: c, Refused("not audio"))
    for ending in ("wav", "flac", "ogg", "mp3"):
        yield Specimen("empty file", f"empty.{ending}", lambda: b"", Refused("empty (0 bytes)"))
    yield Specimen("no samples", "nothing.wav", lambda: wav(b""), Refused("empty (no samples)"))
    note = chunk(b"LIST", b"INFO")
    yield Specimen("no samples", "only-a-note.wav", lambda: wav(b"", after=note), Refused("empty (no samples)"))
    yield Specimen("no samples", "nothing.flac", lambda: encoded(np.zeros(0), format="FLAC"), Refused("empty"))


def _odd() -> Iterator[Specimen]:
    """Wav files with impossible formats, and unusual ones that are valid."""
    data = pcm16(signal())
    for name, changes in {
        "no-channels": {"channels": 0},
        "65535-channels": {"channels": 65535},
        "2000-channels": {"channels": 2000, "align": 4000},
        "no-rate": {"rate": 0},
        "unknown-tag": {"tag": 0x1234},
        "no-bits": {"bits": 0},
        "99-bits": {"bits": 99},
    }.items():
        yield Specimen("impossible format", f"{name}.wav", lambda c=changes: wav(data, **c), Refused("not audio"))
    for channels in (100, 1000):
        rows = np.frombuffer(data, "<i2").reshape(-1, channels) / 2**15
        yield Specimen(
            "many channels",
            f"{channels}-channels.wav",
            lambda c=channels: wav(data, channels=c, align=2 * c),
            Decoded(rows.mean(axis=1), 1e-4),
        )
    for rate in (1, 99, 1_000_001, 2_000_000_000):
        yield Specimen(
            "impossible rate",
            f"{rate}-Hz.wav",
            lambda r=rate: wav(data, rate=r),
            Refused(f"impossible sample rate ({rate} Hz"),
        )
    for length in (1, 2, 3):
        yield Specimen(
            "very short",
            f"{length}-samples.wav",
            lambda n=length: encoded(signal()[10 : 10 + n]),
            Decoded(_mean()[10 : 10 + length]),
        )


def _long() -> Iterator[Specimen]:
    """Files that are longer than the limit, some of a few kilobytes."""
    reason = Refused(f"more than {MAX_SAMPLES} samples")
    silence = np.zeros(5 * MAX_SAMPLES)
    for name, length in (("one-more", MAX_SAMPLES + 1), ("five-times", 5 * MAX_SAMPLES)):
        for format, ending in (("WAV", "wav"), ("FLAC", "flac"), ("OGG", "ogg"), ("MP3", "mp3")):
            subtype = {"MP3": "MPEG_LAYER_III", "OGG": "VORBIS"}.get(format, "PCM_16")
            yield Specimen(
                f"too long {format}",
                f"{name}-{format}.{ending}",
                lambda n=length, f=format, s=subtype: encoded(silence[:n], RATE, f, s),
                reason,
            )
    yield Specimen("too long FLAC", "no-total.flac", lambda: flac_total(encoded(silence, format="FLAC"), 0), reason)
    yield Specimen(
        "too long when resampled",
        "slow.wav",
        lambda: encoded(signal(), 200),
        Refused(f"more than {MAX_SAMPLES} samples at"),
    )


def _flipped() -> Iterator[Specimen]:
    """Files with one changed bit."""
    random = np.random.default_rng(0)
    for format, ending, outcome in (
        ("FLAC", "flac", Refused("cut short: header says 20000 samples, file has ")),
        ("MP3", "mp3", Either()),
        ("OGG", "ogg", Either()),
    ):
        size = len(_of(format))
        for _ in range(8):
            position, bit = int(random.integers(size // 5, size)), int(random.integers(8))
            yield Specimen(
                f"{format} with a changed bit",
                f"bit-{position}-{bit}.{ending}",
                lambda f=format, p=position, b=bit: flipped(_of(f), p, b),
                outcome,
            )
        for position in range(0, 40, 3):
            yield Specimen(
                f"{format} header with a changed bit",
                f"header-bit-{position}.{ending}",
                lambda f=format, p=position: flipped(_of(f), p, 6),
                Either(),
            )
    for position in range(0, 44, 3):
        yield Specimen(
            "WAV header with a changed bit",
            f"header-bit-{position}.wav",
            lambda p=position: flipped(_of("WAV"), p, 6),
            Either(),
        )
