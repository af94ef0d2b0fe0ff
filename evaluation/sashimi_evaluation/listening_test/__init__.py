"""Listening tests: a page that collects ratings and transcriptions in a browser, and the scores computed from them."""

from sashimi_evaluation.listening_test.agreement import fleiss_kappa, mean_weighted_kappa, weighted_kappa
from sashimi_evaluation.listening_test.creation import usable_files, write_listening_test
from sashimi_evaluation.listening_test.ratings import RATINGS
from sashimi_evaluation.listening_test.scoring import ListeningResult, Score, mean_score, score_listening_test

__all__ = [
    "RATINGS",
    "ListeningResult",
    "Score",
    "fleiss_kappa",
    "mean_score",
    "mean_weighted_kappa",
    "score_listening_test",
    "usable_files",
    "weighted_kappa",
    "write_listening_test",
]
