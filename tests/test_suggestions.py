"""Tests of suggestions for misspelled names."""

import pytest

from sashimi_diffusion.suggestions import did_you_mean, nearest_name


@pytest.mark.parametrize(
    ("name", "expected"),
    [("jackson", "Jackson"), ("jacksn", "Jackson"), ("THEO", "theo"), ("xyz", None), ("", None)],
)
def test_the_nearest_name(name: str, expected: str | None) -> None:
    assert nearest_name(name, ["theo", "Jackson", "lucas"]) == expected


def test_did_you_mean() -> None:
    assert did_you_mean("lucs", ["theo", "lucas"]) == ", did you mean 'lucas'?"
    assert did_you_mean("lucs", ["theo", "lucas"], separator="; ") == "; did you mean 'lucas'?"
    assert did_you_mean("lucs", []) == ""
