"""Tests of the parts of ``sashimi-train init``: layouts, levels, windows, budgets, costs of steps, texts."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.config import load_config
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.own_recordings import levels, step_cost
from sashimi_diffusion.training.own_recordings.budget import USEFUL_STEPS, choose_budget
from sashimi_diffusion.training.own_recordings.config_text import Setting, config_text
from sashimi_diffusion.training.own_recordings.headers import Recording
from sashimi_diffusion.training.own_recordings.layout import find_layout
from sashimi_diffusion.training.own_recordings.networks import Size, limits_of, pools_of, sizes_of
from sashimi_diffusion.training.own_recordings.step_cost import Cost, OutOfMemory, TrialStep, measure_step
from sashimi_diffusion.training.packaged_configs import CONFIGS
from sashimi_diffusion.training.yaml_files import read_yaml


def product(form: str, *values: Sequence[object]) -> list[str]:
    return [form.format(*choice) for choice in itertools.product(*values)]


TAKES = range(6)


@pytest.mark.parametrize(
    ("names", "pattern", "classes", "speakers"),
    [
        (product("{}_ann_{}", range(3), TAKES), "{label}_{field2}_{index}", 3, 0),
        (product("{}_{}", ["bd", "sn"], ["808", "909", "x"]), "{label}_{field2}", 2, 0),
        ([f"{i:04}_{'dog' if i % 2 else 'cat'}" for i in range(20)], "{index}_{label}", 2, 0),
        (
            product("kick_{}", TAKES) + product("kick_hard_{}", TAKES) + product("hat_{}", TAKES),
            "{label}_{field2}",
            2,
            0,
        ),
        (product("{}_{:02}_{}", range(4), range(1, 5), TAKES), "{label}_{speaker}_{index}", 4, 4),
        (product("{:02}/{}_{}", range(1, 5), range(4), TAKES), "{speaker}/{label}_{index}", 4, 4),
        (product("{}/{}_{}", ["yes", "no"], ["ann", "bob"], TAKES), "{label}/{speaker}_{index}", 2, 2),
        (product("{}/{}/{}", ["train", "test"], ["yes", "no"], TAKES), "{folder1}/{label}/{name}", 2, 0),
        (product("{}/{}", ["a", "b"], TAKES) + product("{}/more/{}", ["a", "b"], TAKES), None, 2, 0),
        (product("{}/{}", ["train", "test"], TAKES), None, 0, 0),
        (product("rec{:03}", range(20)), None, 0, 0),
        (product("{}-{:02}-{:02}", [2021, 2022], range(1, 13), range(1, 28, 3)), None, 0, 0),
        (product("{:05}/{}", range(1200), range(2)), None, 0, 0),
        (["only"], None, 0, 0),
    ],
)
def test_layouts(names, pattern, classes, speakers):
    found = find_layout([Path("root", f"{name}.wav") for name in names], Path("root"))
    assert found.pattern == pattern
    assert (len(set(found.labels.values())), len(set(found.speakers.values()))) == (classes, speakers)
    assert not found.unmatched
    assert bool(found.note) == (len(names) == 2400)  # thousands of classes


def test_levels_are_those_of_the_samples(tmp_path):
    tone = np.concatenate([np.sin(np.arange(8000) * math.pi / 8), np.zeros(8000)])  # half of it is silence
    soundfile.write(tmp_path / "tone.wav", 0.5 * tone, 8000, subtype="FLOAT")
    measured = levels.measure_levels([Recording(tmp_path / "tone.wav", 2.0, 8000, 1)])
    assert measured.complete
    assert measured.files == 1
    np.testing.assert_allclose(measured.rms, 0.25, rtol=1e-6)
    np.testing.assert_allclose([measured.peaks[0], measured.quiet], 0.5, rtol=1e-6)


def test_a_sample_of_long_recordings_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(levels, "MAX_SECONDS", 1)
    monkeypatch.setattr(levels, "SAMPLED_FILES", 2)
    recordings = [Recording(tmp_path / f"{index}.wav", 0.5, 8000, 1) for index in range(5)]
    for recording in recordings[::4]:  # the others do not exist, so decoding them would fail
        soundfile.write(recording.path, 0.1 * np.ones(4000), 8000)
    measured = levels.measure_levels(recordings)
    assert not measured.complete
    assert measured.files == 2
    assert not measured.bad


@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("rate", [100, 8000, 11025, 16000, 22050, 44100, 48000])
def test_windows_are_multiples_of_the_pools(autoregressive, device, rate):
    pool = pools_of(autoregressive, torch.device(device), rate)
    assert limits_of(autoregressive, torch.device(device)).length % math.prod(pool) == 0
    assert {len(size.n_layers) for size in sizes_of(autoregressive, torch.device(device))} == {len(pool) + 1}


def of_parameters(number: int, **values) -> Cost:
    return Cost(**{"seconds": (0.0, 0.01), "memory": (0.0, 1.0)} | values, parameters=number)


SIZES = [Size(3, (1,)), Size(2, (1,)), Size(1, (1,)), Size(1, (1,), checkpointing=True)]


@pytest.mark.parametrize(
    ("costs", "minutes", "size", "batch_size"),
    [
        ([of_parameters(0)], 60, 0, 16),
        ([of_parameters(0, seconds=(0.0, 10.0)), of_parameters(1)], 60, 1, 16),  # the first is too slow
        ([of_parameters(0, memory=(1e18, 0.0)), of_parameters(1)], 60, 1, 16),  # the first is too large
        ([OutOfMemory(), of_parameters(1)], 60, 1, 16),
        ([of_parameters(0, memory=(0.0, 1e15 / 3))], 60, 0, 2),  # with a smaller batch, it is not
        ([of_parameters(0, seconds=(0.0, 0.2))], 60, 0, 8),  # with a smaller batch, there are enough steps
        ([of_parameters(0)] * 3, 1, 2, 4),  # too few minutes for all; the last one is not considered
        ([OutOfMemory(), OutOfMemory(), OutOfMemory(), of_parameters(3)], 60, 3, 16),
    ],
)
def test_budgets(monkeypatch, costs, minutes, size, batch_size):
    monkeypatch.setattr("sashimi_diffusion.training.own_recordings.budget.available_memory", lambda device: 2e15)
    remaining = iter(costs)

    def measure(_: Size) -> Cost:
        cost = next(remaining)
        if isinstance(cost, OutOfMemory):
            raise cost
        return cost

    budget = choose_budget(SIZES, measure, torch.device("cpu"), minutes, 16)
    assert (budget.size, budget.batch_size) == (SIZES[size], batch_size)
    assert (budget.steps >= USEFUL_STEPS) == (minutes == 60)
    assert not list(remaining)


def test_too_little_memory_is_an_error(monkeypatch):
    monkeypatch.setattr("sashimi_diffusion.training.own_recordings.budget.available_memory", lambda device: 1000)
    with pytest.raises(UserError, match="is not enough for a training step of the smallest network"):
        choose_budget(SIZES, lambda size: of_parameters(0, memory=(1e6, 0.0)), torch.device("cpu"), 60, 16)


@pytest.mark.parametrize("kind", [DiffusionConfig, AutoregressiveConfig])
def test_costs_are_measured_on_the_network_of_the_config(kind, monkeypatch):
    monkeypatch.setattr(step_cost, "available_cores", lambda: 1)  # several threads are slow beside other programs
    monkeypatch.setattr(step_cost, "_LONG_ENOUGH", 0)
    small = ["model.d_model=4", "model.n_state=4", "model.n_layers=1"]
    state = torch.random.get_rng_state()
    short, longer = (
        measure_step(load_config(kind, None, [*small, f"data.length={length}"]), ["a"], [], torch.device("cpu"))
        for length in (256, 1024)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    network = kind.model_validate({}).model.network_class(d_model=4, n_state=4, n_layers=1)
    assert short.parameters == longer.parameters
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert longer.memory[0] >= 5 * 4 * weights * 0.5  # weights, averages, gradients and two moments
    assert 3 < longer.memory[1] / short.memory[1] < 5  # activations are in proportion to the length
    assert longer.seconds_of(4) > 0


def test_music_at_44100_hz_fits_into_16_gb():
    music = CONFIGS / "diffusion" / "music-44k.yaml"
    kept = {}
    for length in (2048, 4096):  # on a CPU, the longer ones take minutes
        step = TrialStep(load_config(DiffusionConfig, music, [f"data.length={length}"]), [], [], torch.device("cpu"))
        kept[length] = [step.memory(batch_size) for batch_size in (1, 2)]
    config = load_config(DiffusionConfig, music)
    # Both the memory of a batch and that of an example are linear in the length.
    (short, shorts), (long, longs) = kept[2048], kept[4096]
    number = (config.data.length - 2048) / 2048
    of_batch = 2 * short - shorts + number * ((2 * long - longs) - (2 * short - shorts))
    of_example = shorts - short + number * ((longs - long) - (shorts - short))
    assert 10e6 < sum(parameter.numel() for parameter in step.network.parameters()) < 30e6
    assert 6e9 < of_batch + config.training.batch_size * of_example < 8e9  # the rest is for the buffers of operations


def test_texts_with_any_characters_are_read_back():
    values = {"a": "x: y # z", "b": "é 'quoted' " + "long " * 60, "c": [0.94, 1e-5], "d": None, "e": "1e5", "f": "\x1b"}
    text = config_text({"group": {key: Setting(value, "why " * 20) for key, value in values.items()}}, ["title", ""])
    assert read_yaml(text, "the text") == {"group": values}
    assert all(line.startswith(("#", "  ", "group")) or not line for line in text.splitlines())
