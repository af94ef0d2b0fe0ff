"""Tests of the labels of diffusion runs: automatic, from sub-folders, or none."""

import shutil
from pathlib import Path

import pytest
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import train

AUTOMATIC = ["model.class_conditional=null", "sampling.guidance_scale=null", "data.holdout=null"]


@pytest.fixture
def sub_folders(recordings: Path, tmp_path: Path) -> Path:
    """Copy the recordings into a sub-folder for each class."""
    for path in recordings.glob("*.wav"):
        folder = tmp_path / "own" / ("low" if path.name[0] == "0" else "high")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / path.name[2:])
    return tmp_path / "own"


def task(config) -> DiffusionTask:
    return DiffusionTask(config, torch.device("cpu"), False)


def test_sub_folders_are_the_classes(tiny_config, sub_folders):
    run = train(
        DiffusionTask, tiny_config(f"data.path={sub_folders}", "data.pattern=null", *AUTOMATIC, "training.steps=2")
    )
    pipeline = SashimiPipeline.from_pretrained(run / "pipeline")
    assert (pipeline.model.config.class_names, pipeline.config.guidance_scale) == (["high", "low"], 2)
    assert {path.name for path in (run / "samples/step-000002").glob("*.wav")} == {"00-high.wav", "01-low.wav"}
    train(
        DiffusionTask,
        tiny_config(f"data.path={sub_folders}", "data.pattern=null", *AUTOMATIC, "training.steps=3"),
        resume=True,
    )


def test_without_labels_the_automatic_network_has_no_classes(tiny_config, sub_folders):
    for overrides in (["data.pattern=null"], [f"data.path={sub_folders}", "data.pattern={speaker}_{take}"]):
        automatic = task(tiny_config(*overrides, *AUTOMATIC))
        assert automatic.network.config.num_classes is None
        assert automatic.guidance_scale == 1
        assert automatic.description.endswith("held-out examples, no classes")


def test_an_unconditional_network_ignores_sub_folders(tiny_config, sub_folders):
    """Its splits do not depend on the sub-folders as classes, as in older versions."""
    overrides = [f"data.path={sub_folders}", "data.pattern=null", "data.holdout=null"]
    unconditional = task(tiny_config(*overrides, "model.class_conditional=false"))
    assert unconditional.network.config.num_classes is None
    assert set(unconditional.source.dataset.labels) == {-1}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model.class_conditional=true"], "model.class_conditional is true, but the recordings have no labels"),
        (["sampling.guidance_scale=2"], "sampling.guidance_scale is 2.0: without classes"),
    ],
)
def test_classes_that_do_not_exist_are_refused(tiny_config, overrides, expected):
    with pytest.raises(UserError) as error:
        task(tiny_config("data.pattern=null", *AUTOMATIC, *overrides))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
