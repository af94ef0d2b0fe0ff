"""Tests of the table of published results."""

import dataclasses

import pytest

from sashimi_evaluation.report import published
from sashimi_evaluation.report.published import GROUPS, PublishedResult, ResultGroup


def find(group: ResultGroup, model: str) -> PublishedResult:
    return next(result for result in group.results if result.model == model)


def test_results_are_in_the_right_columns():
    assert find(published.OFFICIAL, "DiffWave + SaShiMi") == PublishedResult(
        "DiffWave + SaShiMi", 23_000_000, fid=1.42, inception_score=5.94, mis=69.17, am=0.59
    )
    assert find(published.OFFICIAL, "SaShiMi").nll == 1.873
    assert find(published.RERUNS, "audio-diffusion-pytorch U-Net, 300k steps").am == 0.471
    conditional = find(published.DIFFWAVE, "DiffWave, class-conditional")
    assert (conditional.fid, conditional.fid_by_class, conditional.accuracy) == (None, 1.113, 0.912)
    assert find(published.MEL_DIFFUSION, "Score-Subnet, classifier guidance").inception_score == 8.65


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_every_group_names_its_classifier_and_source(group: ResultGroup):
    assert group.classifier
    assert "arXiv" in group.source or "github.com" in group.source
    models = [result.model for result in group.results]
    assert len(set(models)) == len(models) > 2


def test_results_are_possible():
    for result in (result for group in GROUPS for result in group.results):
        values = dataclasses.asdict(result)
        assert values.pop("model")
        assert any(values.values())
        assert all(value >= 0 for value in values.values() if value is not None)
        assert result.inception_score is None or 1 <= result.inception_score <= 10  # ten digits
        assert result.accuracy is None or result.accuracy <= 1


def test_the_warning_names_both_limits_of_comparison():
    assert "another group" in published.WARNING
    assert "bundled" in published.WARNING
