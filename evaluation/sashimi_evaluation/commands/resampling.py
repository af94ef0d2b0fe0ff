"""The options ``--resamples`` and ``--seed`` of the commands."""

import argparse

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.intervals import Resampling

_MOST_RESAMPLES = 10_000


def resampling_of(options: argparse.Namespace) -> Resampling:
    """Return the settings of the confidence intervals.

    Raises:
        UserError: a number is out of its range.
    """
    if not 2 <= options.resamples <= _MOST_RESAMPLES:
        raise UserError(f"--resamples is {options.resamples}, expected at least 2 and at most {_MOST_RESAMPLES}")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed is {options.seed}, expected a whole number from 0 to {2**32 - 1}")
    return Resampling(options.resamples, options.seed)
