"""Tests of WaveNetDenoiser: published sizes, receptive field, conditioning, saving."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.wavenet import WaveNetDenoiser

SMALL = {
    "residual_channels": 6,
    "skip_channels": 5,
    "n_layers": 4,
    "dilation_cycle": 3,
    "embedding_sines": 8,
    "embedding_hidden": 16,
    "embedding_dim": 12,
}
MEL = {"mel_channels": 5, "mel_upsample": (4, 4)}


def make(**config) -> WaveNetDenoiser:
    """Return a small denoiser whose last layer is random, because a new denoiser predicts zero."""
    torch.manual_seed(0)
    model = WaveNetDenoiser(**{**SMALL, **config}).eval()
    nn.init.normal_(model.output[-1].weight)
    for embedding in (model.class_embedding, model.speaker_embedding):
        if embedding is not None:
            nn.init.normal_(embedding.weight)
    return model


def noise(batch: int = 2, length: int = 64) -> Tensor:
    return torch.randn(batch, 1, length, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["wnet_h256_d36_uncond", "wnet_h128_d30_uncond", "wnet_h64_d36_cond"])
@pytest.mark.parametrize("branch", ["master", "ckpt"])
def test_published_sizes(golden, branch: str, name: str) -> None:
    info = golden.info(f"keys/dw_{branch}_{name}")
    config = info["config"]
    with torch.device("meta"):
        model = WaveNetDenoiser(
            residual_channels=config["res_channels"],
            skip_channels=config["skip_channels"],
            n_layers=config["num_res_layers"],
            dilation_cycle=config["dilation_cycle"],
            mel_channels=None if config["unconditional"] else 80,
            mel_upsample=config.get("mel_upsample", (16, 16)),
        )
    assert sum(parameter.numel() for parameter in model.parameters()) == info["n_params"]


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 17, 64])
def test_any_length(length: int) -> None:
    model = make()
    assert model.length_multiple == 1
    output = model(noise(length=length), torch.tensor([3, 7])).sample
    assert output.shape == (2, 1, length)
    assert torch.isfinite(output).all()
    assert torch.equal(output, model(noise(length=length), torch.tensor([3.0, 7.0]), return_dict=False)[0])


@torch.no_grad()
def test_the_initial_prediction_is_zero() -> None:
    assert torch.equal(WaveNetDenoiser(**SMALL)(noise(), 3).sample, torch.zeros(2, 1, 64))


@torch.no_grad()
def test_the_receptive_field_follows_from_the_dilations() -> None:
    model = make().double()
    sample = noise(1).double()
    changed = sample.clone()
    changed[..., 32] += 1
    difference = (model(changed, 3).sample - model(sample, 3).sample).abs().flatten()
    reach = 1 + 2 + 4 + 1
    assert difference[32 - reach] > 0
    assert difference[32 + reach] > 0
    assert difference[: 32 - reach].max() == 0
    assert difference[32 + reach + 1 :].max() == 0


@torch.no_grad()
def test_step_on_residual_changes_the_residual_path_only() -> None:
    plain, published = make(), make(step_on_residual=True)
    published.load_state_dict(plain.state_dict())
    assert (plain(noise(), 5).sample - published(noise(), 5).sample).abs().max() > 1e-4
    for model in (plain, published):
        for block in model.blocks:
            nn.init.zeros_(block.step_projection.weight)
            nn.init.zeros_(block.step_projection.bias)
    assert torch.equal(plain(noise(), 5).sample, published(noise(), 5).sample)


@torch.no_grad()
def test_conditioning_changes_only_its_own_example() -> None:
    model = make(num_classes=3, num_speakers=2, **MEL)
    mel = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2))
    reference = model(noise(), torch.tensor([5, 5]), torch.tensor([0, 0]), mel).sample
    other_mel = torch.stack([mel[0], mel[1] + 1])
    for timestep, labels, spectrogram, speakers in (  # label 2 is no speaker, as in the reference
        ([5, 6.5], [0, 0], mel, [2, 2]),
        ([5, 5], [0, 2], mel, [2, 2]),
        ([5, 5], [0, 0], other_mel, [2, 2]),
        ([5, 5], [0, 0], mel, [2, 1]),
    ):
        timesteps, speakers = torch.tensor(timestep), torch.tensor(speakers)
        output = model(noise(), timesteps, torch.tensor(labels), spectrogram, speaker_labels=speakers).sample
        torch.testing.assert_close(output[0], reference[0])
        assert (output[1] - reference[1]).abs().max() > 1e-4


def test_invalid_conditioning_is_refused() -> None:
    with pytest.raises(UserError, match="model without classes"):
        make()(noise(), 5, class_labels=torch.tensor([0, 0]))
    with pytest.raises(UserError, match="without speaker conditioning"):
        make(num_classes=3)(noise(), 5, speaker_labels=torch.tensor([0, 0]))
    with pytest.raises(UserError, match="vocoder"):
        make(**MEL)(noise(), 5)


def test_every_trainable_parameter_gets_a_gradient() -> None:
    model = make(num_classes=3, num_speakers=2, **MEL)
    labels, mel = torch.tensor([0, 1]), torch.randn(2, 5, 4)
    model(noise(), 5, labels, mel, speaker_labels=labels).sample.square().mean().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name.split(".parametrizations")[0].removesuffix(".bias") for name in without} == {
        "blocks.3.residual_output"
    }


def test_a_conditional_model_compiles_without_a_graph_break() -> None:
    torch.compiler.reset()
    model = make(n_layers=2, num_classes=3, num_speakers=2, **MEL)
    sample, labels, mel = noise(), torch.tensor([0, 1]), torch.randn(2, 5, 4)
    arguments = (sample, torch.tensor([3.0, 7.0]), labels, mel, labels)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*arguments).sample, model(*arguments).sample)


@torch.no_grad()
def test_save_and_load(tmp_path: Path) -> None:
    speakers = {"num_speakers": 2, "speaker_names": ["ann", "bob"]}
    model = make(num_classes=3, class_names=["a", "b", "c"], step_on_residual=True, **speakers, **MEL)
    model.save_pretrained(tmp_path)
    loaded = WaveNetDenoiser.from_pretrained(tmp_path)
    mel = torch.randn(2, 5, 4)
    labels = torch.tensor([0, 2])
    by_both = {"speaker_labels": torch.tensor([1, 0])}
    assert torch.equal(
        loaded(noise(), 5, labels, mel, **by_both).sample, model(noise(), 5, labels, mel, **by_both).sample
    )
    assert loaded.config.class_names == ["a", "b", "c"]
    assert loaded.config.speaker_names == ["ann", "bob"]
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == trainable
