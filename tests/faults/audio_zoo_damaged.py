"""Audio files that cannot be used: cut short, with wrong headers, impossible levels, too long, or no audio at all."""

import struct
from collections.abc import Iterator

import numpy as np

from tests.faults.audio_specimens import (
    LENGTH,
    MAX_SAMPLES,
    RATE,
    Decoded,
    Either,
    Refused,
    Specimen,
    at,
    chunk,
    encoded,
    flac_total,
    flipped,
    mean,
    of,
    pcm16,
    signal,
    wav,
)


def cut() -> Iterator[Specimen]:
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
                lambda f=format, n=length: of(f)[:n],
                Refused("cut short: " if (format, length) in (("OGG", 10), ("OGG", 20)) else "not audio"),
            )


def lying() -> Iterator[Specimen]:
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
            lambda n=factor: at(of("AU"), 8, struct.pack(">I", n * len(data))),
            Refused(reason),
        )
        yield Specimen(
            "FLAC that claims more",
            f"{name}.flac",
            lambda n=factor: flac_total(of("FLAC"), n * LENGTH),
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
        lambda: flac_total(of("FLAC"), 2**36 - 1),
        Refused(f"cut short: header says {2**36 - 1} samples, file has {LENGTH}"),
    )
    for byte in range(3):
        yield Specimen(
            "MP3 that claims more",
            f"frames-{byte}.mp3",
            lambda b=byte: flipped(of("MP3"), of("MP3").index(b"Xing") + 8 + b, 7),
            Refused("cut short: header says "),
        )
    yield Specimen("WAV that claims less", "half.wav", lambda: wav(data, size=LENGTH), Decoded(mean()[: LENGTH // 2]))


def levels() -> Iterator[Specimen]:
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
                Decoded(scale * mean(), 1e-7, warning),
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


def no_audio() -> Iterator[Specimen]:
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


def long() -> Iterator[Specimen]:
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


def flipped_bits() -> Iterator[Specimen]:
    """Files with one changed bit."""
    random = np.random.default_rng(0)
    for format, ending, outcome in (
        ("FLAC", "flac", Refused("cut short: header says 20000 samples, file has ")),
        ("MP3", "mp3", Either()),
        ("OGG", "ogg", Either()),
    ):
        size = len(of(format))
        for _ in range(8):
            position, bit = int(random.integers(size // 5, size)), int(random.integers(8))
            yield Specimen(
                f"{format} with a changed bit",
                f"bit-{position}-{bit}.{ending}",
                lambda f=format, p=position, b=bit: flipped(of(f), p, b),
                outcome,
            )
        for position in range(0, 40, 3):
            yield Specimen(
                f"{format} header with a changed bit",
                f"header-bit-{position}.{ending}",
                lambda f=format, p=position: flipped(of(f), p, 6),
                Either(),
            )
    for position in range(0, 44, 3):
        yield Specimen(
            "WAV header with a changed bit",
            f"header-bit-{position}.wav",
            lambda p=position: flipped(of("WAV"), p, 6),
            Either(),
        )


def _shortened(content: bytes, missing: float | None) -> bytes:
    return content[:-1] if missing is None else content[: round(len(content) * (1 - missing))]
