"""Tests of the card of a run's pipeline."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from diffusers.configuration_utils import FrozenDict
from huggingface_hub import ModelCard

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.autoregressive.task import AutoregressiveTask
from sashimi_diffusion.training.config import from_tree
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import train
from sashimi_diffusion.training.model_card import REPLACED, diffusion_usage
from sashimi_evaluation.classifiers.training.config import ClassifierConfig
from sashimi_evaluation.classifiers.training.task import ClassifierTask
from tests.faults.forked_runs import write_configs

CARD = [
    "card.license=cc-by-4.0",
    "card.title=Two tones",
    "card.datasets=[ann/tones]",
    "card.language=[en]",
    "card.text=High and low.",
]


def read(run: Path) -> str:
    return (run / "pipeline" / "README.md").read_text()


def block(card: str, language: str) -> str:
    return card.split(f"```{language}\n")[1].split("```")[0]


def test_the_card_of_a_diffusion_run(tiny_config: Callable, recordings: Path, tmp_path: Path) -> None:
    run = train(DiffusionTask, tiny_config(*CARD))
    text = read(run)
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "language": ["en"],
        "license": "cc-by-4.0",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-audio",
        "tags": ["audio-generation", "diffusion", "state-space-models", "sashimi-diffusion"],
        "datasets": ["ann/tones"],
    }
    assert "# Two tones\n\nHigh and low.\n\nThis is a diffusion model of raw audio, conditioned on the class: " in text
    assert "SashimiDenoiser with 5,847 parameters, trained with sashimi-diffusion for 8 optimizer steps" in text
    assert (
        "| examples | 11 training and 4 held-out examples; 19% of the audio is not used: 7 of 8 recordings go" in text
    )
    assert f"| folder | {recordings.name} |" in text
    assert "| sample rate | 8,000 Hz |" in text
    assert "| class names | 0, 1 |" in text
    assert "| validation loss | " in text
    assert "(step 8) |" in text
    assert str(tmp_path) not in text
    assert str(recordings.parent) not in text
    settings = yaml.safe_load(block(text, "yaml"))
    assert settings["optimizer"]["lr"] == 2e-3
    assert not {"output_dir", "card", "tracking"} & set(settings)
    assert not {"path", "cache_dir"} & set(settings["data"])
    names: dict[str, Any] = {}
    exec(block(text, "python").replace("OWNER/NAME", str(run / "pipeline")), names)
    assert names["audio"].shape == (4, 1, 256)


def test_a_card_follows_the_run_until_it_is_edited(tiny_config: Callable, tmp_path: Path) -> None:
    constant = "optimizer.decay=constant"
    run = train(DiffusionTask, tiny_config(constant, "training.steps=4"))
    assert "for 4 optimizer steps" in read(run)
    assert "license: unknown\n" in read(run)
    assert "Not decided yet. Set `card.license`" in read(run)
    train(DiffusionTask, tiny_config(constant, "card.license=other"), resume=True)
    assert "for 8 optimizer steps" in read(run)
    assert "license: other\n" in read(run)
    edited = read(run).replace(REPLACED, "").replace("license: other", "license: mit")
    (run / "pipeline" / "README.md").write_text(edited)
    train(DiffusionTask, tiny_config(constant, "training.steps=12"), resume=True)
    assert read(run) == edited
    pipeline = SashimiPipeline.from_pretrained(run / "pipeline")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "README.md").write_text("mine")
    pipeline.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_text() == "mine"


def test_the_figures_of_a_resumed_run_are_those_before_it(tiny_config: Callable) -> None:
    run = train(DiffusionTask, tiny_config())
    train(DiffusionTask, tiny_config("training.steps=9", "training.validate_every=0"), resume_from="step-000004")
    assert "(step 4) |" in read(run).split("| validation loss |")[1].splitlines()[0]
    assert "for 9 optimizer steps" in read(run)


@pytest.mark.parametrize("kind", ["autoregressive", "classifier"])
def test_the_cards_of_other_runs(tmp_path: Path, kind: str) -> None:
    write_configs(tmp_path)
    task, config = {
        "autoregressive": (AutoregressiveTask, AutoregressiveConfig),
        "classifier": (ClassifierTask, ClassifierConfig),
    }[kind]
    tree = yaml.safe_load((tmp_path / f"{kind}.yaml").read_text())
    tree["training"] |= {"steps": 1, "validate_every": 0}
    run = train(task, from_tree(config, tree | {"output_dir": str(tmp_path / "run")}))
    text = read(run)
    assert str(tmp_path) not in text
    expected = {
        "autoregressive": ("library_name: diffusers", "text-to-audio", "SashimiAutoregressivePipeline.from_pretrained"),
        "classifier": ("library_name: sashimi-diffusion", "audio-classification", "load_classifier"),
    }
    for part in (*expected[kind], "| test ", "license: unknown", "| examples | "):
        assert part in text


def test_the_card_of_a_vocoder_asks_for_spectrograms() -> None:
    usage = diffusion_usage(SimpleNamespace(config=FrozenDict(mel_channels=80)))
    assert usage.pipeline_tag == "text-to-speech"
    assert usage.command.endswith("--resynthesize recordings")
    assert "mel = pipe.mel(recording)" in usage.python
    assert "pipe(mel=mel).audios  # mel: (80 channels, frames)" in usage.python


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("card.license=CC BY", "card.license is 'CC BY': it must be an identifier such as cc-by-4.0"),
        ("card.datasets=[a b]", "card.datasets is .*: each must be a name of the hub, such as owner/name"),
        ("card.language=[English]", "card.language is .*: each must be a code such as en"),
        (
            "card.language=[no]",
            r"each item is text, not \[False\]; YAML reads no, off, yes and on .*: put text",
        ),
        ("card.language=[5]", r"each item is text, not \[5\]; put text in quotes"),
        ("card.licence=mit", "unknown config key card.licence: did you mean card.license"),
        ("tracking.name=x", "unknown config key tracking.name"),
        ("tracking.project=", "tracking.project is '': it must not be empty"),
    ],
)
def test_wrong_settings(tiny_config: Callable, override: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        tiny_config(override)
