"""Tests of SashimiDenoiser: conditioning, precision, saving, compilation, refused inputs."""

import math

import pytest
import torch
from torch import Tensor, nn

from sashimi_diffusion import SashimiDenoiser
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.blocks import DownPool, ResidualFeedForward, ResidualS4, UpPool
from sashimi_diffusion.ssm import frozen
from sashimi_kernels import layout

SMALL = {
    "d_model": 8,
    "n_layers": 1,
    "n_state": 8,
    "embedding_sines": 8,
    "embedding_hidden": 16,
    "embedding_dim": 16,
    "sample_size": 64,
}
MEL = {"mel_channels": 5, "mel_upsample": (4, 4)}


def make(**config) -> SashimiDenoiser:
    """Return a small denoiser whose last layer is random, because a new denoiser predicts zero."""
    torch.manual_seed(0)
    model = SashimiDenoiser(**{**SMALL, **config}).eval()
    nn.init.normal_(model.output[-1].weight)
    for embedding in (model.class_embedding, model.speaker_embedding):
        if embedding is not None:
            nn.init.normal_(embedding.weight)
    return model


def noise(batch: int = 2, length: int = 64) -> Tensor:
    return torch.randn(batch, 1, length, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"unet": False},
        {"norm": "layer", "weight_norm": False, "ff": 0},
        {"parameterization": "diag", "initialization": "lin", "discretization": "zoh", "reverse_shift": 0},
        {"parameterization": "legacy"},
        {"n_layers": [0, 1, 2], "n_ssm": 2},
        {"in_channels": 2, "out_channels": 2, "pool": (2,), "expand": 1},
    ],
)
def test_output_has_the_shape_of_the_input(config: dict) -> None:
    model = make(**config)
    sample = noise().expand(-1, model.config.in_channels, -1)
    output = model(sample, torch.tensor([3, 7])).sample
    assert output.shape == sample.shape
    assert torch.isfinite(output).all()
    assert torch.equal(output, model(sample, torch.tensor([3.0, 7.0]), return_dict=False)[0])


@torch.no_grad()
def test_the_initial_prediction_is_zero() -> None:
    assert torch.equal(SashimiDenoiser(**SMALL)(noise(), 3).sample, torch.zeros(2, 1, 64))


@torch.no_grad()
def test_timestep_and_class_change_only_their_own_example() -> None:
    model = make(num_classes=3)
    reference = model(noise(), torch.tensor([5, 5]), torch.tensor([0, 0])).sample
    for timestep, labels in (([5, 6.5], [0, 0]), ([5, 5], [0, 2])):
        output = model(noise(), torch.tensor(timestep), torch.tensor(labels)).sample
        torch.testing.assert_close(output[0], reference[0])
        assert (output[1] - reference[1]).abs().max() > 1e-4


@torch.no_grad()
def test_no_labels_is_the_null_class() -> None:
    model = make(num_classes=3)
    assert torch.equal(model(noise(), 5).sample, model(noise(), 5, torch.tensor([3, 3])).sample)


@torch.no_grad()
def test_the_speaker_changes_only_its_own_example() -> None:
    model = make(num_classes=3, num_speakers=2)
    classes = torch.tensor([1, 1])
    reference = model(noise(), 5, classes, speaker_labels=torch.tensor([0, 0])).sample
    output = model(noise(), 5, classes, speaker_labels=torch.tensor([0, 1])).sample
    torch.testing.assert_close(output[0], reference[0])
    assert (output[1] - reference[1]).abs().max() > 1e-4
    no_speaker = model(noise(), 5, classes, speaker_labels=torch.tensor([2, 2])).sample
    assert torch.equal(model(noise(), 5, classes).sample, no_speaker)
    assert (no_speaker - reference).abs().max() > 1e-4


@torch.no_grad()
def test_the_embeddings_of_class_and_speaker_are_added() -> None:
    model = make(num_classes=3, num_speakers=2)
    labels = {"class_labels": torch.tensor([0, 2]), "speaker_labels": torch.tensor([1, 0])}
    before = model(noise(), 5, **labels).sample
    shift = torch.randn(16)
    model.class_embedding.weight.add_(shift)
    assert (model(noise(), 5, **labels).sample - before).abs().max() > 1e-4
    model.speaker_embedding.weight.sub_(shift)
    torch.testing.assert_close(model(noise(), 5, **labels).sample, before, rtol=1e-4, atol=1e-4)


def test_speaker_conditioning_adds_one_embedding_table() -> None:
    torch.manual_seed(0)
    without = SashimiDenoiser(**SMALL, num_classes=3).state_dict()
    torch.manual_seed(0)
    with_speakers = SashimiDenoiser(**SMALL, num_classes=3, num_speakers=2).state_dict()
    assert not [name for name in without if "speaker" in name]
    assert set(with_speakers) - set(without) == {"speaker_embedding.weight"}
    assert with_speakers["speaker_embedding.weight"].shape == (3, 16)
    assert not with_speakers["speaker_embedding.weight"].any()


@torch.no_grad()
def test_every_stage_uses_the_mel_of_the_same_time() -> None:
    """The end of the mel changes the end of the output; with the official alignment a pooled stage ignores it."""
    length = 256
    mel = torch.randn(1, 5, length // 16)
    changed = mel.clone()
    changed[..., -2:] += 3
    center_only = {"n_layers": [0, 0, 1], **MEL}
    for alignment, is_used in (("stage", True), ("official", False)):
        model = make(mel_alignment=alignment, **center_only)
        before, after = (model(noise(1, length), 5, mel=m).sample for m in (mel, changed))
        difference = (after - before).abs().squeeze()
        assert (difference.max() > 1e-3) == is_used
        if is_used:
            position = (difference * torch.arange(length)).sum() / difference.sum()
            assert position > 0.7 * length


@pytest.mark.parametrize(
    ("config", "inputs", "message"),
    [
        ({}, {"class_labels": torch.tensor([0, 1])}, "model without classes"),
        ({"num_classes": 3}, {"class_labels": torch.tensor([0, 4])}, "from 0 to 2"),
        ({"num_classes": 3}, {"class_labels": torch.tensor([-1, 0])}, "from 0 to 2"),
        ({"num_classes": 3}, {"class_labels": torch.tensor([0])}, "one class label per example"),
        ({"num_classes": 3}, {"speaker_labels": torch.tensor([0, 1])}, "without speaker conditioning"),
        ({"num_speakers": 3}, {"speaker_labels": torch.tensor([0, 4])}, "speaker labels must be from 0 to 2"),
        ({}, {"mel": torch.zeros(2, 5, 4)}, "without mel conditioning"),
        (MEL, {}, "vocoder"),
        (MEL, {"mel": torch.zeros(2, 6, 4)}, r"\(2, 5, frames\)"),
        (MEL, {"mel": torch.zeros(2, 5, 3)}, "at least 4 frames"),
    ],
)
def test_wrong_conditioning_is_named(config: dict, inputs: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**config)(noise(), 5, **inputs)


def test_length_must_fit_the_pooling() -> None:
    model = make()
    assert model.length_multiple == 16
    with pytest.raises(UserError, match="multiple of 16, got 60"):
        model(noise(length=60), 5)


@torch.no_grad()
def test_the_blocks_get_mels_of_the_given_mean_and_deviation() -> None:
    mel = torch.randn(2, 5, 4)
    plain, normalized = make(**MEL), make(mel_mean=-5.0, mel_std=2.0, **MEL)
    torch.testing.assert_close(normalized(noise(), 5, mel=2 * mel - 5).sample, plain(noise(), 5, mel=mel).sample)
    assert not torch.allclose(normalized(noise(), 5, mel=mel).sample, plain(noise(), 5, mel=mel).sample)


def test_unknown_mel_alignment_is_named() -> None:
    with pytest.raises(ValueError, match="'stage' or 'official'"):
        make(mel_alignment="none", **MEL)


@torch.no_grad()
def test_equal_channels_do_not_give_nan() -> None:
    """If the ReLU of the first layer is zero everywhere, the official norm divides zero by zero."""
    model = make()
    model.input[0].bias.fill_(-100.0)
    assert torch.isfinite(model(noise(), 5).sample).all()


@torch.no_grad()
@pytest.mark.parametrize("parameterization", ["nplr", "legacy"])
def test_bfloat16_keeps_the_state_spaces_in_float32(tmp_path, parameterization: str) -> None:
    model = make(parameterization=parameterization)
    model.save_pretrained(tmp_path)
    expected = model(noise(), 5).sample
    loaded = SashimiDenoiser.from_pretrained(tmp_path, torch_dtype=torch.bfloat16).eval()
    for cast in (make(parameterization=parameterization).to(torch.bfloat16), loaded):
        ssm = {name: parameter for name, parameter in cast.named_parameters() if ".ssm." in name}
        assert ssm
        for name, parameter in ssm.items():
            assert parameter.dtype == torch.float32, name
            assert torch.equal(parameter, dict(model.named_parameters())[name]), name
        assert cast.output[0].bias.dtype == torch.bfloat16
        output = cast(noise().bfloat16(), 5).sample
        assert output.dtype == torch.bfloat16
        assert (output.float() - expected).abs().max() < 0.1 * expected.abs().max()


@torch.no_grad()
def test_save_and_load(tmp_path) -> None:
    names = {"class_names": ["no", "yes"], "speaker_names": ["ann", "bob"]}
    model = make(num_classes=2, num_speakers=2, **names, n_layers=[0, 1, 1], waveform_std=0.1)
    model.save_pretrained(tmp_path)
    loaded = SashimiDenoiser.from_pretrained(tmp_path)
    assert list(loaded.config.class_names) == ["no", "yes"]
    assert list(loaded.config.speaker_names) == ["ann", "bob"]
    assert loaded.config.waveform_std == 0.1
    labels = {"class_labels": torch.tensor([0, 1]), "speaker_labels": torch.tensor([1, 0])}
    assert torch.equal(loaded(noise(), 5, **labels).sample, model(noise(), 5, **labels).sample)


def test_the_gradient_reaches_every_parameter() -> None:
    model = make(num_classes=2, num_speakers=2, **MEL).train()
    mel, labels = torch.randn(2, 5, math.ceil(64 / 16)), torch.tensor([0, 1])
    model(noise(), torch.tensor([3, 8]), labels, mel, speaker_labels=labels).sample.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("parameterization", ["nplr", "diag"])
def test_it_compiles_without_a_graph_break(parameterization: str) -> None:
    model = make(parameterization=parameterization, n_layers=[0, 1], pool=[4], n_state=4)
    sample, timestep = noise(length=16), torch.tensor([3.0, 7.0])
    expected = model(sample, timestep).sample
    expected.square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output = compiled(sample, timestep).sample
    output.square().sum().backward()
    torch.testing.assert_close(output, expected)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [{"num_classes": 3}, {"num_speakers": 2}, {"num_classes": 3, "num_speakers": 2}])
def test_conditional_models_compile_without_a_graph_break(labels: dict) -> None:
    """Compiled code does not check the range of the labels, because the check would break the graph."""
    torch.compiler.reset()
    model = make(n_layers=[0, 1], pool=[4], n_state=4, **labels)
    given = {f"{kind}_labels": torch.tensor([0, 1]) for kind in ("class", "speaker")}
    given = {
        name: given[name]
        for name, kind in (("class_labels", "num_classes"), ("speaker_labels", "num_speakers"))
        if kind in labels
    }
    sample, timestep = noise(length=16), torch.tensor([3.0, 7.0])
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(sample, timestep, **given).sample, model(sample, timestep, **given).sample)


@pytest.mark.parametrize(
    ("parameterization", "norm"), [("nplr", "scalar"), pytest.param("diag", "layer", marks=pytest.mark.slow)]
)
def test_every_backend_matches_the_reference(monkeypatch: pytest.MonkeyPatch, parameterization: str, norm: str) -> None:
    """Every backend gives the same outputs in training and evaluation mode (Triton in its interpreter)."""
    pytest.importorskip("triton", reason="the triton package is not installed")
    model = make(d_model=4, parameterization=parameterization, norm=norm, n_layers=[1, 0], pool=[4], n_state=4)
    sample = noise(batch=1, length=20)
    outputs = {}
    for backend in ("reference", "torch", "triton"):
        monkeypatch.setenv("SASHIMI_KERNELS", backend)
        model.train().zero_grad()
        outputs[backend] = model(sample, 5.5).sample
        outputs[backend].square().sum().backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        with torch.no_grad():
            cached = model.eval()(sample, 5.5).sample
        torch.testing.assert_close(cached, outputs[backend], rtol=1e-4, atol=1e-4)
        if backend == "reference":
            expected, expected_gradient = outputs[backend], gradient
        torch.testing.assert_close(outputs[backend], expected, rtol=1e-4, atol=1e-4)
        assert (gradient - expected_gradient).norm() < 1e-3 * expected_gradient.norm()


class TestLayoutOfGPUs:
    """Tests of the forms that networks take on a GPU: adjacent samples, and operators of all layers together."""

    @pytest.fixture(params=["torch", "triton"])
    def backend(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
        pytest.importorskip("triton", reason="the triton package is not installed")
        monkeypatch.setenv("SASHIMI_KERNELS", request.param)
        return request.param

    @pytest.mark.parametrize(
        "options",
        [{}, pytest.param({"parameterization": "diag", "norm": "layer", "n_ssm": 2}, marks=pytest.mark.slow)],
        ids=str,
    )
    def test_outputs_and_gradients(self, backend: str, monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
        model = make(d_model=4, n_layers=[1, 1], pool=[4], n_state=4, **options)
        sample, timestep = noise(batch=1, length=136), torch.tensor([3.0])

        def output_and_gradients() -> tuple[Tensor, Tensor]:
            model.zero_grad()
            output = model(sample, timestep).sample
            output.square().sum().backward()
            return output.detach(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

        with monkeypatch.context() as plain:
            plain.setenv("SASHIMI_KERNELS", "torch")
            expected, expected_gradients = output_and_gradients()
        monkeypatch.setattr(layout, "samples_adjacent", lambda x: True)
        output, gradients = output_and_gradients()
        assert (output - expected).abs().max() < 1e-5 * expected.abs().max()
        assert (gradients - expected_gradients).norm() < 1e-4 * expected_gradients.norm()
        with torch.no_grad(), frozen(model):
            for _ in range(2):
                output = model(sample, timestep).sample
                assert (output - expected).abs().max() < 1e-5 * expected.abs().max()

    def test_samples_stay_adjacent(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layout, "samples_adjacent", lambda x: True)
        model = make(d_model=4, n_layers=[1, 1], pool=[4], n_state=6)
        seen: list[Tensor] = []
        for module in model.modules():
            if isinstance(module, (ResidualS4, ResidualFeedForward, DownPool, UpPool)):
                module.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0], output]))
        with torch.no_grad():
            model(noise(batch=1, length=24), 3.0)
        assert len(seen) == 2 * (3 * 2 + 2)
        if backend == "triton":
            assert all(x.stride(-1) == 1 for x in seen)
