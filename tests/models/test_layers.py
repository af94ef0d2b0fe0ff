"""Tests of weight normalization: values and names match PyTorch, one compiled graph for all layers."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils.parametrizations import weight_norm

from sashimi_diffusion.models.layers import WeightNormConv1d, WeightNormConvTranspose2d, WeightNormPointwise, pointwise
from sashimi_diffusion.ssm.pointwise import Pointwise

LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
    "pointwise": (lambda: WeightNormPointwise(3, 5), lambda: Pointwise(3, 5), (2, 3, 7)),
    "conv1d": (
        lambda: WeightNormConv1d(3, 5, 3, dilation=2, padding=2),
        lambda: nn.Conv1d(3, 5, 3, dilation=2, padding=2),
        (2, 3, 7),
    ),
    "conv_transpose2d": (
        lambda: WeightNormConvTranspose2d(2, 3, (3, 4), stride=(1, 2), padding=(1, 1)),
        lambda: nn.ConvTranspose2d(2, 3, (3, 4), stride=(1, 2), padding=(1, 1)),
        (2, 2, 5, 6),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_values_and_names_match_pytorch(name: str) -> None:
    make, make_plain, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make()
    torch.manual_seed(0)
    official = weight_norm(make_plain())
    assert list(layer.state_dict()) == list(official.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), official.parameters(), strict=True))
    with torch.no_grad():
        for parameter in official.parameters():
            parameter += torch.randn_like(parameter)
    layer.load_state_dict(official.state_dict())
    assert torch.equal(layer.weight, official.weight)
    x = torch.randn(shape)
    for network in (layer, official):
        network(x).square().sum().backward()
    assert torch.equal(layer(x), official(x))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(layer.parameters(), official.parameters(), strict=True))


@pytest.mark.parametrize("name", LAYERS)
def test_an_assigned_weight_is_stored_as_magnitude_and_direction(name: str) -> None:
    make, _, _ = LAYERS[name]
    layer = make()
    parameters = list(layer.parameters())
    weight = torch.randn_like(layer.weight)
    layer.weight = weight
    torch.testing.assert_close(layer.weight, weight)
    assert all(a is b for a, b in zip(layer.parameters(), parameters, strict=True))


def test_all_layers_share_one_compiled_graph() -> None:
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(lambda layer, x: layer(x), backend=counter, fullgraph=True)
    for _ in range(3):
        layer, x = pointwise(3, 5), torch.randn(2, 3, 7)
        torch.testing.assert_close(compiled(layer, x), layer(x))
    assert counter.frame_count == 1
