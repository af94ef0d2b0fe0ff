"""From raters' answers to mean opinion scores, transcription accuracy and agreement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sashimi_evaluation.listening_test.agreement import fleiss_kappa, mean_weighted_kappa
from sashimi_evaluation.listening_test.ratings import OPINIONS, TRANSCRIPTION, WORDS, allowed
from sashimi_evaluation.listening_test.reading import Answer, Key, read_answers, read_key

ACCURACY = "accuracy"
_RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """A mean over raters and items.

    Attributes:
        mean: of all answers.
        low: lower end of the 95 % interval, or None where a single answer leaves nothing to resample.
        high: its upper end, or None.
        answers: their number.
    """

    mean: float
    low: float | None
    high: float | None
    answers: int


@dataclass(frozen=True)
class ListeningResult:
    """What a listening test found.

    Attributes:
        test: its id.
        raters: how many took part.
        scores: by method, then by rating: mean opinion scores from 1 to 5 for ``quality``, ``intelligibility`` and
            ``diversity``, and ``accuracy`` from 0 to 1 of the transcriptions of clips whose digit is known.
        agreement: by rating; Fleiss' kappa for ``transcription``, the mean over pairs of raters of the quadratically
            weighted kappa for the others. NaN where it is undefined, such as with a single rater.
    """

    test: str
    raters: int
    scores: Mapping[str, Mapping[str, Score]]
    agreement: Mapping[str, float]


def score_listening_test(key: Path | str, csvs: Sequence[Path | str], seed: int = 0) -> ListeningResult:
    """Scores the files that raters saved.

    The intervals come from the pigeonhole bootstrap (Owen 2007, "The pigeonhole bootstrap", Annals of Applied
    Statistics 1(2), 386-411): raters and items are resampled independently of each other, since the ratings of one
    rater have something in common, and so have those of one clip. It errs on the wide side. With a single rater there
    is nothing to resample on that side: the interval then says how clips scatter, and nothing of other raters.

    Args:
        key: the ``.key.json`` that was written beside the test.
        csvs: the raters' files; one may hold several raters, and raters need not have rated everything.
        seed: of the bootstrap.

    Raises:
        UserError: a file cannot be read, is of another test, misses columns, or has an answer that is not allowed or
            was given twice; the text names file and line.
    """
    known = read_key(key)
    answers = read_answers(csvs, known)
    scores: dict[str, dict[str, Score]] = {method: {} for method in dict.fromkeys(known.methods.values())}
    agreement: dict[str, float] = {}
    for rating in known.ratings:
        table, items = _table([answer for answer in answers if answer.rating == rating])
        agreement[rating] = _agreement(table, rating)
        values, items, name = _values(table, items, rating, known)
        for method, results in scores.items():
            own = values[:, [known.methods[item] == method for item in items]]
            if np.isfinite(own).any():
                results[name] = mean_score(own, seed)
    return ListeningResult(known.test, len({answer.rater for answer in answers}), scores, agreement)


def mean_score(values: np.ndarray, seed: int = 0) -> Score:
    """The mean of ``values`` with its 95 % interval by the pigeonhole bootstrap, see ``score_listening_test``.

    Args:
        values: shape (raters, items), NaN where there is no answer, at least one that is finite.
        seed: of the bootstrap.
    """
    rated = np.isfinite(values)
    answered = np.ix_(rated.any(axis=1), rated.any(axis=0))
    values, rated = values[answered], rated[answered]
    filled = np.where(rated, values, 0.0)
    mean, answers = float(filled.sum() / rated.sum()), int(rated.sum())
    if answers == 1:
        return Score(mean, None, None, answers)
    generator = np.random.default_rng(seed)
    raters, items = (generator.multinomial(n, np.full(n, 1 / n), _RESAMPLES).astype(float) for n in values.shape)
    totals = np.einsum("br,ri,bi->b", raters, filled, items, optimize=True)
    counts = np.einsum("br,ri,bi->b", raters, rated.astype(float), items, optimize=True)
    low, high = np.quantile(totals[counts > 0] / counts[counts > 0], [0.025, 0.975])
    return Score(mean, float(low), float(high), answers)


def _table(answers: Sequence[Answer]) -> tuple[np.ndarray, list[str]]:
    """Answers as indices into the allowed ones, shape (raters, items), NaN where there is none; and the items."""
    raters = list(dict.fromkeys(answer.rater for answer in answers))
    items = sorted({answer.item for answer in answers})
    table = np.full((len(raters), len(items)), np.nan)
    for answer in answers:
        place = raters.index(answer.rater), items.index(answer.item)
        table[place] = allowed(answer.rating).index(answer.value)
    return table, items


def _values(table: np.ndarray, items: list[str], rating: str, key: Key) -> tuple[np.ndarray, list[str], str]:
    """What is averaged: opinions from 1 to 5, or whether a transcription is right where that is known."""
    if rating != TRANSCRIPTION:
        return table + 1, items, rating
    labelled = [item for item in items if item in key.labels]
    labels = np.array([key.labels[item] for item in labelled], dtype=float)
    heard = table[:, [item in key.labels for item in items]]
    return np.where(np.isfinite(heard), heard == labels, np.nan), labelled, ACCURACY


def _agreement(table: np.ndarray, rating: str) -> float:
    if rating != TRANSCRIPTION:
        return mean_weighted_kappa(table, len(OPINIONS))
    return fleiss_kappa(np.stack([(table == word).sum(axis=0) for word in range(len(WORDS))], axis=1))
