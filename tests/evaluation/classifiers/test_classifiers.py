"""Tests of the word classifiers: mel spectrograms, networks, inputs and loading."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sashimi_diffusion.data.speech_commands import DIGITS, SpeechCommands
from sashimi_diffusion.errors import UserError
from sashimi_evaluation.classifiers import (
    DigitClassifier,
    ProtocolMel,
    RelativeMel,
    ResNeXtClassifier,
    SmallClassifier,
    SpeechEmbedding,
    WordClassifier,
    load_classifier,
    load_speech_embedding,
)
from sashimi_evaluation.classifiers.loading import PRETRAINED
from sashimi_evaluation.classifiers.mel import mel_bands
from sashimi_evaluation.classifiers.official_checkpoint import official_name
from sashimi_evaluation.classifiers.word_classifier import one_second


@pytest.fixture(scope="session")
def official(golden) -> dict[str, torch.Tensor]:
    return golden.tensors("g_audio/quantise_mel_features")


@pytest.fixture(scope="module")
def small() -> SmallClassifier:
    """Return a classifier with random weights and random batch norms, so that every layer affects the output."""
    torch.manual_seed(0)
    model = SmallClassifier(channels=(4, 4, 6, 8))
    for name, tensor in model.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    random = np.random.default_rng(0)
    tones = np.sin(np.arange(16000) * random.uniform(0.05, 0.9, (5, 1)))
    return (0.3 * tones + 0.05 * random.standard_normal((5, 16000))).astype(np.float32)


def test_the_mel_bands_agree_with_librosa(official: dict) -> None:
    bands = mel_bands(32, 2048, 0, 8000)
    assert (bands - official["clf_mel_basis"]).abs().max() < 1e-6 * bands.max()


def test_the_mel_of_the_protocol_agrees_with_the_official_one(official: dict) -> None:
    mel = ProtocolMel()(official["in.clf_audio"][None, None])
    assert mel.shape == (1, 1, 32, 32)
    assert (mel[0, 0] - official["out.clf_mel32"]).abs().max() < 2e-3  # dB


def test_the_network_of_the_protocol_agrees_with_the_official_one(official: dict) -> None:
    model = ResNeXtClassifier(depth=11, cardinality=2, base_width=4, widen_factor=1).eval()
    model.load_state_dict({name: official[f"clf.sd.{official_name(name)}"] for name in model.state_dict()})
    with torch.no_grad():
        output = model.from_mel(official["out.clf_mel32"][None, None])
        from_audio = model(official["in.clf_audio"][None, None])
    for ours, name in ((output.features, "out.clf_activation"), (output.logits, "out.clf_logits")):
        assert (ours - official[name]).abs().max() < 1e-5 * official[name].abs().max()
    assert (from_audio.logits - output.logits).abs().max() < 1e-3 * output.logits.abs().max()


def test_the_speech_embedding_agrees_with_the_published_one() -> None:
    levels = np.random.default_rng(0).normal(6, 3, (1, 76, 32)).astype(np.float32)  # frames, bands
    # The output of TensorFlow Lite; the bundled weights are rounded to half precision.
    published = torch.tensor([6.650502, 8.231428, 2.911983, -6.758745, 9.724661, 18.104538, 7.0954423, -3.238285])
    network = load_speech_embedding()
    embedding = network(torch.from_numpy(levels).transpose(1, 2)[None])
    assert embedding.shape == (1, 96, 1)
    assert (embedding[0, :8, 0] - published).abs().max() < 0.02
    long = torch.from_numpy(np.random.default_rng(1).normal(6, 3, (2, 1, 32, 101)).astype(np.float32))
    embeddings = network(long)
    assert embeddings.shape == (2, 96, 4)
    torch.testing.assert_close(network(long[..., 16:92])[..., 0], embeddings[..., 2], rtol=1e-4, atol=1e-4)


def test_the_head_is_trained_and_the_embedding_is_not() -> None:
    embedding = SpeechEmbedding(channels=(4, 4, 6, 8))
    classifier = SmallClassifier.on(embedding, dropout=0.1)
    assert classifier.config.dropout == 0.1
    trained = {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}
    assert trained == {f"{layer}.{kind}" for layer in ("norm", "head", "classifier") for kind in ("weight", "bias")}
    for name, tensor in embedding.state_dict().items():
        assert torch.equal(tensor, classifier.state_dict()[f"embedding.{name}"])


def test_sizes_of_the_networks() -> None:
    with torch.device("meta"):
        sizes = {kind: sum(p.numel() for p in kind().parameters()) for kind in (ResNeXtClassifier, SmallClassifier)}
    assert sizes == {ResNeXtClassifier: 34_425_546, SmallClassifier: 358_090}
    with pytest.raises(ValueError, match="must be"):
        ResNeXtClassifier(depth=12)
    with pytest.raises(ValueError, match="expected four numbers of channels"):
        SmallClassifier(channels=(4, 4))


@pytest.mark.parametrize("mel", [ProtocolMel(), RelativeMel()])
def test_mels_are_relative_to_their_maximum(mel: torch.nn.Module, clips: np.ndarray) -> None:
    waveform = torch.from_numpy(clips)[:, None]
    loud = mel(waveform)
    assert (mel(0.01 * waveform) - loud).abs().max() < 1e-2
    assert torch.equal(loud.amax(dim=(1, 2, 3)), mel(torch.zeros_like(waveform)).amin(dim=(1, 2, 3)))
    assert (mel(waveform[:1]) - loud[:1]).abs().max() < 1e-4


def test_the_mel_of_the_small_classifier_ignores_frequencies_above_4_khz(clips: np.ndarray) -> None:
    whistle = 0.3 * np.sin(2 * np.pi * 5000 * np.arange(16000) / 16000, dtype=np.float32)
    mel = RelativeMel()
    plain, with_whistle = (mel(torch.from_numpy(a)[:, None]) for a in (clips, clips + whistle))
    # The whistle starts and stops abruptly, which adds wide-band energy to the first and last frames.
    assert (plain - with_whistle)[..., 3:-3].abs().mean() < 0.02


def test_results_do_not_depend_on_the_batch(small: SmallClassifier, clips: np.ndarray) -> None:
    classifier = DigitClassifier(small, "test")
    many = np.concatenate([clips] * 14)  # more than one batch
    features, probabilities = classifier.classify(many, 16000)
    assert features.shape == (70, 16)
    assert features.dtype == probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert np.ptp(probabilities, axis=0).max() > 1e-4  # otherwise this test could not detect a mix-up of clips
    for index in (0, 69):
        alone = classifier.classify(many[index : index + 1], 16000)
        np.testing.assert_allclose(alone[0][0], features[index], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(alone[1][0], probabilities[index], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(classifier.features(clips, 16000), classifier.classify(clips, 16000)[0])


def test_audio_is_cut_or_padded_to_one_second(clips: np.ndarray) -> None:
    np.testing.assert_array_equal(one_second(clips, 16000), clips)
    np.testing.assert_array_equal(one_second(np.tile(clips, 3), 16000), clips)
    short = one_second(clips[:, :5000], 16000)
    np.testing.assert_array_equal(short[:, :5000], clips[:, :5000])
    assert short.shape == (5, 16000)
    assert not short[:, 5000:].any()


def test_other_rates_are_resampled() -> None:
    pytest.importorskip("torchaudio")

    def tone(rate: int, seconds: int) -> np.ndarray:
        return np.sin(2 * np.pi * 440 * np.arange(rate * seconds) / rate, dtype=np.float32)[None]

    for rate in (8000, 44100):
        resampled = one_second(tone(rate, 3), rate)
        assert resampled.shape == (1, 16000)
        # The audio is cut before resampling; the edge effect must lie outside of the second that is kept.
        np.testing.assert_allclose(resampled[:, 500:], tone(16000, 1)[:, 500:], atol=1e-3)


@pytest.mark.parametrize(
    ("audio", "rate", "complaint"),
    [
        (np.zeros(16000), 16000, "shape"),
        (np.zeros((0, 16000)), 16000, "at least one"),
        (np.zeros((2, 0)), 16000, "at least one"),
        (np.full((1, 9), np.nan), 16000, "non-finite"),
        (np.zeros((1, 9)), 0, "sample rate"),
        (np.zeros((1, 9)), 16000.5, "sample rate"),
    ],
)
def test_invalid_audio_is_refused(small: SmallClassifier, audio: np.ndarray, rate: float, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        DigitClassifier(small, "test").features(audio, rate)


def test_a_saved_classifier_is_loaded(small: SmallClassifier, clips: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    small.save_pretrained(folder)
    loaded, made = load_classifier(folder), DigitClassifier(small, "made")
    assert (loaded.name, loaded.sample_rate, loaded.seconds, loaded.accuracy) == ("mine", 16000, 1.0, {})
    assert (loaded.class_names[0], loaded.class_names[9]) == ("zero", "nine")
    assert loaded.fingerprint == made.fingerprint
    np.testing.assert_array_equal(loaded.features(clips, 16000), made.features(clips, 16000))
    (folder / "accuracy.json").write_text('{"there": {"accuracy": 0.5}}')
    assert load_classifier(str(folder)).accuracy == {"there": {"accuracy": 0.5}}


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UserError, match=r"digits-small cannot be loaded: .*nowhere"):
        load_classifier(device="nowhere")


def test_the_fingerprint_depends_on_weights_and_configuration(small: SmallClassifier) -> None:
    other = SmallClassifier.from_config(small.config)
    other.load_state_dict(small.state_dict())
    first = DigitClassifier(small, "a").fingerprint
    assert DigitClassifier(other, "b").fingerprint == first
    other.norm.running_mean[0] += 1e-3
    assert DigitClassifier(other, "a").fingerprint != first
    assert DigitClassifier(SmallClassifier(channels=(4, 4, 6, 8), dropout=0.5), "a").fingerprint != first


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"channels": [4, 4, 6, 10**12]}, r"config\.json cannot be loaded \(channels is .*1 to 4,096"),
        ("config.json", {"num_classes": 1e300}, r"config\.json cannot be loaded \(num_classes is 1e\+300"),
        ("config.json", {"channels": "many"}, "cannot be loaded"),
        ("config.json", {"channels": [4, 4, 6, 10]}, "does not fit .*25 mismatched keys"),
        ("config.json", {"dropout": None}, "cannot be loaded"),
        ("config.json", {"class_names": ["up", "down"]}, "class_names has 2 names, num_classes is 10"),
        ("config.json", {"class_names": ["up"] * 10}, "class_names has a name twice"),
        ("config.json", {"class_names": [3] * 10}, "class_names is .* each text"),
        ("config.json", [], r"config\.json does not hold a JSON object"),
        ("accuracy.json", {"there": 0.5}, "there has no metrics"),
        ("accuracy.json", {"there": {"accuracy": "high"}}, "there has no metrics"),
        ("accuracy.json", {"there": {"accuracy": 10**400}}, "there has no metrics"),
        ("accuracy.json", [], r"accuracy\.json does not hold a JSON object"),
    ],
)
def test_damaged_files_of_a_classifier_are_named(
    small: SmallClassifier, tmp_path: Path, file: str, content: object, message: str
) -> None:
    small.save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    changed = {**before, **content} if file == "config.json" and isinstance(content, dict) else content
    (tmp_path / file).write_text(json.dumps(changed))
    with pytest.raises(UserError, match=message):
        load_classifier(tmp_path)


def test_classifiers_that_cannot_classify_digits_are_refused(small: SmallClassifier, tmp_path: Path) -> None:
    SmallClassifier(num_classes=7, channels=(4, 4, 6, 8)).save_pretrained(tmp_path / "seven")
    with pytest.raises(
        UserError,
        match=r"seven distinguishes 7 classes: expected 10, .* its config\.json has no class_n",
    ):
        load_classifier(tmp_path / "seven")
    SmallClassifier(channels=(4, 4, 6, 8)).save_pretrained(tmp_path / "pipe")
    (tmp_path / "pipe" / "diffusion_pytorch_model.safetensors").unlink()
    os.mkfifo(tmp_path / "pipe" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors is a FIFO"):
        load_classifier(tmp_path / "pipe")
    broken = SmallClassifier(channels=(4, 4, 6, 8))
    broken.classifier.weight.data[0, 0] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    with pytest.raises(UserError, match="broken has weights that are NaN or infinite"):
        load_classifier(tmp_path / "broken")
    with pytest.raises(UserError, match="File name too long"):
        load_classifier("n" * 300)


def test_class_names_are_saved(tmp_path: Path) -> None:
    model = SmallClassifier(num_classes=2, channels=(4, 4, 6, 8), class_names=["up", "down"])
    model.save_pretrained(tmp_path)
    loaded = load_classifier(tmp_path)
    assert loaded.class_names == ["up", "down"]
    unnamed = SmallClassifier(num_classes=2, channels=(4, 4, 6, 8))
    unnamed.load_state_dict(model.state_dict())
    assert loaded.fingerprint == WordClassifier(unnamed, "a").fingerprint
    assert load_classifier().class_names == DIGITS


def test_folders_without_a_valid_classifier_are_refused(small: SmallClassifier, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no word classifier nothing-of-the-kind"):
        load_classifier("nothing-of-the-kind")
    for name in ("other", "damaged", "empty"):
        small.save_pretrained(tmp_path / name)
    config = tmp_path / "other" / "config.json"
    config.write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(UserError, match="holds a UNet2DModel, not a word classifier"):
        load_classifier(tmp_path / "other")
    (tmp_path / "damaged" / "diffusion_pytorch_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="corrupt or cut short"):
        load_classifier(tmp_path / "damaged")
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not JSON"):
        load_classifier(tmp_path / "empty")
    shutil.rmtree(tmp_path / "empty")
    with pytest.raises(UserError, match="there is no word classifier"):
        load_classifier(tmp_path / "empty")


def test_the_bundled_classifier_is_small_and_accurate() -> None:
    classifier = load_classifier()
    assert (classifier.name, classifier.features(np.zeros((1, 9)), 16000).shape) == ("digits-small", (1, 192))
    assert classifier.accuracy["fsdd"]["accuracy"] >= 0.97
    assert classifier.accuracy["speech_commands"]["accuracy"] >= 0.95
    assert sum(path.stat().st_size for path in (PRETRAINED / "digits-small").iterdir()) <= 2_000_000


def test_the_bundled_classifier_classifies_held_out_recordings(shared_data: Path) -> None:
    pytest.importorskip("torchaudio")
    from sashimi_diffusion.data import read_audio

    files = sorted((shared_data / "fsdd").glob("*_0.flac"))
    audio = np.concatenate([one_second(read_audio(file)[None], 8000) for file in files])
    predicted = load_classifier().classify(audio, 16000)[1].argmax(axis=1)
    assert np.mean(predicted == [int(file.name[0]) for file in files]) >= 0.95


def test_the_bundled_classifier_of_words(shared_data: Path) -> None:
    classifier = load_classifier("words-small")
    assert classifier.class_names == ["zero", "one", "five", "eight", "down", "go", "left", "right", "up"]
    assert classifier.accuracy["speech_commands"]["accuracy"] >= 0.95
    assert sum(path.stat().st_size for path in (PRETRAINED / "words-small").iterdir()) <= 2_000_000
    folders = [shared_data / "sc09", shared_data / "commands"]
    held_out = SpeechCommands(folders, "validation", words=classifier.class_names)
    chosen = range(0, len(held_out), 4)
    audio = np.concatenate([one_second(held_out.clip(index)[None], 16000) for index in chosen])
    predicted = classifier.classify(audio, 16000)[1].argmax(axis=1)
    assert np.mean(predicted == held_out.labels[list(chosen)]) >= 0.93
