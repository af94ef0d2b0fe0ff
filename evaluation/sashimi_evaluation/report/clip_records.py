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

    It has the file, the label (None if unknown), the predicted class and its probability, the probability of the label,
    the nearest reference clip and the distance to it, the fields of
    :class:`sashimi_evaluation.metrics.signal.SignalProperties`, and the harmonics-to-noise ratio in dB by band. Values
    that a clip does not have are NaN or None.

    Args:
        evaluated: the set.
        reference: the clips that it is compared with.
        class_names: names of the classes.
    """
    features, (neighbors, distances) = evaluated.clip_features, evaluated.neighbors
    probabilities, labels = features.outputs[PROBABILITIES], features.clips.labels
    signal = {name: features.properties[name] for name in _SIGNAL}
    ratios = harmonics_to_noise(features.properties["periodicity"])
    records = []
    for index, predicted in enumerate(probabilities.argmax(axis=1)):
        label = int(labels[index])
        records.append(
            {
                "file": file_name(features, index),
                "label": None if label < 0 else class_names[label],
                "predicted": class_names[predicted],
                "probability": float(probabilities[index, predicted]),
                "label_probability": None if label < 0 else float(probabilities[index, label]),
                "nearest": file_name(reference, int(neighbors[index])),
                "distance": float(distances[index]),
                **{name: float(values[index]) for name, values in signal.items()},
                "hnr": dict(zip(_BAND_NAMES, ratios[index].tolist(), strict=True)),
            }
        )
    return records


def spectrum_record(features: ClipFeatures) -> dict[str, Any]:
    """Return the long-term average spectrum of a set: the lower edge of each band in Hz, and its level in dB."""
    levels = long_term_spectrum(features.properties["spectrum"])
    return {"hz": (BAND_HZ * np.arange(1, len(levels) + 1)).tolist(), "level": levels.tolist()}


def file_name(features: ClipFeatures, index: int) -> str:
    """Return the path of a clip, relative to its folder."""
    return features.clips.files[index].relative_to(features.clips.root).as_posix()
