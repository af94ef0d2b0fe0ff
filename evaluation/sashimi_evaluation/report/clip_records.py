"""The answers about single clips in the JSON report: the classifier's, the nearest reference clip, and the signal."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sashimi_evaluation.evaluation import EvaluatedSet
from sashimi_evaluation.feature_extraction import PROBABILITIES, ClipFeatures
from sashimi_evaluation.metrics.harmonics import BANDS, harmonics_to_noise
from sashimi_evaluation.metrics.spectrum import BAND_HZ, long_term_spectrum

_BAND_NAMES = [f"{low // 1000}-{high // 1000} kHz" for low, high in BANDS]
_SIGNAL = ("seconds", "level", "noise_floor", "inner_floor", "word_seconds", "voiced_share")


def clip_records(evaluated: EvaluatedSet, reference: ClipFeatures, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """Return one record for each clip of a set.

    It has the file, the start of the clip or excerpt in it in seconds, the label (None if unknown), the predicted class
    and its probability, the probability of the label, the nearest reference clip, its start and the distance to it, the
    fields of :class:`sashimi_evaluation.metrics.signal.SignalProperties`, the onsets per second, and the
    harmonics-to-noise ratio in dB by band. Values that a clip does not have are NaN or None; without a classifier,
    these are all values of classes; with one, the onsets.

    Args:
        evaluated: the set.
        reference: the clips that it is compared with.
        class_names: names of the classes; empty without a classifier.
    """
    features, (neighbors, distances) = evaluated.clip_features, evaluated.neighbors
    signal = {name: features.properties[name] for name in _SIGNAL}
    onsets = features.properties.get("onsets_per_second")
    ratios = harmonics_to_noise(features.properties["periodicity"])
    records = []
    for index, nearest in enumerate(neighbors.tolist()):
        records.append(
            {
                "file": file_name(features, index),
                "start": float(features.properties["start"][index]),
                **_class_answers(features, index, class_names),
                "nearest": file_name(reference, nearest),
                "nearest_start": float(reference.properties["start"][nearest]),
                "distance": float(distances[index]),
                **{name: float(values[index]) for name, values in signal.items()},
                "onsets_per_second": None if onsets is None else float(onsets[index]),
                "hnr": dict(zip(_BAND_NAMES, ratios[index].tolist(), strict=True)),
            }
        )
    return records


def _class_answers(features: ClipFeatures, index: int, class_names: Sequence[str]) -> dict[str, Any]:
    answers: dict[str, Any] = dict.fromkeys(("label", "predicted", "probability", "label_probability"))
    if PROBABILITIES not in features.outputs:
        return answers
    probabilities, label = features.outputs[PROBABILITIES][index], int(features.clips.labels[index])
    predicted = int(probabilities.argmax())
    answers |= {"predicted": class_names[predicted], "probability": float(probabilities[predicted])}
    if label >= 0:
        answers |= {"label": class_names[label], "label_probability": float(probabilities[label])}
    return answers


def spectrum_record(features: ClipFeatures) -> dict[str, Any]:
    """Return the long-term average spectrum of a set: the lower edge of each band in Hz, and its level in dB."""
    levels = long_term_spectrum(features.properties["spectrum"])
    return {"hz": (BAND_HZ * np.arange(1, len(levels) + 1)).tolist(), "level": levels.tolist()}


def file_name(features: ClipFeatures, index: int) -> str:
    """Return the path of a clip, relative to its folder."""
    return features.clips.files[index].relative_to(features.clips.root).as_posix()
