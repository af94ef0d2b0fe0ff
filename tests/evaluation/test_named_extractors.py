"""Tests of the extractors that --features knows by name, with random weights of the published names and shapes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.classifiers import load_classifier
from sashimi_evaluation.extractors import NamedExtractor, is_named, load_extractor, seconds_of, sources_of
from sashimi_evaluation.extractors.embedding import SCALE
from sashimi_evaluation.extractors.interface import FeatureExtractor
from sashimi_evaluation.extractors.vggish import PATCH, log_mel

WIDTHS = (2, 3, 4, 4, 5, 6)


def noise(rate: int, seconds: float, rows: int = 2) -> np.ndarray:
    random = np.random.default_rng(0)
    return (0.1 * random.standard_normal((rows, round(seconds * rate)))).astype(np.float32)


def vggish_state(channels=WIDTHS, last=7) -> dict[str, torch.Tensor]:
    """Return random weights of VGGish with the published names."""
    torch.manual_seed(0)
    shapes, inputs = {}, 1
    for position, outputs in zip((0, 3, 6, 8, 11, 13), channels, strict=True):
        shapes[f"features.{position}"], inputs = (outputs, inputs, 3, 3), outputs
    shapes |= {"embeddings.0": (8, 24 * inputs), "embeddings.2": (8, 8), "embeddings.4": (last, 8)}
    weights = {f"{name}.weight": 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    return weights | {f"{name}.bias": 0.1 * torch.randn(shape[0]) for name, shape in shapes.items()}


def panns_state(window=512, channels=WIDTHS, width=9) -> dict[str, torch.Tensor]:
    """Return random weights of Cnn14 with the published names."""
    torch.manual_seed(0)
    bins = window // 2 + 1
    state = {
        f"spectrogram_extractor.stft.conv_{part}.weight": torch.randn(bins, 1, window) for part in ("real", "imag")
    }
    state["logmel_extractor.melW"] = torch.rand(bins, 64)
    norms, inputs = {"bn0": 64}, 1
    for number, outputs in enumerate(channels, start=1):
        block = f"conv_block{number}"
        state[f"{block}.conv1.weight"] = 0.3 * torch.randn(outputs, inputs, 3, 3)
        state[f"{block}.conv2.weight"] = 0.3 * torch.randn(outputs, outputs, 3, 3)
        norms |= {f"{block}.bn1": outputs, f"{block}.bn2": outputs}
        inputs = outputs
    for name, size in norms.items():
        state |= {f"{name}.weight": torch.ones(size), f"{name}.bias": torch.zeros(size)}
        state |= {f"{name}.running_mean": torch.zeros(size), f"{name}.running_var": torch.ones(size)}
        state[f"{name}.num_batches_tracked"] = torch.tensor(1)
    state |= {"fc1.weight": torch.randn(width, inputs), "fc1.bias": torch.randn(width)}
    return state | {"fc_audioset.weight": torch.randn(527, width), "fc_audioset.bias": torch.randn(527)}


def test_the_embedding_is_that_of_the_classifiers_before_their_normalization():
    extractor = load_extractor("embedding")
    assert isinstance(extractor, FeatureExtractor)
    assert is_named(extractor)
    audio, classifier = noise(16000, 1.0), load_classifier("words-small")
    features = extractor.features(audio, 16000)
    norm = classifier.model.norm
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    shift = (norm.bias - norm.running_mean * scale).detach()
    expected = features.reshape(2, 2, 96) / SCALE * scale.numpy() + shift.numpy()
    assert (scale > 0).all()  # so that the maximum stays the maximum
    np.testing.assert_allclose(classifier.features(audio, 16000), expected.reshape(2, 192), atol=1e-4)
    np.testing.assert_allclose(extractor.features(5 * audio, 16000), features, atol=1e-4)
    assert extractor.features(noise(16000, 3.0), 16000).shape == (2, 192)
    assert extractor.features(noise(16000, 0.1), 16000).shape == (2, 192)


@pytest.mark.parametrize("form", ["pth", "safetensors", "checkpoint"])
def test_vggish_from_a_file(tmp_path: Path, form: str):
    path, state = tmp_path / f"vggish.{'safetensors' if form == 'safetensors' else 'pth'}", vggish_state()
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(
            {"model_state_dict": state} if form == "checkpoint" else {**state, "pproc.means": torch.ones(2)}, path
        )
    extractor = load_extractor(f"vggish={path}")
    assert (extractor.name, extractor.sample_rate, seconds_of(extractor)) == ("vggish", 16000, 0.975)
    assert sources_of(f"vggish={path}") == [path]
    audio = noise(16000, 2.5)
    features = extractor.features(audio, 16000)
    assert features.shape == (2, 7)
    # The mean over the patches of 96 frames every 0.96 seconds; a rest is left out.
    patches = [extractor.features(audio[:, start : start + PATCH], 16000) for start in (0, 96 * 160)]
    np.testing.assert_allclose(features, np.mean(patches, axis=0), rtol=1e-4, atol=1e-6)
    short = audio[:, :5000]
    padded = np.pad(short, ((0, 0), (0, PATCH - 5000)))
    np.testing.assert_array_equal(extractor.features(short, 16000), extractor.features(padded, 16000))
    assert (features < 0).any()  # before the last activation


def test_the_input_of_vggish():
    """Its mel filters are triangles on the mel scale between 125 and 7500 Hz, with a maximum below 1."""
    time = torch.arange(16000) / 16000
    levels = log_mel(torch.sin(2 * torch.pi * 1000 * time)[None])
    assert levels.shape == (1, 98, 64)
    mels = 1127 * np.log1p(np.array([125, 1000, 7500]) / 700)
    band = (mels[1] - mels[0]) / (mels[2] - mels[0]) * 65 - 1
    assert abs(float(levels[0, 50].argmax()) - band) < 1
    # The filters of neighbors add up to 1, and the magnitudes of all bins to half the size of the transform.
    assert float(levels[0, 50].exp().sum()) == pytest.approx(256, rel=0.1)
    assert float(log_mel(torch.zeros(1, 800)).exp().max()) == pytest.approx(0.01)


@pytest.mark.parametrize(("window", "rate"), [(256, 8000), (512, 16000), (1024, 32000)])
def test_panns_from_a_file(tmp_path: Path, window: int, rate: int):
    path, state = tmp_path / "Cnn14.pth", panns_state(window)
    torch.save({"model": state, "iteration": 3}, path)
    extractor = load_extractor(f"panns={path}")
    assert (extractor.name, extractor.sample_rate, seconds_of(extractor)) == ("panns", rate, 1.0)
    features = extractor.features(noise(rate, 1.0, rows=11), rate)
    assert features.shape == (11, 9)
    np.testing.assert_allclose(features[:2], extractor.features(noise(rate, 1.0, rows=11)[:2], rate), atol=1e-5)
    assert extractor.features(noise(rate, 0.1), rate).shape == (2, 9)
    assert extractor.features(noise(rate, 3.0), rate).shape == (2, 9)
    torch.save(panns_state(window) | {"fc1.bias": torch.ones(9)}, path)
    assert load_extractor(f"panns={path}").fingerprint != extractor.fingerprint


def test_the_levels_of_panns(tmp_path: Path):
    state = panns_state(512)
    state["logmel_extractor.melW"] = torch.eye(257, 64)
    torch.save(state, tmp_path / "Cnn14.pth")
    extractor = load_extractor(f"panns={tmp_path / 'Cnn14.pth'}")
    assert isinstance(extractor, NamedExtractor)
    wave = torch.sin(2 * torch.pi * 10 * torch.arange(16000) / 512)[None]
    levels = extractor.network.levels(wave)
    assert levels.shape == (1, 101, 64)
    assert float(levels[0, 50, 10]) == pytest.approx(20 * np.log10(512 / 4), abs=0.01)  # the tenth bin
    assert float(levels[0, 50, 40]) < -60
    assert float(extractor.network.levels(torch.zeros(1, 4000)).max()) == pytest.approx(-100)


def changed(state: dict[str, torch.Tensor], **changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    merged = state | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in merged.items() if value is not None}


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vggish", {}, "contains no state dict"),
        ("vggish", [1, 2], "contains no state dict"),
        ("vggish", {"weights": Evil()}, "is refused: it contains more than tensors and could run code"),
        ("vggish", panns_state(), "has no weights of VGGish: missing features.0.weight"),
        ("vggish", changed(vggish_state(), features__3__bias=None), "does not fit VGGish: missing features.3.bias"),
        (
            "vggish",
            changed(vggish_state(), embeddings__0__weight=torch.zeros(8, 100)),
            r"misshapen embeddings.0.weight \(8, 100\), expected \(8, 144\)",
        ),
        (
            "vggish",
            changed(vggish_state(), features__0__weight=torch.zeros(2, 3)),
            r"misshapen features.0.weight \(2, 3\)",
        ),
        ("vggish", changed(vggish_state(), extra=torch.zeros(2)), "does not fit VGGish: unexpected extra"),
        ("vggish", changed(vggish_state(), features__0__bias=torch.full((2,), torch.nan)), "NaN or infinite"),
        ("panns", vggish_state(), "has no weights of Cnn14: missing spectrogram_extractor.stft.conv_real.weight"),
        ("panns", panns_state(128), "has windows of 128 samples: expected Cnn14 at 8, 16 or 32 kHz"),
        ("panns", changed(panns_state(), logmel_extractor__melW=torch.rand(9, 64)), r"misshapen logmel_extractor.melW"),
        ("panns", changed(panns_state(), conv_block4__bn1__bias=None), "missing conv_block4.bn1.bias"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, capsys, name, content, message):
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=message) as error:
        load_extractor(f"{name}={tmp_path / 'weights.pth'}")
    assert "\n" not in str(error.value)
    assert "code ran" not in capsys.readouterr().out


def test_a_small_file_does_not_allocate_a_large_network(tmp_path: Path):
    state = vggish_state()
    state["features.11.weight"] = torch.zeros(1).expand(200_000, 4, 3, 3)[:, :1, :1, :1].contiguous()
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"misshapen features\.11\.weight"):  # the next layer would have 43 GB
        load_extractor(f"vggish={tmp_path / 'weights.pth'}")


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("vgish=weights.pth", "expected package.module:function, .* or one of embedding, .*did you mean 'vggish'?"),
        ("embeding", "did you mean 'embedding'?"),
        ("VGGish=weights.pth", "did you mean 'vggish'?"),
        ("vggish", "the weights are missing: expected --features vggish=FILE; nothing is downloaded"),
        ("clap=", "the weights are missing: expected --features clap=FOLDER; nothing is downloaded"),
        ("panns=nowhere.pth", "nowhere.pth does not exist: expected the weights of panns"),
        ("encodec=nowhere", "nowhere does not exist: expected the weights of encodec"),
        ("vggish=folder", "folder is no file: expected --features vggish=FILE"),
        ("clap=file", "file is no folder: expected --features clap=FOLDER"),
        ("embedding=file", "embedding is part of the package and takes no path"),
        ("vggish=file", "file is no checkpoint that torch can read"),
        ("json:x=y", "expected package.module:function"),
    ],
)
def test_wrong_names_and_paths_are_one_line(tmp_path: Path, monkeypatch, location, message):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").write_text("no weights")
    with pytest.raises(UserError, match=message) as error:
        load_extractor(location)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="CLAP and EnCodec need transformers: pip install transformers")


@pytest.fixture(scope="module")
def clap(transformers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a CLAP of random weights."""
    folder = tmp_path_factory.mktemp("clap")
    audio = {"window_size": 8, "num_mel_bins": 64, "spec_size": 256, "hidden_size": 32, "patch_embeds_hidden_size": 4}
    audio |= {"depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 1], "projection_dim": 12, "num_classes": 3}
    text = {
        "vocab_size": 20,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    text |= {"max_position_embeddings": 12, "projection_dim": 12}
    torch.manual_seed(0)
    config = transformers.ClapConfig(text_config=text, audio_config=audio, projection_dim=12)
    transformers.ClapModel(config).save_pretrained(folder)
    transformers.ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encodec(transformers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save an EnCodec of random weights."""
    folder = tmp_path_factory.mktemp("encodec")
    torch.manual_seed(0)
    config = transformers.EncodecConfig(
        hidden_size=10, num_filters=2, upsampling_ratios=[8, 5, 4, 2], num_lstm_layers=1
    )
    transformers.EncodecModel(config).save_pretrained(folder)
    return folder


def test_clap_from_a_folder(clap: Path, transformers):
    extractor = load_extractor(f"clap={clap}")
    assert (extractor.name, extractor.sample_rate, seconds_of(extractor)) == ("clap", 48000, 10.0)
    audio = noise(48000, 1.0)
    features = extractor.features(audio, 48000)
    assert features.shape == (2, 12)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, rtol=1e-5)
    preprocessor = transformers.ClapFeatureExtractor.from_pretrained(clap)
    model = transformers.ClapModel.from_pretrained(clap).eval()
    inputs = preprocessor(list(audio), sampling_rate=48000, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_audio_features(**inputs)
    expected = getattr(expected, "pooler_output", expected)  # a tensor in older versions
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)
    assert sorted(sources_of(f"clap={clap}")) == sorted(clap.iterdir())
    assert not constants.HF_HUB_OFFLINE


def test_longer_audio_has_the_same_clap_features_each_time(clap: Path):
    extractor = load_extractor(f"clap={clap}")
    audio = noise(48000, 11.0, rows=1)
    first = extractor.features(audio, 48000)
    np.testing.assert_array_equal(first, extractor.features(audio, 48000))
    parts = [extractor.features(audio[:, part], 48000) for part in (slice(480_000), slice(480_000, None))]
    np.testing.assert_allclose(first, np.mean(parts, axis=0), atol=1e-6)


def test_encodec_from_a_folder(encodec: Path, transformers):
    extractor = load_extractor(f"encodec={encodec}")
    assert (extractor.name, extractor.sample_rate, seconds_of(extractor)) == ("encodec", 24000, 1.0)
    audio = noise(24000, 0.5)
    model = transformers.EncodecModel.from_pretrained(encodec).eval()
    with torch.no_grad():
        expected = model.encoder(torch.from_numpy(audio)[:, None]).mean(dim=2)
    np.testing.assert_allclose(extractor.features(audio, 24000), expected.numpy(), atol=1e-5)


def test_a_stereo_encodec_gets_two_equal_channels_of_one_level(transformers, tmp_path: Path):
    torch.manual_seed(0)
    config = transformers.EncodecConfig(
        hidden_size=10, num_filters=2, num_lstm_layers=1, audio_channels=2, normalize=True
    )
    transformers.EncodecModel(config).save_pretrained(tmp_path / "stereo")
    extractor = load_extractor(f"encodec={tmp_path / 'stereo'}")
    audio = noise(24000, 0.5)
    features = extractor.features(audio, 24000)
    assert features.shape == (2, 10)
    np.testing.assert_allclose(extractor.features(10 * audio, 24000), features, atol=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no config", r"config.json does not exist: expected the config of encodec"),
        ("config of another", "holds a model of the type bert: expected encodec"),
        ("no weights", "cannot be loaded as EnCodec"),
        ("damaged weights", "cannot be loaded as EnCodec"),
        ("fewer weights", "do not fit its config: missing"),
        ("other shapes", "EnCodec|do not fit its config"),
        ("infinite weights", "weights that are NaN or infinite"),
    ],
)
def test_other_folders_are_refused(encodec: Path, tmp_path: Path, change: str, message: str, capsys):
    from safetensors.torch import load_file

    weights = load_file(encodec / "model.safetensors")
    name = sorted(weights)[0]
    if change == "fewer weights":
        del weights[name]
    elif change == "other shapes":
        weights[name] = torch.zeros(3, 3)
    elif change == "infinite weights":
        weights[name] = torch.full_like(weights[name], torch.inf)
    config = json.loads((encodec / "config.json").read_text())
    if change == "config of another":
        config["model_type"] = "bert"
    if change != "no config":
        (tmp_path / "config.json").write_text(json.dumps(config))
    if change == "damaged weights":
        (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    elif change != "no weights":
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=message) as error:
        load_extractor(f"encodec={tmp_path}")
    assert "\n" not in str(error.value)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["clap", "encodec"])
def test_without_transformers_the_error_names_it(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=f"--features {name} needs transformers: pip install transformers"):
        load_extractor(f"{name}={tmp_path}")
