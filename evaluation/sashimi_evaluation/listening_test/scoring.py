"""Mean opinion scores, transcription accuracy and agreement from the answers of raters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sashimi_evaluation.listening_test.agreement import fleiss_kappa, mean_weighted_kappa
from sashimi_evaluation.listening_test.answers import Answer, Key, read_answers, read_key
from sashimi_evaluation.listening_test.ratings import OPINIONS, TRANSCRIPTION, WORDS, allowed

ACCURACY = "accuracy"
_RESAMPLES = 2000


@dataclass(frozen=True)
class Score:
    """A mean over raters and items.

    Attributes:
        mean: mean of all answers.
        low: lower end of the 95 % confidence interval, or None for a single answer.
        high: upper end of the interval, or None for a single answer.
        answers: number of answers.
    """

    mean: float
    low: float | None
    high: float | None
    answers: int


@dataclass(frozen=True)
class ListeningResult:
    """The result of a listening test.

    Attributes:
        test: id of the test.
        raters: number of raters.
        scores: by method, then by rating: mean opinion scores from 1 to 5 for ``quality``, ``intelligibility`` and
            ``diversity``, and ``accuracy`` from 0 to 1 for the transcriptions of clips whose digit is known.
        agreement: by rating; Fleiss' kappa for ``transcription``, the mean over pairs of raters of the quadratically
            weighted kappa for the others. NaN if it is undefined, for example with a single rater.
    """

    test: str
    raters: int
    scores: Mapping[str, Mapping[str, Score]]
    agreement: Mapping[str, float]


def score_listening_test(key: Path | str, csvs: Sequence[Path | str], seed: int = 0) -> ListeningResult:
    """Compute the scores of a listening test.

    The intervals come from the pigeonhole bootstrap (Owen 2007, "The pigeonhole bootstrap", Annals of Applied
    Statistics 1(2), 386-411): raters and items are resampled independently, because the ratings of one rater are
    correlated, and so are the ratings of one clip. The intervals tend to be too wide. With a single rater, only items
    are resampled; the interval then does not include the variation between raters.

    Args:
        key: the ``.key.json`` file that was written next to the folder of the test.
        csvs: the files that raters saved. A file may contain several raters, and raters may have skipped items.
        seed: seed of the bootstrap.

    Raises:
        UserError: a file cannot be read, belongs to another test, lacks columns, or has an answer that is not allowed
            or that was given twice (the message contains the file and the line); or scikit-learn is not installed.
    """
    test_key = read_key(key)
    answers = read_answers(csvs, test_key)
    scores: dict[str, dict[str, Score]] = {method: {} for method in dict.fromkeys(test_key.methods.values())}
    agreement: dict[str, float] = {}
    for rating in test_key.ratings:
        table, items = _answer_table([answer for answer in answers if answer.rating == rating])
        agreement[rating] = _agreement(table, rating)
        name = rating
        if rating == TRANSCRIPTION:
            name = ACCURACY
            values, items = _correct(table, items, test_key)
        else:
            values = table + 1  # opinions start at 1
        for method, results in scores.items():
            of_method = values[:, [test_key.methods[item] == method for item in items]]
            if np.isfinite(of_method).any():
                results[name] = mean_score(of_method, seed)
    return ListeningResult(test_key.test, len({answer.rater for answer in answers}), scores, agreement)


def mean_score(values: np.ndarray, seed: int = 0) -> Score:
    """Return the mean of ``values`` with its 95 % interval by the pigeonhole bootstrap, see ``score_listening_test``.

    SciPy's bootstrap resamples one axis only. Here both raters and items are resampled.

    Args:
        values: float64 (raters, items), NaN where there is no answer, with at least one finite value.
        seed: seed of the bootstrap.
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


def _answer_table(answers: Sequence[Answer]) -> tuple[np.ndarray, list[str]]:
    """Return a table (raters, items) of indices into the allowed answers, NaN where there is none, and the items."""
    raters = list(dict.fromkeys(answer.rater for answer in answers))
    items = sorted({answer.item for answer in answers})
    table = np.full((len(raters), len(items)), np.nan)
    for answer in answers:
        position = raters.index(answer.rater), items.index(answer.item)
        table[position] = allowed(answer.rating).index(answer.value)
    return table, items


def _correct(table: np.ndarray, items: Sequence[str], key: Key) -> tuple[np.ndarray, list[str]]:
    """Return a table (raters, items) of 1 (correct), 0 (wrong) and NaN (no answer) for items with a known digit."""
    labeled = [item for item in items if item in key.labels]
    labels = np.array([key.labels[item] for item in labeled], dtype=float)
    transcribed = table[:, [item in key.labels for item in items]]
    return np.where(np.isfinite(transcribed), transcribed == labels, np.nan), labeled


def _agreement(table: np.ndarray, rating: str) -> float:
    if rating != TRANSCRIPTION:
        return mean_weighted_kappa(table, len(OPINIONS))
    return fleiss_kappa(np.stack([(table == word).sum(axis=0) for word in range(len(WORDS))], axis=1))
