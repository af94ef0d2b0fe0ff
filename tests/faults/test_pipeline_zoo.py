"""Tests of damaged pipeline folders: each is refused in one line that names a file, or has the very same weights."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import (
    SampleRNN,
    SashimiAutoregressive,
    SashimiDenoiser,
    WaveNetAutoregressive,
    WaveNetDenoiser,
)
from sashimi_diffusion.pipelines import (
    SashimiAutoregressivePipeline,
    SashimiPipeline,
    hash_pipeline,
    is_autoregressive,
    resolve_pipeline,
)
from sashimi_diffusion.schedulers import DiffWaveScheduler, create_scheduler
from sashimi_evaluation.classifiers import ResNeXtClassifier, SmallClassifier, load_classifier
from tests.faults.damage import DAMAGE, flips, restore
from tests.faults.limited import in_child

EMBEDDING = {"embedding_sines": 4, "embedding_hidden": 4, "embedding_dim": 4}
AUDIO = {"sample_rate": 8000, "sample_size": 64}
LABELS = {"num_classes": 2, "class_names": ["no", "yes"]}
INDEX, CONFIG, SCHEDULER = "model_index.json", "model/config.json", "scheduler/scheduler_config.json"
WEIGHTS = "model/diffusion_pytorch_model.safetensors"
FILES = [("diffusion", name) for name in (INDEX, CONFIG, SCHEDULER, WEIGHTS)]
FILES += [("autoregressive", name) for name in (INDEX, CONFIG, WEIGHTS)]


def load(folder: Path) -> dict[str, Tensor]:
    kind = SashimiAutoregressivePipeline if folder.name == "autoregressive" else SashimiPipeline
    return kind.from_pretrained(folder).model.state_dict()


def refusal(function: Callable[[], object]) -> str | None:
    """Return the message of the UserError that a call raises; None if it raises none."""
    try:
        function()
    except UserError as error:
        message = str(error)
    else:
        return None
    assert message.isprintable()
    assert len(message) < 1500
    return message


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with two tiny pipelines."""
    folder = tmp_path_factory.mktemp("good")
    denoiser = WaveNetDenoiser(residual_channels=2, skip_channels=2, n_layers=1, **EMBEDDING, **AUDIO, **LABELS)
    SashimiPipeline(denoiser, DiffWaveScheduler(5, beta_end=0.3)).save_pretrained(folder / "diffusion")
    sizes = {"residual_channels": 2, "dilation_channels": 2, "skip_channels": 2, "end_channels": 2}
    model = WaveNetAutoregressive(num_tokens=4, n_layers=1, n_cycles=1, **sizes, **AUDIO)
    SashimiAutoregressivePipeline(model).save_pretrained(folder / "autoregressive")
    return folder


@pytest.fixture
def bad(good: Path, tmp_path: Path) -> Path:
    """Return a copy of ``good`` that a test may damage."""
    restore(tmp_path / "bad", good)
    return tmp_path / "bad"


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_damaged_file_is_named(bad: Path, kind: str, name: str, damage: str) -> None:
    DAMAGE[damage](bad / kind / name)
    message = refusal(lambda: load(bad / kind))
    assert message is not None
    assert name in message
    if name in (INDEX, WEIGHTS):
        refused = refusal(lambda: hash_pipeline(bad / kind)), refusal(lambda: is_autoregressive(bad / kind))
        assert all(text is None or name in text for text in refused)


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_flipped_bit_is_refused_or_changes_no_weight(good: Path, bad: Path, kind: str, name: str) -> None:
    """A flipped bit in the numbers of the weights cannot be seen; it changes one number."""
    content, expected = (good / kind / name).read_bytes(), load(good / kind)
    # The numbers come after the header, whose length is in the first 8 bytes.
    last = 8 + int.from_bytes(content[:8], "little") if name == WEIGHTS else None
    refused = 0
    for changed in flips(content, 100, last=last):
        (bad / kind / name).write_bytes(changed)
        loaded: dict[str, Tensor] = {}
        message = refusal(lambda loaded=loaded: loaded.update(load(bad / kind)))
        refused += message is not None
        if message is None:
            assert loaded.keys() == expected.keys()
            assert all(torch.equal(loaded[key], expected[key]) for key in expected)
        else:
            assert f"{bad / kind}" in message
    assert refused > 10


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_list_of_shards_is_named(bad: Path, damage: str) -> None:
    folder = bad / "diffusion"
    model = SashimiPipeline.from_pretrained(folder).model
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder / "model", max_shard_size=200)
    loaded = load(folder)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    DAMAGE[damage](folder / f"{WEIGHTS}.index.json")
    assert str(folder / "model") in (refusal(lambda: load(folder)) or "")


@pytest.mark.parametrize(("kind", "name"), FILES)
def test_a_file_of_another_kind_is_named(good: Path, bad: Path, kind: str, name: str) -> None:
    for source in {other for _, other in FILES} - {name}:
        (bad / kind / name).write_bytes((good / "diffusion" / source).read_bytes())
        message = refusal(lambda: load(bad / kind))
        assert message is not None
        assert f"{bad / kind}" in message
    other = "autoregressive" if kind == "diffusion" else "diffusion"
    if name != SCHEDULER:
        (bad / kind / name).write_bytes((good / other / name).read_bytes())
        assert refusal(lambda: load(bad / kind)) is not None


HUGE = "9" * 400
# File, key, values that are no valid ones. JSON as text, because Python cannot write all of it.
VALUES = [
    (CONFIG, "sample_rate", ['"8000"', "0", "-1", "1000000000000", "1e12", "8000.5", "true", "null", "[8000]", HUGE]),
    (CONFIG, "sample_size", ["2.5", '"64"', "0", "1e12", "1000000000000", "{}", "NaN", "Infinity"]),
    (CONFIG, "waveform_std", ['"1"', "0", "-1.0", "NaN", "Infinity", "1e308", HUGE, "false"]),
    (CONFIG, "n_layers", ["10000000", "0", '"many"', "2.0", "true", "null", "{}", "-3"]),
    (CONFIG, "residual_channels", ["1000000000", "0", "4.5", '"4"', "[[4]]"]),
    (CONFIG, "dilation_cycle", ["0", "1000", "10000000000"]),
    (CONFIG, "embedding_dim", ["1000000000", "0", "null"]),
    (CONFIG, "embedding_sines", ["2", "5", "1000000000", "true"]),
    (CONFIG, "num_classes", ["1000000000000", "-2", "0", '"2"', "true", "3"]),
    (CONFIG, "class_names", ['"ab"', "[1, 2]", '["a"]', "7", '[["a"], ["b"]]', "null, null"]),
    (CONFIG, "mel_channels", ["1000000000", "0"]),
    (CONFIG, "mel_upsample", ["16", "[0]", "[1000000000]", "[[16]]", "[" + "1, " * 99 + "1]"]),
    (CONFIG, "step_on_residual", ["1", '"no"', "null"]),
    (CONFIG, "_class_name", ['"SashimiDenoiser"', "7", "[]"]),
    (CONFIG, "unknown", ["1"]),
    (SCHEDULER, "num_train_timesteps", ["1000000000000", "0", "-5", '"5"', "5.5", "true", "null", HUGE]),
    (SCHEDULER, "beta_end", ["1e308", "-0.1", "0", "NaN", "2", '"high"', "null", "true"]),
    (SCHEDULER, "beta_start", ["1e308", "-0.1", "0", "NaN", "[0.1]"]),
    (SCHEDULER, "trained_betas", ["[]", "[2, 3]", "[NaN]", '"0.1"', "0.1", "[[0.1]]", "[0.1]", "{}"]),
    (SCHEDULER, "inference_betas", ["[]", "[2]", '["a"]', "7"]),
    (SCHEDULER, "beta_schedule", ["[]", '"cubic"', "7", "null"]),
    (SCHEDULER, "prediction_type", ["[]", '"sample"', "{}"]),
    (SCHEDULER, "clip_sample", ["true", "[]"]),
    (SCHEDULER, "_class_name", ['"DDIMScheduler"', "7"]),
    (INDEX, "guidance_scale", ['"2"', "NaN", "Infinity", "1e308", HUGE, "null", "true", "[]"]),
    (INDEX, "model", ["null", "7", "[]", '["a"]', '["sashimi_model", 7]', '["os", "system"]', '["a", "__doc__"]']),
    (INDEX, "scheduler", ["null", '["diffusers", "UNet1DModel"]', '["diffusers", "SchedulerMixin"]', '["a", []]']),
]


def with_value(content: str, key: str, value: str) -> str:
    config = json.loads(content)
    config[key] = "VALUE"
    return json.dumps(config).replace('"VALUE"', value)


def test_values_of_wrong_types_and_sizes_are_named_before_anything_is_allocated(bad: Path) -> None:
    def messages() -> list[tuple[str, str, str, str | None]]:
        found = []
        for name, key, values in VALUES:
            path = bad / "diffusion" / name
            content = path.read_text()
            for value in values:
                path.write_text(with_value(content, key, value))
                found.append((name, key, value, refusal(lambda: load(bad / "diffusion"))))
            path.write_text(content)
        return found

    for name, key, value, message in in_child(messages, memory=300 << 20):
        assert message is not None, (name, key, value)
        assert str(bad / "diffusion") in message, (name, key, value, message)
        if value not in (HUGE, "null, null") and (name, key) != (INDEX, "scheduler"):
            assert key in message, (name, key, value, message)


def test_a_missing_key_is_named(bad: Path) -> None:
    for name, keys in {CONFIG: ["sample_rate", "sample_size"], SCHEDULER: ["num_train_timesteps", "beta_end"]}.items():
        path = bad / "diffusion" / name
        content = path.read_text()
        for key in keys:
            path.write_text(json.dumps({own: value for own, value in json.loads(content).items() if own != key}))
            assert f"{path} has no {key}" in (refusal(lambda: load(bad / "diffusion")) or "")
        path.write_text(content)


def test_a_scheduler_of_diffusers_is_checked_as_well(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "diffusion"
    pipe = SashimiPipeline.from_pretrained(good / "diffusion")
    SashimiPipeline(pipe.model, create_scheduler("ddim", pipe.scheduler.config)).save_pretrained(folder)
    content = (folder / SCHEDULER).read_text()
    for key, value in {"num_train_timesteps": "1000000000", "beta_end": "1e308", "trained_betas": '"all"'}.items():
        (folder / SCHEDULER).write_text(with_value(content, key, value))
        message = refusal(lambda: load(folder))
        assert message is not None
        assert SCHEDULER in message
        assert key in message


SASHIMI = {
    "d_model": [10**9, 65536, 0, 2.5, "8", True, [8]],
    "n_layers": [10**7, -1, [1, 1], [1, 1, 10**7], [[1]] * 3, "1", None],
    "pool": [[0], [10**9], [[4]], 4, "44", [True], [4.0], [1] * 1000, [60000] * 9],
    "expand": [10**9, 0, 0.5],
    "ff": [10**9, -1],
    "n_state": [10**9, 7, 0, "64"],
    "n_ssm": [10**9, 0, 3],
    "norm": ["batch", 7, ["scalar"]],
    "parameterization": [[], "dense", None],
    "discretization": [[], "euler"],
    "initialization": [{}, "random"],
    "dt_min": [0, -1.0, float("nan"), float("inf"), 1e308],
    "unet": [1, "yes"],
}
CONSTRUCTORS = [
    (SashimiDenoiser, SASHIMI),
    (SashimiDenoiser, {"kernel_length": [0, 10**12, 2.5], "mel_alignment": [[], "left"], "embedding_sines": [7, 2]}),
    (SashimiAutoregressive, SASHIMI),
    (SashimiAutoregressive, {"num_tokens": [10**9, 0, 100, "256"], "quantization": ["a-law", 8], "stable": [1]}),
    (WaveNetDenoiser, {"n_layers": [0, 10**7], "residual_channels": [10**9, 65536], "skip_channels": [0]}),
    (WaveNetAutoregressive, {"n_layers": [0, 25, 10**7], "n_cycles": [0, 10**7], "end_channels": [10**9]}),
    (SampleRNN, {"frame_sizes": [[], [0], [10**9], [60000, 60000], 8], "dim": [10**9, 65536], "n_rnn": [0, 10**7]}),
    (DiffWaveScheduler, {"num_train_timesteps": [10**12, 0, "5", True], "beta_end": [1e308, -1, "1"]}),
]


def test_constructors_refuse_values_before_anything_is_allocated() -> None:
    def accepted() -> list[tuple[str, str, object]]:
        found = []
        for network, arguments in CONSTRUCTORS:
            for name, values in arguments.items():
                for value in values:
                    try:
                        network(**{name: value})
                    except ValueError:
                        continue
                    found.append((network.__name__, name, value))
        return found

    assert in_child(accepted, memory=300 << 20) == []


@pytest.mark.parametrize("network", [SashimiDenoiser, SashimiAutoregressive, WaveNetDenoiser, WaveNetAutoregressive])
def test_parameters_are_estimated_from_the_arguments(network: type) -> None:
    with torch.device("meta"):
        model = network()
    assert model.estimated_parameters(model.config) == pytest.approx(model.num_parameters(), rel=0.1)


def test_a_pipeline_that_is_no_folder_is_named_without_network_access(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("file", "fifo", "loop", "x" * 300, "a\0b"):
        message = refusal(lambda name=name: resolve_pipeline(tmp_path / name))
        assert message is not None
        assert "\0" not in message
        assert name.replace("\0", "\\x00") in message


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_damaged_classifier_is_named(tmp_path: Path, name: str, damage: str) -> None:
    SmallClassifier(channels=(2, 2, 2, 2)).save_pretrained(tmp_path)
    DAMAGE[damage](tmp_path / name)
    assert str(tmp_path) in (refusal(lambda: load_classifier(tmp_path)) or "")


CLASSIFIERS = [
    (SmallClassifier(channels=(2, 2, 2, 2)), {"channels": [[10**9] * 4, [1], 4, ["a"] * 4], "dropout": [2, "a"]}),
    (ResNeXtClassifier(depth=11, cardinality=1, base_width=1, widen_factor=1), {"depth": [10**9 + 1, 12, "29", 11.0]}),
]


def test_values_of_a_classifier_are_named_before_anything_is_allocated(tmp_path: Path) -> None:
    def unnamed() -> list[object]:
        found = []
        for model, arguments in CLASSIFIERS:
            model.save_pretrained(tmp_path)
            content = (tmp_path / "config.json").read_text()
            for key, values in {**arguments, "num_classes": [10**9, 0, True, "10"]}.items():
                for value in values:
                    (tmp_path / "config.json").write_text(with_value(content, key, json.dumps(value)))
                    message = refusal(lambda: load_classifier(tmp_path)) or ""
                    if "config.json" not in message or key not in message:
                        found.append((type(model).__name__, key, value, message))
        return found

    assert in_child(unnamed, memory=300 << 20) == []
