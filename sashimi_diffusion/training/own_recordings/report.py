"""Describe a folder of recordings in a few lines."""

from collections.abc import Mapping

import numpy as np

from sashimi_diffusion.terminal import printable, shortened
from sashimi_diffusion.training.own_recordings.levels import SAMPLED_SECONDS
from sashimi_diffusion.training.own_recordings.settings import about_mixing
from sashimi_diffusion.training.own_recordings.survey import Survey
from sashimi_diffusion.training.own_recordings.window import Window

_LISTED = 12  # classes that are listed


def describe(survey: Survey, window: Window) -> str:
    """Return lines about the recordings, and about what the config changes of them."""
    rows = {
        "recordings": _recordings(survey),
        "durations": _durations(survey),
        "sample rate": _sample_rates(survey, window),
        "channels": _channels(survey, window),
        "levels": _levels(survey),
        "classes": _names(survey.classes, f", from {printable(survey.layout.source)}")
        or survey.layout.note
        or "none: neither sub-folders nor file names look like classes (--pattern names them)",
        "speakers": _names(survey.speakers, "") or "none",
    }
    return "\n".join([printable(survey.root), *(f"  {name:<12} {text}" for name, text in rows.items())])


def _recordings(survey: Survey) -> str:
    text = f"{len(survey.recordings):,} files, {_duration(3600 * survey.hours)}"
    return text + (f"; {len(survey.bad):,} files cannot be used" if survey.bad else "")


def _durations(survey: Survey) -> str:
    values = np.percentile([recording.seconds for recording in survey.recordings], [0, 5, 50, 95, 100])
    names = ("shortest", "5 %", "median", "95 %", "longest")
    return ", ".join(f"{_duration(value)} ({name})" for value, name in zip(values, names, strict=True))


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _sample_rates(survey: Survey, window: Window) -> str:
    counts = survey.counts(lambda recording: recording.sample_rate)
    text = _counted({f"{rate} Hz": count for rate, count in counts.items()})
    return text if list(counts) == [window.sample_rate] else f"{text}; resampled to {window.sample_rate} Hz"


def _channels(survey: Survey, window: Window) -> str:
    counts = survey.counts(lambda recording: recording.channels)
    text = _counted({str(channels): count for channels, count in counts.items()})
    return text if list(counts) == [window.channels] else f"{text}; {about_mixing(survey)}"


def _counted(counts: Mapping[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({count:,} files)" for name, count in list(counts.items())[:_LISTED])


def _levels(survey: Survey) -> str:
    levels = survey.levels
    quiet, loud = np.percentile(20 * np.log10(levels.rms), [10, 90])
    peak = 20 * np.log10(levels.peaks.max())
    of = "" if levels.complete else f"; measured on the first {SAMPLED_SECONDS} s of {levels.files} files"
    return (
        f"{quiet:.1f} to {loud:.1f} dB (10 % to 90 % of the files), peaks up to {peak:.1f} dB, "
        f"{levels.quiet:.0%} silence (below -60 dB){of}"
    )


def _names(counts: Mapping[str, int], source: str) -> str:
    if not counts:
        return ""
    shown = [f"{shortened(printable(name), 40)} ({count:,})" for name, count in list(counts.items())[:_LISTED]]
    return f"{len(counts):,}{source}: {', '.join(shown)}" + (", ..." if len(counts) > _LISTED else "")
