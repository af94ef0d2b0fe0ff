"""Tests of the training of a word classifier: batches, augmentation, metrics and the recipe."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion.data.speech_commands import DIGITS
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training import checkpoints
from sashimi_diffusion.training.config import check_same_run, from_tree, load_config
from sashimi_diffusion.training.loop import train
from sashimi_diffusion.training.yaml_files import apply_overrides, write_yaml
from sashimi_evaluation.classifiers import SpeechEmbedding, load_classifier
from sashimi_evaluation.classifiers.training.augmentation import at_speed, augment, loud_part, placed
from sashimi_evaluation.classifiers.training.batches import BalancedBatches, index_of, open_sources
from sashimi_evaluation.classifiers.training.config import AugmentationConfig, ClassifierConfig
from sashimi_evaluation.classifiers.training.task import ClassifierTask
from sashimi_evaluation.commands.train import CONFIGS

RECIPE = "train_digit_classifier.py"
MetricsOf = Callable[[Path], list[dict]]
NO_AUGMENTATION = AugmentationConfig(speed=1, gain_db=0, tilt_db=0, filter_share=0, noise_share=0, mask_share=0)


def tone(digit: int, samples: int) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * (300 + 300 * digit) * np.arange(samples) / 16000)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two sources of tones: "folder" has all digits by two speakers in two takes, "commands" has zero and one."""
    root = tmp_path_factory.mktemp("digits")
    (root / "folder").mkdir()
    for number in range(40):
        digit, speaker, index = number % 10, "ab"[number // 10 % 2], number // 20
        soundfile.write(root / "folder" / f"{digit}_{speaker}_{index}.wav", tone(digit, 3000 + 100 * number), 16000)
    for word in DIGITS:
        (root / "commands" / word).mkdir(parents=True)
    for number in range(8):
        word = DIGITS[number % 2]
        soundfile.write(root / "commands" / word / f"{number}_nohash_0.wav", tone(number % 2, 16000), 16000)
    (root / "commands" / "validation_list.txt").write_text("zero/0_nohash_0.wav\none/1_nohash_0.wav\n")
    (root / "commands" / "testing_list.txt").write_text("")
    return root


@pytest.fixture(scope="session")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny speech embedding with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("embedding") / "tiny"
    SpeechEmbedding(channels=(4, 4, 4, 8)).save_pretrained(folder)
    return folder


@pytest.fixture
def tree(digits: Path, embedding: Path, tmp_path: Path) -> dict:
    """Return the config tree of a tiny classifier whose output folder is in tmp_path."""
    cache = str(digits / "cache")
    return {
        "output_dir": str(tmp_path / "run"),
        "model": {"name": "small", "embedding": str(embedding)},
        "data": {
            "sources": {
                "folder": {
                    "path": str(digits / "folder"),
                    "pattern": "{label}_{speaker}_{index}",
                    "holdout": {"index": [1]},
                    "cache_dir": cache,
                },
                "commands": {"kind": "speech_commands", "path": str(digits / "commands"), "cache_dir": cache},
            }
        },
        "optimizer": {"lr": 5e-3},
        "training": {
            "steps": 8,
            "batch_size": 10,
            "cpu_threads": 1,
            "log_every": 1,
            "checkpoint_every": 4,
            "validate_every": 4,
            "trackers": [],
        },
    }


@pytest.fixture
def config(tree: dict) -> Callable[..., ClassifierConfig]:
    """Return a function that builds a config from the tree and overrides."""
    return lambda *overrides: from_tree(ClassifierConfig, apply_overrides(tree, overrides))


def test_a_run_reports_the_accuracy_of_the_classifier(
    config: Callable[..., ClassifierConfig], metrics_of: MetricsOf
) -> None:
    run = train(ClassifierTask, config())
    lines = metrics_of(run)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    validation = next(line for line in lines if "validation_loss" in line)
    assert validation.keys() == {
        "step",
        "validation_loss",
        *(f"validation_{metric}_{source}" for metric in ("loss", "accuracy") for source in ("folder", "commands")),
    }
    losses = validation["validation_loss_folder"], validation["validation_loss_commands"]
    assert validation["validation_loss"] == pytest.approx((20 * losses[0] + 2 * losses[1]) / 22)
    assert (lines[-1]["test_recordings_folder"], lines[-1]["test_recordings_commands"]) == (20, 2)
    classifier = load_classifier(run / "pipeline")
    assert classifier.accuracy["folder"]["accuracy"] == lines[-1]["test_accuracy_folder"]
    tones = np.stack([tone(digit, 16000) for digit in range(10)])
    assert classifier.classify(tones, 16000)[1].shape == (10, 10)
    assert not (run / "samples").exists()


def test_tones_are_learned(config: Callable[..., ClassifierConfig], metrics_of: MetricsOf) -> None:
    settings = [f"augmentation.{name}={value}" for name, value in NO_AUGMENTATION.model_dump().items()]
    settings += ["model.embedding=speech-embedding", "optimizer.lr=2e-2"]
    run = train(ClassifierTask, config(*settings, "training.steps=60", "training.validate_every=0"))
    assert metrics_of(run)[-1]["test_accuracy_folder"] >= 0.8
    # Evaluate the saved weights too: they must hold the running means of the batch norms.
    tones = np.stack([tone(digit, 6000) for digit in range(10)])
    predicted = load_classifier(run / "pipeline").classify(tones, 16000)[1].argmax(axis=1)
    assert np.mean(predicted == np.arange(10)) >= 0.8


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_resumed_run_equals_the_uninterrupted_one(
    config: Callable[..., ClassifierConfig], metrics_of: MetricsOf, tmp_path: Path, optimizer: str
) -> None:
    chosen = f"optimizer.name={optimizer}"
    whole = train(ClassifierTask, config(chosen, f"output_dir={tmp_path / 'whole'}"))
    parts = train(ClassifierTask, config(chosen, "training.steps=4"))
    train(ClassifierTask, config(chosen), resume=True)
    without_end = [line for line in metrics_of(parts) if "test_accuracy_folder" not in line]
    assert without_end == [line for line in metrics_of(whole) if "test_accuracy_folder" not in line]
    last = checkpoints.list_checkpoints(whole)[-1].relative_to(whole)
    for name in ("model.safetensors", "ema.safetensors"):
        assert (parts / last / name).read_bytes() == (whole / last / name).read_bytes()


def test_a_continued_run_keeps_its_sources(config: Callable[..., ClassifierConfig]) -> None:
    check_same_run(config("data.sources.folder.path=/moved", "training.steps=9"), config())
    with pytest.raises(UserError, match=r"^data\.sources\.folder\.holdout is {'speaker': \['a'\]}"):
        check_same_run(config("data.sources.folder.holdout={speaker: [a]}"), config())
    with pytest.raises(UserError, match=r"^data\.sources\.more\.kind is 'folder', .* started with None"):
        check_same_run(config("data.sources.more={}"), config())


def test_batches_are_balanced_and_reproducible(config: Callable[..., ClassifierConfig]) -> None:
    settings = config()
    batches = BalancedBatches(open_sources(settings.data, "train"), settings)
    waveforms, chosen = batches.examples(list(range(400)))
    assert waveforms.shape == (400, 1, 16000)
    assert waveforms.isfinite().all()
    counts = np.bincount(chosen.numpy(), minlength=10)
    assert counts.min() > 20
    assert counts.max() < 65
    again, digits = batches.examples([7, 3])
    assert torch.equal(again, waveforms[[7, 3]])
    assert torch.equal(digits, chosen[[7, 3]])
    assert not torch.equal(again[0], again[1])


@pytest.mark.parametrize(("balance", "expected"), [(1.0, 1 / 2), (0.0, 3 / 5), (0.5, 3**0.5 / (3**0.5 + 2**0.5))])
def test_sources_of_a_digit_are_balanced(
    config: Callable[..., ClassifierConfig], balance: float, expected: float
) -> None:
    """Zero and one have three recordings in "commands" and two in "folder"; other digits have only those two."""
    settings = config(f"data.balance={balance}")
    batches = BalancedBatches(open_sources(settings.data, "train"), settings)
    shares = [batches._shares[digit].tolist() for digit in (0, 5)]
    assert shares[0] == pytest.approx([1 - expected, expected])
    assert shares[1] == [1, 0]


def test_any_words(
    config: Callable[..., ClassifierConfig], digits: Path, metrics_of: MetricsOf, tmp_path: Path
) -> None:
    """The classes are data.words; a source of Speech Commands may have a part of them, in several folders."""
    (tmp_path / "more" / "up").mkdir(parents=True)
    for number in range(4):
        soundfile.write(tmp_path / "more" / "up" / f"{number}_nohash_0.wav", tone(5, 9000), 16000)
    (tmp_path / "more" / "validation_list.txt").write_text("up/0_nohash_0.wav\n")
    (tmp_path / "more" / "testing_list.txt").write_text("")
    settings = ["data.words=[up, one, two]", "data.sources.folder.where={label: [1, 2]}", "training.steps=4"]
    settings += ["data.sources.commands.words=[one, up]", f"data.sources.commands.more_paths=['{tmp_path / 'more'}']"]
    run = train(ClassifierTask, config(*settings))
    assert metrics_of(run)[-1]["test_recordings_commands"] == 2
    classifier = load_classifier(run / "pipeline")
    assert classifier.class_names == ["up", "one", "two"]
    assert classifier.classify(np.stack([tone(5, 16000)]), 16000)[1].shape == (1, 3)
    batches = BalancedBatches(open_sources(config(*settings).data, "train"), config(*settings))
    assert sorted(set(batches.examples(list(range(30)))[1].tolist())) == [0, 1, 2]
    with pytest.raises(UserError, match=r"labeled '0': expected one of the words up, one, two; .* add the word"):
        train(ClassifierTask, config(*settings, "data.sources.folder.where={}", f"output_dir={tmp_path / 'other'}"))


def test_labels_are_digits() -> None:
    assert [index_of(label, DIGITS, "mine") for label in ("7", "seven", "Seven", "0", "zero")] == [7, 7, 7, 0, 0]
    for label in ("10", "sieben", "", "-1"):
        with pytest.raises(UserError, match=r"data\.sources\.mine has recordings labeled"):
            index_of(label, DIGITS, "mine")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sources.folder.path=null", "data.sources.commands.path=null"], "set data.sources.folder.path or"),
        (["data.sources.folder.path=null"], "there is no training recording of two, three"),
        (["data.sources.folder.pattern='{speaker}_{label}_{index}'"], "labeled 'a'"),
        (["data.sources.folder.pattern='{digit}_{speaker}_{index}'"], "labels names the field 'label'"),
        (["data.sources.folder.path=/nowhere"], "does not exist"),
        (["data.sources.commands.test=test"], "no recordings of the test split"),
        (["model.dropout=1.0"], "cannot build the network of `model`"),
        (["model.embedding=/nowhere"], "there is no speech embedding /nowhere: .* \\(speech-embedding\\)"),
        (["model.embedding=digits-small"], "holds a SmallClassifier, not a speech embedding"),
    ],
)
def test_runs_that_cannot_be_trained_are_refused(
    config: Callable[..., ClassifierConfig], overrides: list[str], message: str
) -> None:
    settings = config(*overrides)
    with pytest.raises(UserError, match=message):
        train(ClassifierTask, settings)
    assert not Path(settings.output_dir).exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources.folder.pth=a", "unknown config key data.sources.folder.pth: did you mean"),
        ("data.sources.folder.kind=zip", "data.sources.folder.kind must be"),
        ("data.sources.folder.words=[one]", "data.sources.folder is .*: words needs kind: speech_commands"),
        ("data.words=[one, on]", "data.words is .*: YAML reads yes, no, on and off"),
        ("data.sources.folder.where={speaker: a}", "data.sources.folder.where must be a group of keys"),
        ("data.balance=2", "data.balance is 2"),
        ("augmentation.speed=0.9", "augmentation.speed is 0.9"),
        ("augmentation.noise_share=1.5", "augmentation.noise_share is 1.5"),
        ("augmentation.speed=1e300", "augmentation.speed is 1e"),
        ("augmentation.gain_db=.inf", "augmentation.gain_db is inf"),
        ("augmentation.tilt_db=1e6", "augmentation.tilt_db is 1000000.0"),
        ("augmentation.noise_db=[9, 3]", "the lower first"),
        ("augmentation.noise_db=[3, .inf]", "augmentation.noise_db"),
        ("objective.label_smoothing=1", "objective.label_smoothing is 1"),
        ("optimizer.name=lion", "optimizer.name must be"),
        ("model.classes=3", "unknown config key model.classes"),
        ("model.channels=[4, 4, 4, 4]", "model.channels"),
        ("model.embedding=null", "model.embedding is None: .* it must be speech-embedding, or"),
        ("model.name=resnext", "with model.name=resnext it must be null"),
    ],
)
def test_invalid_settings_are_refused(config: Callable[..., ClassifierConfig], override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(override)


@pytest.mark.parametrize(
    ("name", "parameters"), [("digits-small", 358_090), ("words-small", 358_090), ("resnext-sc09", 34_425_546)]
)
def test_the_configs_of_the_recipe(name: str, parameters: int) -> None:
    settings = load_config(ClassifierConfig, CONFIGS / f"{name}.yaml")
    with torch.device("meta"):
        network = settings.model.network_class(**settings.model.arguments)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert (settings.optimizer.name == "sgd") == (name == "resnext-sc09")


def test_the_word_stays_inside_the_window() -> None:
    random = np.random.default_rng(0)
    waveform = np.zeros(24000, dtype=np.float32)
    waveform[15000:23000] = tone(3, 8000)
    starts = []
    for _ in range(200):
        window = placed(waveform, random)
        assert np.square(window).sum() == pytest.approx(np.square(waveform).sum(), rel=1e-5)
        starts.append(int(np.flatnonzero(window)[0]))
    assert min(starts) < 1500
    assert max(starts) > 6500
    long = placed(tone(3, 40000), random)  # too long for the window: it starts at the beginning of the loud part
    np.testing.assert_allclose(long, tone(3, 40000)[loud_part(tone(3, 40000))[0] :][:16000], atol=1e-6)


def test_speed_changes_the_pitch() -> None:
    faster = at_speed(tone(0, 16000), 1.25)  # 300 Hz
    assert len(faster) == 12800
    np.testing.assert_allclose(faster, 0.3 * np.sin(2 * np.pi * 375 * np.arange(12800) / 16000), atol=2e-3)
    np.testing.assert_allclose(at_speed(tone(0, 500), 1.0), tone(0, 500), atol=1e-7)


def test_augmentation_follows_its_settings() -> None:
    def change(**settings: object) -> np.ndarray:
        return augment(
            waveform, AugmentationConfig(**{**NO_AUGMENTATION.model_dump(), **settings}), np.random.default_rng(0)
        )

    def power(window: np.ndarray, low: float, high: float) -> float:
        spectrum = np.abs(np.fft.rfft(window)) ** 2
        return spectrum[int(low) : int(high)].sum() / spectrum.sum()

    random = np.random.default_rng(1)
    waveform = random.standard_normal(16000).astype(np.float32)
    plain = change()
    np.testing.assert_allclose(plain, waveform, atol=1e-5)  # the noise is as long as the window, so it is not shifted
    loud = change(gain_db=6.0)
    assert np.ptp(loud / waveform) < 1e-2 * abs(loud / waveform).mean()
    assert abs(loud / waveform).mean() != pytest.approx(1, abs=1e-3)
    assert power(change(filter_share=1.0), 7500, 8000) < 0.5 * power(plain, 7500, 8000)
    assert abs(np.log(power(change(tilt_db=6.0), 4000, 8000) / power(plain, 4000, 8000))) > 0.1
    masked = change(mask_share=1.0)
    assert 0 < np.count_nonzero(masked == 0) <= 1280

    waveform = tone(2, 16000).astype(np.float32)
    noisy = change(noise_share=1.0, noise_db=[20.0, 20.0])
    assert 1 - power(noisy, 890, 911) == pytest.approx(0.01, rel=0.1)
    waveform = np.zeros(500, dtype=np.float32)
    assert not change(noise_share=1.0, filter_share=1.0, mask_share=1.0).any()


@pytest.fixture
def file(tree: dict, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(write_yaml(tree))
    return path


def test_accelerate_launch(
    file: Path,
    config: Callable[..., ClassifierConfig],
    recipe_script: Callable[[str], Any],
    metrics_of: MetricsOf,
    tmp_path: Path,
) -> None:
    script = recipe_script(RECIPE)
    code, out, err = script.run("--config", file, f"output_dir={tmp_path / 'launched'}", launcher=script.ACCELERATE)
    assert code == 0, err
    assert "folder 20 training and 20 held-out recordings, commands 6 training and 2 held-out recordings" in out
    assert "test accuracy folder" in out
    assert metrics_of(tmp_path / "launched") == metrics_of(train(ClassifierTask, config()))


@pytest.mark.slow
def test_kill_9_and_resume(
    file: Path,
    config: Callable[..., ClassifierConfig],
    recipe_script: Callable[[str], Any],
    metrics_of: MetricsOf,
    tmp_path: Path,
) -> None:
    longer = ["training.steps=40"]
    whole, killed = train(ClassifierTask, config(*longer)), tmp_path / "killed"
    script, arguments = recipe_script(RECIPE), ["--config", file, "--resume", *longer, f"output_dir={killed}"]
    code, err = script.kill(killed, 14, *arguments)
    assert code == -signal.SIGKILL, err
    load_classifier(killed / "pipeline")
    code, out, err = script.run(*arguments)
    assert code == 0, err
    assert "resumed from" in out
    assert metrics_of(killed) == metrics_of(whole)


def test_gradient_checkpointing_is_not_supported(config: Callable[..., ClassifierConfig], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gradient_checkpointing is true, but SmallClassifier does not support it"):
        train(ClassifierTask, config("training.gradient_checkpointing=true"))
    assert not (tmp_path / "run").exists()
