"""Tests of training on words of Speech Commands, in one folder or in several."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion import SashimiPipeline
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.hub import CARD
from sashimi_diffusion.training.config import check_same_run, load_config
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import train
from sashimi_diffusion.training.packaged_configs import CONFIGS

WORDS = CONFIGS / "diffusion" / "words.yaml"


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Write "no" to one folder and "go" to another, four training and two held-out recordings of each."""
    root = tmp_path_factory.mktemp("commands")
    random = np.random.default_rng(0)
    for folder, word in (("first", "no"), ("second", "go")):
        (root / folder / word).mkdir(parents=True)
        for number in range(6):
            noise = random.uniform(-0.4, 0.4, 200 + 20 * number)
            soundfile.write(root / folder / word / f"{number}_nohash_0.wav", noise, 16000)
        (root / folder / "validation_list.txt").write_text(f"{word}/0_nohash_0.wav\n{word}/1_nohash_0.wav\n")
        (root / folder / "testing_list.txt").write_text("")
    return root / "first", root / "second"


@pytest.fixture
def settings(commands: tuple[Path, Path]) -> list[str]:
    """Return the overrides that select the two words."""
    first, second = commands
    own = ["data.kind=speech_commands", f"data.path={first}", f"data.more_paths=['{second}']", "data.words=['no', go]"]
    return [*own, "data.sample_rate=16000"]


def test_the_words_are_the_classes_of_the_pipeline(tiny_config, settings, commands, tmp_path):
    run = train(DiffusionTask, tiny_config(*settings, "training.steps=2"))
    for folder in commands:
        shutil.copytree(folder, tmp_path / "moved" / folder.name)
    moved = [f"data.path={tmp_path / 'moved' / 'first'}", f"data.more_paths=['{tmp_path / 'moved' / 'second'}']"]
    train(DiffusionTask, tiny_config(*settings, *moved, "training.steps=3"), resume=True)
    pipe = SashimiPipeline.from_pretrained(run / "pipeline")
    assert pipe.model.config.class_names == ["no", "go"]
    assert pipe(class_labels="go", num_inference_steps=1).audios.shape == (1, 1, 256)
    card = (run / "pipeline" / CARD).read_text()
    assert "| folders | first, second |" in card
    assert str(tmp_path) not in card
    with pytest.raises(UserError, match=r"data\.words is \['go', 'no'\], but the run in .* with data\.words="):
        check_same_run(tiny_config(*settings, "data.words=[go, 'no']"), tiny_config(*settings, *moved))


def test_examples_and_their_labels(tiny_config, settings):
    source = DiffusionTask(tiny_config(*settings), torch.device("cpu"), False).source
    assert np.bincount(source.dataset.labels).tolist() == [4, 4]
    assert {path.parent.name for path in source.dataset.files} == {"no", "go"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.words=[no, go]", r"data\.words is \[False, 'go'\]: YAML reads yes, no, on and off as true and false"),
        ("data.words=[]", r"data\.words is \[\]: it must have at least one value"),
        ("data.words=go", r"data\.words must be null or a list in which each item is text"),
        ("data.words=[go, go]", r"data\.words is \['go', 'go'\]: the word go is there twice"),
        ("data.words=[../go]", r"data\.words is .*: '\.\./go' is no word of Speech Commands"),
        ("data.kind=folder", r"data\.words is \['no', 'go'\], but data\.kind is folder: .* data\.kind=speech_commands"),
    ],
)
def test_words_that_cannot_be_used_are_refused(tiny_config, settings, override, message):
    with pytest.raises(UserError, match=message) as error:
        tiny_config(*settings, override)
    assert "\n" not in str(error.value)


def test_a_missing_word_is_named(tiny_config, settings):
    with pytest.raises(UserError, match=r"and .*second has no folder named goo \(did you mean go\?\): expected"):
        DiffusionTask(tiny_config(*settings, "data.words=[goo]"), torch.device("cpu"), False)


def test_the_packaged_config_with_other_data():
    nine = load_config(DiffusionConfig, WORDS).data
    assert (nine.kind, len(nine.words)) == ("speech_commands", 9)
    assert load_config(DiffusionConfig, WORDS, ["data.words=[yes_, stop]"]).data.words == ["yes_", "stop"]
    folder = load_config(DiffusionConfig, WORDS, ["data.kind=folder", "data.pattern={label}_{take}"]).data
    assert (folder.words, folder.pattern) == (None, "{label}_{take}")
