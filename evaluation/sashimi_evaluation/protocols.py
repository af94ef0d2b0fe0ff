"""The figures as the official SaShiMi code computes them, for comparing with published tables: its bugs included."""

import numpy as np

from sashimi_evaluation.feature_extraction import FEATURES, PROBABILITIES, Measured
from sashimi_evaluation.metrics.figures import Figure
from sashimi_evaluation.metrics.inception import am_score
from sashimi_evaluation.metrics.official import (
    official_frechet_distance,
    official_inception_score,
    official_modified_inception_score,
    official_ndb,
    official_threshold_search,
    state_after_modified_inception_score,
)

BINS = 50
FEWEST_FOR_SEARCH = 20
NOT_THE_SCORE = "not the inception score: its entropy runs over the clips, so that missing classes hardly count"


def official_figures(reference: Measured, measured: Measured) -> list[Figure]:
    """FID, IS, mIS, AM and NDB as the official code has them, and of autoregressive clips those after its rejection.

    Args:
        reference: real clips; the official script takes the training set.
        measured: the clips to score; the papers take 2,048, or 10,240 autoregressive ones.

    Raises:
        UserError: scikit-learn or SciPy are not installed.
    """
    figures = _figures(reference, measured, "")
    likelihoods = measured.clips.log_likelihoods
    if not np.isfinite(likelihoods).all() or len(measured) < FEWEST_FOR_SEARCH:
        return figures
    ordered = measured.chosen(np.argsort(likelihoods, kind="stable"))
    # The official script's generator has scored its test set before; which half it draws depends on that set's size.
    random = state_after_modified_inception_score(len(reference))
    search = official_threshold_search(ordered.outputs[PROBABILITIES], random)
    return [*figures, *_figures(reference, ordered.chosen(search.kept), "_rejection")]


def _figures(reference: Measured, measured: Measured, suffix: str) -> list[Figure]:
    known, heard = reference.outputs, measured.outputs
    fewest, width = min(len(reference), len(measured)), heard[FEATURES].shape[1]
    if fewest < 2:
        note = "needs at least two clips on either side"
        return [Figure(f"official_fid{suffix}", "FID (official)", None, better="lower", note=note)]
    after = " after rejection by likelihood" if suffix else ""

    def figure(key: str, title: str, value: float, better: str, note: str = "") -> Figure:
        if not np.isfinite(value):
            value, note = None, f"{value}, as in the official code; {note}".rstrip("; ")
        return Figure(f"official_{key}{suffix}", f"{title}{after}", value, better=better, note=note)

    singular = f"unreliable: {fewest} clips for {width} feature dimensions" if fewest <= width else ""
    distance = official_frechet_distance(known[FEATURES], heard[FEATURES])
    return [
        figure("fid", "FID (official)", distance, "lower", singular),
        figure("is", "IS (official)", official_inception_score(heard[PROBABILITIES]), "higher", NOT_THE_SCORE),
        figure(
            "mis",
            "mIS (official)",
            official_modified_inception_score(heard[PROBABILITIES]),
            "higher",
            "an estimate from 10,000 random pairs, seed 0",
        ),
        figure("am", "AM", am_score(known[PROBABILITIES], heard[PROBABILITIES]), "lower"),
        *([figure("ndb", "NDB/K", official_ndb(known[FEATURES], heard[FEATURES]), "lower")] if fewest >= BINS else []),
    ]
