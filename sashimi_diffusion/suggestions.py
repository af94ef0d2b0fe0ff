"""Suggest the name that a user probably meant."""

import difflib
from collections.abc import Iterable


def nearest_name(name: str, valid: Iterable[str]) -> str | None:
    """Return the entry of ``valid`` that is most similar to ``name``, ignoring case; None if none is similar."""
    by_lower_case = {entry.lower(): entry for entry in valid}
    near = difflib.get_close_matches(name.lower(), by_lower_case, n=1, cutoff=0.5)
    return by_lower_case[near[0]] if near else None


def did_you_mean(name: str, valid: Iterable[str], separator: str = ", ") -> str:
    """Return ", did you mean 'NAME'?" for the most similar entry of ``valid``; an empty string if none is similar."""
    near = nearest_name(name, valid)
    return "" if near is None else f"{separator}did you mean {near!r}?"
