"""Tests of weights that move to a network with other labels or another sample rate."""

from typing import Any

import pytest
import torch

from sashimi_diffusion import SashimiDenoiser
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.transfer import transfer_weights

SIZES: dict[str, Any] = dict(
    **dict(d_model=6, n_layers=[1, 2], pool=[8], n_state=8, sample_rate=8000, sample_size=512, pooling="overlapping"),
    **dict(parameterization="diag", initialization="lin", discretization="zoh"),
    **dict(embedding_sines=8, embedding_hidden=8, embedding_dim=8),
)


def network(**changes: Any) -> SashimiDenoiser:
    """Return a network with random weights, without the zeros of the initialization."""
    torch.manual_seed(len(changes))
    model = SashimiDenoiser(**(SIZES | changes))
    for name, parameter in model.named_parameters():
        if "ssm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def predict(model: SashimiDenoiser, x: torch.Tensor, **labels: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(x, 7.0, **labels).sample


@pytest.mark.parametrize("weight_norm", [False, True])
def test_at_a_multiple_of_the_rate_repeated_samples_give_the_repeated_prediction(weight_norm: bool) -> None:
    source = network(weight_norm=weight_norm)
    target = network(weight_norm=weight_norm, sample_rate=24000, sample_size=1536, pool=[24])
    transfer_weights(source, target)
    x = torch.sin(torch.arange(512) / 20).reshape(1, 1, -1)
    expected = predict(source, x)
    found = predict(target, x.repeat_interleave(3, dim=-1)).unflatten(-1, (-1, 3)).mean(dim=-1)
    assert (found - expected).square().mean() < 1e-3 * expected.square().mean()


def test_known_labels_keep_their_embeddings_and_new_ones_start_at_the_mean() -> None:
    source = network(num_classes=3, class_names=["a", "b", "c"], num_speakers=2, speaker_names=["x", "y"])
    target = network(num_classes=2, class_names=["c", "new"], num_speakers=2, speaker_names=["new", "x"])
    transfer_weights(source, target)
    classes, speakers = source.class_embedding.weight, source.speaker_embedding.weight
    assert torch.equal(target.class_embedding.weight, torch.stack([classes[2], classes[:3].mean(dim=0), classes[3]]))
    assert torch.equal(
        target.speaker_embedding.weight, torch.stack([speakers[:2].mean(dim=0), speakers[0], speakers[2]])
    )
    x = torch.randn(2, 1, 512)
    labels = {"class_labels": torch.tensor([2, 3]), "speaker_labels": torch.tensor([0, 2])}
    new_labels = {"class_labels": torch.tensor([0, 2]), "speaker_labels": torch.tensor([1, 2])}
    torch.testing.assert_close(predict(target, x, **new_labels), predict(source, x, **labels))


def test_labels_without_names_start_at_the_mean() -> None:
    source, target = network(num_classes=3), network(num_classes=2)
    transfer_weights(source, target)
    classes = source.class_embedding.weight
    mean = classes[:3].mean(dim=0)
    assert torch.equal(target.class_embedding.weight, torch.stack([mean, mean, classes[3]]))


def test_without_speakers_the_classes_stand_for_the_mean_speaker() -> None:
    source = network(num_classes=2, class_names=["a", "b"], num_speakers=1, speaker_names=["x"])
    target = network(num_classes=2, class_names=["a", "b"])
    transfer_weights(source, target)
    x = torch.randn(2, 1, 512)
    labels = {"class_labels": torch.tensor([0, 2]), "speaker_labels": torch.tensor([0, 1])}
    torch.testing.assert_close(predict(target, x, class_labels=labels["class_labels"]), predict(source, x, **labels))


def test_an_unconditional_network_can_get_classes() -> None:
    source, target = network(), network(num_classes=2, class_names=["a", "b"])
    before = target.class_embedding.weight.clone()
    transfer_weights(source, target)
    assert torch.equal(target.class_embedding.weight, before)
    assert torch.equal(target.input[0].weight, source.input[0].weight)


@pytest.mark.parametrize(
    ("known", "new", "message"),
    [
        ({}, {"sample_rate": 12000}, "12000 Hz, that of the initial network 8000 Hz: expected a multiple"),
        ({}, {"sample_rate": 4000}, "expected a multiple"),
        ({}, {"sample_rate": 16000}, r"expected model.pool=\[16\], got \[8\]"),
        ({"pooling": "frames"}, {"sample_rate": 16000, "pool": [16], "pooling": "frames"}, "pooling=overlapping"),
        ({}, {"pool": [16]}, r"at 8000 Hz, expected model.pool=\[8\], got \[16\]"),
        ({"pool": [], "n_layers": [2]}, {"pool": [], "n_layers": [2], "sample_rate": 16000}, "data.sample_rate=8000"),
        (
            {"parameterization": "legacy"},
            {"parameterization": "legacy", "sample_rate": 16000, "pool": [16]},
            "legacy layers keeps the sample rate",
        ),
        ({}, {"d_model": 8}, "d_model is 8, expected 6"),
        ({}, {"n_layers": [1, 3]}, r"n_layers is \[1, 3\], expected \[1, 2\]"),
        ({}, {"discretization": "bilinear"}, "discretization is 'bilinear', expected 'zoh'"),
        ({}, {"reverse_shift": 0}, "reverse_shift is 0, expected"),
        ({"pre_emphasis": 0.9}, {}, "pre_emphasis is 0.0, expected 0.9"),
        ({}, {"objective": "flow"}, "objective is 'flow', expected 'diffusion'"),
        (
            {"kernel_length": 256},
            {"kernel_length": 256, "sample_rate": 16000, "pool": [16]},
            "kernel_length is 256, expected 512",
        ),
        ({"num_classes": 2}, {}, "set model.class_conditional=true"),
        ({"num_speakers": 2}, {"num_classes": 2}, "set data.speakers"),
        (
            {"mel_channels": 4},
            {"mel_channels": 4, "sample_rate": 16000, "pool": [16]},
            "a vocoder keeps the sample rate",
        ),
    ],
)
def test_networks_that_differ_in_other_parts_are_refused(known: Any, new: Any, message: str) -> None:
    source, target = network(**known), network(**new)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(UserError, match=message):
        transfer_weights(source, target)
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
