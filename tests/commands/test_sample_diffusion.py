"""Tests of the classes, speakers and file names that ``sashimi-sample`` plans."""

from collections import Counter

import pytest
import torch

from sashimi_diffusion.commands.sample import build_parser
from sashimi_diffusion.commands.sample_diffusion import Clip, load_pipeline, plan_clips
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines import resolve_pipeline

CLASSES = {"num_classes": 3, "class_names": ["zero", "one", "two"]}
SPEAKERS = {"num_speakers": 2, "speaker_names": ["ann", "bob b."]}


def plan(config: dict, *arguments: str) -> list[Clip]:
    return plan_clips(build_parser().parse_args(arguments), config)


def files(config: dict, *arguments: str) -> list[str]:
    return [one.file for one in plan(config, *arguments)]


def test_sixty_samples_contain_every_digit_by_each_of_six_speakers() -> None:
    samples = plan({"num_classes": 10, "num_speakers": 6}, "--num-samples", "60")
    assert [one.label for one in samples[:20]] == [*range(10), *range(10)]
    assert [one.speaker for one in samples] == [speaker for speaker in range(6) for _ in range(10)]
    assert set(Counter((one.label, one.speaker) for one in samples).values()) == {1}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--label", "two"], ["0000-two-ann", "0001-two-bob_b.", "0002-two-ann", "0003-two-bob_b."]),
        (
            ["--label", "1,0", "--speaker", "1"],
            ["0000-one-bob_b.", "0001-zero-bob_b.", "0002-one-bob_b.", "0003-zero-bob_b."],
        ),
        (
            ["--label", "0,1", "--speaker", "bob b.,0"],
            ["0000-zero-bob_b.", "0001-one-bob_b.", "0002-zero-ann", "0003-one-ann"],
        ),
        (
            ["--label", "0", "--speaker", "1", "--speaker", "ann"],
            ["0000-zero-bob_b.", "0001-zero-ann", "0002-zero-bob_b.", "0003-zero-ann"],
        ),
        (["--speaker", "ann"], ["0000-zero-ann", "0001-one-ann", "0002-two-ann", "0003-zero-ann"]),
    ],
)
def test_chosen_classes_and_speakers_alternate(arguments: list[str], expected: list[str]) -> None:
    assert files(CLASSES | SPEAKERS, "--num-samples", "4", *arguments) == [f"{stem}.wav" for stem in expected]


def test_models_without_classes_or_speakers_have_shorter_file_names() -> None:
    assert files({}, "--num-samples", "2") == ["0000.wav", "0001.wav"]
    assert files(CLASSES, "--num-samples", "2") == ["0000-zero.wav", "0001-one.wav"]
    assert files(SPEAKERS, "--num-samples", "3") == ["0000-ann.wav", "0001-bob_b..wav", "0002-ann.wav"]
    unnamed = plan({"num_classes": 3, "num_speakers": 2}, "--num-samples", "2", "--label", "2")[1]
    assert (unnamed.file, unnamed.label, unnamed.class_name) == ("0001-2-1.wav", 2, None)
    assert (unnamed.speaker, unnamed.speaker_name) == (1, None)


@pytest.mark.parametrize(
    ("speaker", "message"),
    [
        ("an", r"no speaker 'an', did you mean 'ann'\? .this model has 0 to 1 or ann, bob b\."),
        ("2", "no speaker '2'"),
        ("ann,", "no speaker ''"),
    ],
)
def test_unknown_speakers_are_named(speaker: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(CLASSES | SPEAKERS, "--speaker", speaker)


def test_an_option_turns_cuda_graphs_off() -> None:
    for arguments, expected in (([], True), (["--no-cuda-graph"], False)):
        options = build_parser().parse_args(arguments)
        pipe = load_pipeline(resolve_pipeline("sashimi-digits"), options, torch.float32)
        assert pipe.cuda_graph is expected
