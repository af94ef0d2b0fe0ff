"""Tests of ``sashimi-train init``: what it recognizes in a folder, and that the config that it writes trains."""

import itertools
import json
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion.command_line import Parser
from sashimi_diffusion.commands.init import add_arguments, run_init
from sashimi_diffusion.commands.train import main
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.autoregressive.task import AutoregressiveTask
from sashimi_diffusion.training.config import RunConfig, load_config
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.loop import train
from sashimi_diffusion.training.own_recordings import plan
from sashimi_diffusion.training.own_recordings.settings import Request
from sashimi_diffusion.training.own_recordings.step_cost import Cost
from sashimi_diffusion.training.own_recordings.survey import look_at
from sashimi_diffusion.training.packaged_configs import CONFIGS

COST = Cost(seconds=(0.1, 0.01), memory=(1e7, 1e6), parameters=1000)
SMALL = [
    *("training.steps=2", "training.batch_size=2", "training.trackers=[]", "training.cpu_threads=1"),
    "training.validation_examples=2",
    *("model.d_model=4", "model.n_state=4", "sampling.num_samples=1"),
]
DIFFUSION = [*SMALL, "model.embedding_hidden=8", "model.embedding_dim=8", "sampling.steps=2", "model.n_layers=[0,1,1]"]
AUTOREGRESSIVE = [*SMALL, "model.n_layers=[1,1,1]", "sampling.seconds=0.002", "sampling.engine=eager"]


def write(path: Path, seconds: float, rate: int = 8000, channels: int = 1, level: float = 0.1) -> None:
    """Write noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (round(seconds * rate), channels)
    soundfile.write(path, level * np.random.default_rng(len(path.name)).standard_normal(shape), rate)


def options(*arguments: str):
    parser = Parser(prog="sashimi-train init")
    add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder for recordings; the working folder is the one above it, and costs are not measured."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(plan, "measure_step", lambda *_: COST)
    (tmp_path / "takes").mkdir()
    return tmp_path / "takes"


@pytest.fixture
def init(folder: Path) -> Callable[..., RunConfig]:
    """Return a function that runs ``sashimi-train init takes`` with more arguments and loads what it writes."""

    def init(*arguments: str) -> RunConfig:
        assert run_init(options("takes", "--device", "cpu", *arguments)) == 0
        kind = AutoregressiveConfig if "--autoregressive" in arguments else DiffusionConfig
        return load_config(kind, "takes.yaml")

    return init


def trained(config: RunConfig, skip_bad_files: bool = False) -> dict:
    """Train a small network for two steps with a config that was written; return the arguments of the network."""
    diffusion = isinstance(config, DiffusionConfig)
    small = load_config(type(config), "takes.yaml", DIFFUSION if diffusion else AUTOREGRESSIVE)
    run = train(DiffusionTask if diffusion else AutoregressiveTask, small, skip_bad_files=skip_bad_files)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)
    assert any("validation_loss" in line for line in lines) == (config.data.splits[1] > 0)
    return json.loads((run / "pipeline" / "model" / "config.json").read_text())


def test_sub_folders_are_classes(folder, init, capsys):
    for label, index in itertools.product(["kick", "snare"], range(3)):
        write(folder / label / f"{index}.wav", 0.2 + 0.05 * index, level=0.1 if index else 0.01)
    config = init()
    assert config.data.pattern is None
    assert config.data.length == 2400
    assert config.model.class_conditional
    assert config.sampling.guidance_scale == 2
    assert config.data.normalize_rms is not None
    assert trained(config)["class_names"] == ["kick", "snare"]
    text = capsys.readouterr().out
    assert "2, from the first sub-folder: kick (3), snare (3)" in text
    assert "sashimi-train diffusion --config takes.yaml" in text
    assert "--skip-bad-files" not in text


def test_fields_of_names_are_classes_and_speakers(folder, init):
    for label, speaker, index in itertools.product(range(3), ["ann", "bob"], range(3)):
        write(folder / f"{label}_{speaker}_{index}.wav", 0.3)
    config = init()
    assert config.data.pattern == "{label}_{speaker}_{index}"
    assert config.data.speakers == "speaker"
    assert config.sampling.num_samples == 6
    network = trained(config)
    assert network["class_names"] == ["0", "1", "2"]
    assert network["speaker_names"] == ["ann", "bob"]


def test_recordings_without_classes_train_an_unconditional_network(folder, init):
    for index in range(5):
        write(folder / f"rec_{index:03}.wav", 0.2)
    config = init()
    assert config.model.class_conditional is False
    assert config.sampling.guidance_scale == 1
    assert config.data.normalize_rms is None  # equal levels
    assert trained(config)["num_classes"] is None


def test_long_music_is_cut_into_windows_at_a_rate_that_a_cpu_can_learn(folder, init, capsys):
    for index in range(3):
        write(folder / f"piece {index}.wav", 3 + index, rate=44100)
    config = init()
    assert (config.data.sample_rate, config.data.length, config.data.random_shift) == (16000, 16384, None)
    assert trained(config)["num_classes"] is None
    assert "44100 Hz; resampled to 16000 Hz" in capsys.readouterr().out


def test_the_commonest_rate_is_used_and_others_are_resampled(folder, init, capsys):
    for index in range(6):
        write(folder / f"rec{index}.wav", 0.2, rate=11025 if index else 16000)
    config = init()
    assert config.data.sample_rate == 11025
    assert config.data.length % math.prod(config.model.argument("pool")) == 0
    trained(config)
    assert "11025 Hz (5 files), 16000 Hz (1 files); resampled to 11025 Hz" in capsys.readouterr().out
    assert "1 are resampled" in Path("takes.yaml").read_text()


def test_bad_files_are_named_and_skipped(folder, init, capsys):
    for label, index in itertools.product("ab", range(20)):
        write(folder / f"{label}_{index}.wav", 0.1)
    (folder / "a_noise.wav").write_bytes(b"no audio")
    (folder / "b_cut.wav").write_bytes((folder / "b_1.wav").read_bytes()[:900])
    write(folder / "readme.wav", 0.1)
    with pytest.warns(UserWarning, match="3 of 43 audio files in takes cannot be used") as warned:
        config = init()
    assert all(name in str(warned[0].message) for name in ("a_noise.wav", "b_cut.wav", "readme.wav"))
    out = capsys.readouterr().out
    command = "sashimi-train diffusion --config takes.yaml --skip-bad-files"
    assert command in out
    assert command in Path("takes.yaml").read_text()
    assert "3 files cannot be used" in out
    with pytest.warns(UserWarning, match="3 of 43"):
        assert trained(config, skip_bad_files=True)["class_names"] == ["a", "b"]


def test_stereo_is_trained_as_such(folder, init, capsys):
    for index in range(3):
        write(folder / f"{index}.wav", 0.2, channels=2)
    config = init()
    assert config.model.argument("in_channels") == 2
    network = trained(config)
    assert (network["in_channels"], network["out_channels"]) == (2, 2)
    assert "2 channels" in capsys.readouterr().out


@pytest.mark.parametrize("equal", [True, False])
def test_channels_are_mixed_and_said(folder, init, capsys, equal):
    for index in range(3):
        write(folder / f"{index}.wav", 0.2, channels=2 if index else 1)
    if equal:
        mono = soundfile.read(folder / "0.wav")[0]
        for index in range(3):
            soundfile.write(folder / f"{index}.wav", np.stack([mono, mono], axis=1), 8000)
    config = init()
    assert config.model.argument("in_channels") == 1
    reason = "their channels are equal" if equal else "their numbers of channels differ"
    assert f"mixed down to 1 channel, because {reason}" in capsys.readouterr().out
    assert reason in Path("takes.yaml").read_text()
    trained(config)


def test_one_recording_is_not_held_out(folder, init):
    write(folder / "all.wav", 5)
    config = init()
    assert config.data.splits == [1, 0, 0]
    trained(config)


@pytest.mark.parametrize("length", [0.3, 5])
def test_autoregressive_configs_train(folder, init, length):
    for label, index in itertools.product("ab", range(3)):
        write(folder / f"{label}-{index}.wav", length)
    config = init("--autoregressive")
    assert config.data.pattern == "{label}-{index}"
    assert config.data.normalize == ("example" if length < 1 else "recording")
    trained(config)


def test_a_user_can_name_the_fields(folder, init):
    for index, label in itertools.product(range(2), ["03", "04"]):
        write(folder / f"{index}{label}.wav", 0.1)
    config = init("--pattern", "{index}0{label}")
    assert config.data.pattern == "{index}0{label}"
    assert trained(config)["class_names"] == ["3", "4"]


def test_mixed_sub_folders_and_files_train_without_classes(folder, init):
    for name in ("a/1", "a/2", "b/1", "b/2", "c", "d"):
        write(folder / f"{name}.wav", 0.1)
    config = init()
    assert config.data.pattern is None
    assert trained(config)["num_classes"] is None


def silent(folder: Path) -> None:
    write(folder / "a.wav", 0.1, level=0)


def tenth(folder: Path) -> None:
    write(folder / "a.wav", 0.1)


@pytest.mark.parametrize(
    ("prepare", "arguments", "message"),
    [
        (lambda folder: None, [], "no audio in takes"),
        (lambda folder: (folder / "a.wav").write_bytes(b"x"), [], "no usable file is left"),
        (silent, [], "all recordings in takes are silent"),
        (lambda folder: Path("takes.yaml").write_text(""), [], "takes.yaml exists: replace it with --overwrite"),
        (lambda folder: None, ["--out", "missing/a.yaml"], "--out missing/a.yaml: .*missing does not exist"),
        (
            lambda folder: write(folder / "a.wav", 0.1),
            ["--minutes", "0.001"],
            r"0.001 minutes allow 0 training steps of the smallest network on .*: give at least \d+ min",
        ),
        (lambda folder: write(folder / "a.wav", 0.1), ["--pattern", "{a"], "pattern '{a' cannot be used"),
        (lambda folder: write(folder / "a.wav", 0.1), ["--pattern", "{label}_{index}"], "not of the form"),
        (lambda folder: None, ["--minutes", "0"], "expected a number of minutes above 0, got 0"),
        (lambda folder: None, ["--minutes", "soon"], "expected a number of minutes above 0, got soon"),
        (lambda folder: None, ["--minutes", "1e9"], "expected at most 10,000,000 minutes, got 1e9"),
        (lambda folder: None, ["--minutes", "inf"], "expected at most 10,000,000 minutes, got inf"),
        (lambda folder: None, ["--device", "abacus"], "the device 'abacus' cannot be used"),
    ],
)
@pytest.mark.filterwarnings("ignore:1 of 1 audio files")
def test_problems_are_one_line(folder, init, prepare, arguments, message):
    prepare(folder)
    with pytest.raises(UserError, match=message) as raised:
        run_init(options("takes", *arguments))
    assert "\n" not in str(raised.value) or "no usable" in message
    assert not Path("takes.yaml").exists() or not Path("takes.yaml").read_text()


@pytest.mark.parametrize(("path", "message"), [("a.wav", "is not a folder"), ("absent", "does not exist")])
def test_folders_are_required(folder, path, message):
    write(folder / "a.wav", 0.1)
    with pytest.raises(UserError, match=message):
        run_init(options(str(folder / path)))


def test_the_folder_is_described_before_steps_are_measured(folder, monkeypatch, capsys):
    described = []
    write(folder / "a.wav", 0.1)

    def measure(*_: object) -> Cost:
        described.append(capsys.readouterr().out)
        return Cost((0.0, 80.0), (1e6, 1e6), 1000)

    monkeypatch.setattr(plan, "measure_step", measure)
    message = r"10 minutes allow 7 training .* at least 60 minutes \(--minutes 60\); .* 45 hours"
    with pytest.raises(UserError, match=message):
        run_init(options("takes", "--minutes", "10", "--device", "cpu"))
    assert described[0].startswith("takes\n  recordings   1 files")
    assert described[0].endswith("measuring training steps on cpu, which takes up to some minutes ...\n")


def test_ends_that_are_in_no_example_are_named(folder, init):
    for index in range(3):
        write(folder / f"{index}.wav", 1.6, rate=16000)
    init()
    text = Path("takes.yaml").read_text()
    assert "cut into whole examples; 33% of the audio, after the last of them, is not used" in text


def test_the_command_line(folder, capsys):
    write(folder / "a.wav", 0.1)
    assert main(["init", "takes", "--minutes", "5", "--device", "cpu"]) == 0
    assert load_config(DiffusionConfig, "takes.yaml").training.max_minutes == 5
    assert main(["init", "takes"]) == 2
    assert capsys.readouterr().err.startswith("error: takes.yaml exists")


@pytest.mark.parametrize(("out", "option"), [("mine", "./mine"), ("a b.yaml", "'a b.yaml'"), ("takes/x", "takes/x")])
def test_the_printed_command_names_the_file(folder, capsys, out, option):
    write(folder / "a.wav", 0.1)
    assert run_init(options("takes", "--out", out, "--device", "cpu")) == 0
    assert f"sashimi-train diffusion --config {option}\n" in capsys.readouterr().out
    assert load_config(DiffusionConfig, out).data.path == str(folder)


@pytest.mark.parametrize("out", ["takes/a.wav", "takes/new.FLAC", "link.yaml", "takes/b.wav"])
@pytest.mark.filterwarnings("ignore:1 of 2 audio files")
def test_recordings_are_not_replaced(folder, out):
    """Neither a good nor a bad one, also through a link with another ending."""
    write(folder / "a.wav", 0.1)
    (folder / "b.wav").write_bytes(b"no audio")
    Path("link.yaml").symlink_to("takes/a.wav")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"--out .* (is also the input|ending of a recording)"):
        run_init(options("takes", "--out", out, "--overwrite", "--device", "cpu"))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_command_of_a_folder_with_control_characters(folder, capsys):
    """The default name has none of them; a shell reads the name that a user has chosen."""
    write(folder / "a.wav", 0.1)
    named = folder.rename(folder.with_name("ta\tke\ns"))
    assert run_init(options(str(named), "--device", "cpu")) == 0
    assert "--config ta_ke_s.yaml\n" in capsys.readouterr().out
    assert load_config(DiffusionConfig, "ta_ke_s.yaml").data.path == str(named)
    assert run_init(options(str(named), "--device", "cpu", "--out", "it's\t\\.yaml")) == 0
    option = capsys.readouterr().out.rpartition("--config ")[2].strip()
    assert option == r"$'it\x27s\x09\x5c.yaml'"
    if shutil.which("bash"):
        read = subprocess.run(["bash", "-c", f"printf %s {option}"], capture_output=True, check=True)
        assert Path(read.stdout.decode()).is_file()


def test_a_path_that_yaml_cannot_have_is_refused(folder):
    with pytest.raises(UserError, match=r"the path caf\\udce9 is not UTF-8 text"):
        run_init(options("caf\udce9"))


@pytest.mark.parametrize("autoregressive", [False, True])
@pytest.mark.parametrize("rate", [8000, 44100, 96000])
def test_configs_for_a_gpu(folder, monkeypatch, autoregressive, rate):
    monkeypatch.setattr("sashimi_diffusion.training.own_recordings.budget.available_memory", lambda device: 16e9)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    for index in range(2):
        write(folder / f"{index}.wav", 20 if rate == 8000 else 4, rate, channels=2)
    request = Request("takes", 60, autoregressive, torch.device("cuda"))
    survey = look_at(folder)
    config = plan.plan_run(request, survey, plan.plan_window(request, survey)).config
    assert config.training.mixed_precision == "bf16"
    assert config.training.batch_size > 1
    assert config.data.sample_rate == min(rate, 16000 if autoregressive else 48000)
    assert config.data.length % math.prod(config.model.argument("pool")) == 0
    assert len(config.model.argument("n_layers")) == len(config.model.argument("pool")) + 1
    assert autoregressive or config.model.argument("in_channels") == 2


def test_a_config_is_replaced_on_request(folder, init):
    write(folder / "a.wav", 0.1)
    Path("takes.yaml").write_text("seed: 7\n")
    assert init("--overwrite").seed == 0


def test_music_in_stereo_trains(folder):
    for index in range(2):
        write(folder / f"{index}.wav", 0.5, rate=44100, channels=2)
    overrides = [*SMALL, "data.path=takes", "data.length=4096", "sampling.steps=2", "model.n_layers=[0,1,1,1]"]
    overrides += ["training.mixed_precision=fp32", "optimizer.warmup_steps=1"]
    run = train(DiffusionTask, load_config(DiffusionConfig, CONFIGS / "diffusion" / "music-44k.yaml", overrides))
    network = json.loads((run / "pipeline" / "model" / "config.json").read_text())
    assert (network["in_channels"], network["sample_rate"]) == (2, 44100)
