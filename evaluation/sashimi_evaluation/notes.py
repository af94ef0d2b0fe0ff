"""Notes on a set of clips: what limits its metrics."""

from collections import Counter

from sashimi_diffusion.data.levels import USUAL_PEAK
from sashimi_evaluation.extraction import Extraction
from sashimi_evaluation.extractors import seconds_of
from sashimi_evaluation.feature_extraction import ClipFeatures

_FEW_RECORDINGS = 10


def notes_of(clips: ClipFeatures, extraction: Extraction) -> list[str]:
    """Return the notes on one set of an evaluation."""
    return [
        *clips.clips.notes,
        *_preprocessing_notes(clips, extraction),
        *_level_notes(clips),
        *_overlap_notes(clips, extraction.reference),
        *_recording_notes(clips, extraction.reference),
        *_window_notes(extraction.settings.window),
    ]


def _preprocessing_notes(clips: ClipFeatures, extraction: Extraction) -> list[str]:
    notes, properties, count = [], clips.properties, len(clips)
    rate, seconds = _input_of(extraction)
    rates = Counter(int(rate) for rate in properties["rate"])
    if set(rates) != {rate}:
        listing = ", ".join(f"{number} of {count} at {rate} Hz" for rate, number in sorted(rates.items()))
        notes.append(f"resampled to {rate} Hz: {listing}")
    mixed = int((properties["channels"] > 1).sum())
    if mixed:
        notes.append(f"mixed down to mono: {mixed} of {count} clips have more than one channel")
    cropped = int((properties["seconds"] > seconds + 1e-6).sum())
    if cropped:
        part = "second is" if seconds == 1 else f"{seconds:g} seconds are"
        notes.append(f"only the first {part} used: {cropped} of {count} {_kind(clips)} are longer")
    short = int((properties["seconds"] < seconds - 1e-3).sum()) if clips.recordings is not None else 0
    if short:
        notes.append(f"padded with zeros: {short} of {count} excerpts are recordings shorter than the window")
    return notes


def _input_of(extraction: Extraction) -> tuple[int, float]:
    """Return the sample rate in Hz and the duration in seconds that the classifier, or else the extractor takes."""
    classifier, extractor, windows = extraction.classifier, extraction.extractor, extraction.settings.windows
    if classifier is not None:
        return classifier.sample_rate, classifier.seconds
    assert extractor is not None  # `extract_features` refuses an evaluation without both
    return extractor.sample_rate, seconds_of(extractor) if windows is None else windows.seconds


def _kind(clips: ClipFeatures) -> str:
    return "clips" if clips.recordings is None else "excerpts"


def _recording_notes(clips: ClipFeatures, reference: ClipFeatures) -> list[str]:
    if clips.recordings is None:
        return ["no confidence intervals of most metrics, because there is one clip"] if len(clips) == 1 else []
    if clips.files == 1:
        return ["no confidence intervals, because all excerpts are from one recording"]
    if min(clips.files, reference.files) < _FEW_RECORDINGS:
        return [
            f"the confidence intervals are too narrow: they resample whole recordings, of which the set has "
            f"{clips.files} and the reference {reference.files}"
        ]
    return []


def _level_notes(clips: ClipFeatures) -> list[str]:
    high = int((clips.properties["peak"] > USUAL_PEAK).sum())
    if not high:
        return []
    return [
        f"{high} of {len(clips)} {_kind(clips)} have samples above {USUAL_PEAK:g} although full scale is 1: 16-bit "
        "integers stored as floating point?"
    ]


def _overlap_notes(clips: ClipFeatures, reference: ClipFeatures) -> list[str]:
    known = set(reference.fingerprints)
    same = sum(text in known for text in clips.fingerprints)
    if not same:
        return []
    return [
        f"{same} of {len(clips)} {_kind(clips)} are also in the reference, so metrics that depend on distances are "
        "too good: choose a reference that does not contain the clips"
    ]


def _window_notes(window: tuple[float, float] | None) -> list[str]:
    if window is None:
        return []
    low, high = window
    return [f"likelihood window: the {low:.0%} least and the {high:.0%} most likely clips are left out"]
