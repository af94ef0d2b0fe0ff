"""Audio files that can be used: formats, channels and rates, streams, other data beside the audio."""

import struct
from collections.abc import Iterator

import numpy as np

from tests.faults.audio_specimens import (
    RATE,
    Decoded,
    Refused,
    Specimen,
    at,
    chunk,
    encoded,
    flac_total,
    mean,
    of,
    pcm16,
    signal,
    wav,
    without_tag,
)


def sound() -> Iterator[Specimen]:
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
                    Decoded(mean(channels), error=1e-7 if channels == 6 else 0),
                )


def coded() -> Iterator[Specimen]:
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
                Decoded(mean(channels), error, extra=extra),
            )


def misnamed() -> Iterator[Specimen]:
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
            Decoded(mean(), error),
        )


def streamed() -> Iterator[Specimen]:
    """Files whose headers were written before the length was known."""
    data = pcm16(signal())
    whole = Decoded(mean())
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
    yield Specimen("streamed AU", "streamed-au.wav", lambda: at(of("AU"), 8, b"\xff" * 4), whole)
    yield Specimen("streamed FLAC", "streamed.flac", lambda: flac_total(of("FLAC"), 0), whole)
    yield Specimen("MP3 without tag", "untagged.mp3", lambda: without_tag(of("MP3")), Decoded(mean(), 2.0, None, 3456))
    yield Specimen(
        "MP3 without tag",
        "untagged-id3.mp3",
        lambda: without_tag(of("MP3")) + b"TAG" + b"\0" * 125,
        Decoded(mean(), 2.0, None, 3456),
    )


def surrounded() -> Iterator[Specimen]:
    """Files with other data before or after the audio."""
    data, whole = pcm16(signal()), Decoded(mean())
    note = chunk(b"LIST", b"INFOISFT" + struct.pack("<I", 6) + b"tests\0")
    yield Specimen("WAV with chunks", "note-before.wav", lambda: wav(data, before=note), whole)
    yield Specimen("WAV with chunks", "note-after.wav", lambda: wav(data, after=note), whole)
    yield Specimen("WAV with chunks", "odd-before.wav", lambda: wav(data, before=chunk(b"junk", b"abc")), whole)
    yield Specimen("WAV with chunks", "zeros-after.wav", lambda: wav(data, after=bytes(5000)), whole)
    yield Specimen("WAV with chunks", "many.wav", lambda: wav(data, before=chunk(b"junk", b"") * 500), whole)
    yield Specimen("FLAC with more data", "zeros-after.flac", lambda: of("FLAC") + bytes(5000), whole)
    yield Specimen("Ogg with more data", "zeros-after.ogg", lambda: of("OGG") + bytes(5000), Decoded(mean(), 0.1))
    id3 = b"ID3\4\0\0" + bytes([0, 0, 7, 104]) + bytes(1000)
    yield Specimen("MP3 with more data", "id3-before.mp3", lambda: id3 + of("MP3"), Decoded(mean(), 0.1))
    yield Specimen("MP3 with more data", "id3-after.mp3", lambda: of("MP3") + b"TAG" + bytes(125), Decoded(mean(), 0.1))


def odd() -> Iterator[Specimen]:
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
            Decoded(mean()[10 : 10 + length]),
        )
