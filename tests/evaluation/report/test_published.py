"""Published figures are data that cannot be mixed up."""

import dataclasses

import pytest

from sashimi_evaluation.report import published as anchors
from sashimi_evaluation.report.published import GROUPS, Anchor


def find(group: anchors.AnchorGroup, model: str) -> Anchor:
    return next(anchor for anchor in group.anchors if anchor.model == model)


def test_figures_stand_in_the_right_columns():
    assert find(anchors.OFFICIAL, "DiffWave + SaShiMi") == Anchor(
        "DiffWave + SaShiMi", 23_000_000, fid=1.42, inception=5.94, mis=69.17, am=0.59
    )
    assert find(anchors.OFFICIAL, "SaShiMi").nll == 1.873
    assert find(anchors.RERUNS, "audio-diffusion-pytorch U-Net, 300k steps").am == 0.471
    conditional = find(anchors.DIFFWAVE, "DiffWave, class-conditional")
    assert (conditional.fid, conditional.fid_class, conditional.accuracy) == (None, 1.113, 0.912)
    assert find(anchors.MEL_DIFFUSION, "Score-Subnet, classifier guidance").inception == 8.65


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_every_group_says_whose_classifier_and_where_from(group: anchors.AnchorGroup):
    assert group.classifier
    assert "arXiv" in group.source or "github.com" in group.source
    models = [anchor.model for anchor in group.anchors]
    assert len(set(models)) == len(models) > 2


def test_figures_are_possible():
    for anchor in (anchor for group in GROUPS for anchor in group.anchors):
        figures = dataclasses.asdict(anchor)
        assert figures.pop("model")
        assert any(figures.values())
        assert all(value >= 0 for value in figures.values() if value is not None)
        assert anchor.inception is None or 1 <= anchor.inception <= 10  # ten digits
        assert anchor.accuracy is None or anchor.accuracy <= 1


def test_the_warning_names_both_traps():
    assert "another group" in anchors.WARNING
    assert "bundled" in anchors.WARNING
