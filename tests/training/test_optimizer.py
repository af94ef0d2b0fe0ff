"""Tests of the optimizer: parameter groups, learning rates, gradient norms, averaged weights."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from sashimi_diffusion.models.denoiser import SashimiDenoiser
from sashimi_diffusion.ssm import frozen, state_space_parameters
from sashimi_diffusion.training.checkpoints import Counters
from sashimi_diffusion.training.config import OptimizerConfig
from sashimi_diffusion.training.ema import Ema
from sashimi_diffusion.training.optimizer import (
    create_optimizer,
    gradient_norm,
    learning_rate_factor,
    parameter_groups,
    scale_gradients,
    set_learning_rate,
    watch_plateau,
)


@pytest.fixture
def model():
    return SashimiDenoiser(d_model=8, n_layers=1, pool=(4,), n_state=4, embedding_hidden=16, embedding_dim=16)


def test_every_parameter_is_in_one_group(model):
    groups = parameter_groups(model, OptimizerConfig(lr=2e-3, ssm_lr=1e-2, weight_decay=0.1))
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(grouped)) == len(list(model.parameters()))
    decayed, plain, ssm = groups
    assert {id(p) for p in ssm["params"]} == {id(p) for p in state_space_parameters(model)}
    assert ssm["params"]
    assert (ssm["peak_lr"], ssm["weight_decay"]) == (1e-3, 0)
    assert all(parameter.squeeze().ndim <= 1 for parameter in plain["params"])
    assert plain["weight_decay"] == 0
    assert all(parameter.squeeze().ndim > 1 for parameter in decayed["params"])
    assert (decayed["peak_lr"], decayed["weight_decay"]) == (2e-3, 0.1)


def test_learning_rate_warms_up_and_decays():
    config = OptimizerConfig(warmup_steps=4, decay="cosine")
    factors = [learning_rate_factor(step, 104, config) for step in range(104)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4] == 1
    assert factors[54] == pytest.approx(0.5)
    assert factors[103] < 0.001
    assert all(a >= b for a, b in pairwise(factors[4:]))
    assert learning_rate_factor(103, 104, OptimizerConfig()) == 1


def test_the_groups_keep_their_proportions(model):
    optimizer = create_optimizer(model, OptimizerConfig(lr=2e-3, ssm_lr=5e-4))
    assert set_learning_rate(optimizer, 0.5) == 1e-3
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3, 2.5e-4]


def test_gradient_norm_and_scaling():
    layer = nn.Linear(3, 2)
    layer(torch.ones(1, 3)).sum().backward()
    expected = math.sqrt(6 + 2)
    assert gradient_norm(layer).item() == pytest.approx(expected)
    scale_gradients(layer, 0.5)
    assert gradient_norm(layer).item() == pytest.approx(expected / 2)
    layer.bias.grad[0] = math.nan
    assert not gradient_norm(layer).isfinite()


def test_the_average_follows_the_weights_and_changes_the_output(model):
    ema = Ema(model, 0.75)
    sample, step = torch.randn(1, 1, 64), torch.tensor([3])
    with torch.no_grad():
        last = next(parameter for name, parameter in model.named_parameters() if name.startswith("output.2"))
        last.normal_()
        expected = torch.zeros_like(last)
        before = ema.model(sample, step).sample
        for update in range(1, 30):
            model.input[0].bias.add_(1)
            ema.update(model)
            decay = min(0.75, (1 + update) / (10 + update))
            expected = decay * expected + (1 - decay) * last
    average = dict(ema.model.named_parameters())
    name = next(name for name, parameter in model.named_parameters() if parameter is last)
    assert torch.allclose(average[name], expected, atol=1e-6)
    assert not torch.equal(before, ema.model(sample, step).sample)
    assert not ema.model.training
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_an_update_of_the_average_renews_cached_kernels(model):
    """A frozen layer keeps its convolution kernel; an update of the average must renew it."""
    ema = Ema(model, 0.5)
    sample = torch.randn(1, 1, 64)
    with torch.no_grad(), frozen(ema.model):
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        for _ in range(2):
            ema.model(sample, 3)
            ema.update(model)
        fresh = SashimiDenoiser.from_config(ema.model.config).eval()
        fresh.load_state_dict(ema.model.state_dict())
        assert torch.equal(ema.model(sample, 3).sample, fresh(sample, 3).sample)


def test_a_plateau_lowers_the_rate():
    """Like ReduceLROnPlateau, after more than ``patience`` consecutive validations without improvement."""
    config, counters = OptimizerConfig(decay="plateau", plateau_factor=0.2, plateau_patience=2), Counters()
    factors = []
    for loss in [3.0, 2.0, 2.5, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0]:
        watch_plateau(counters, loss, config)
        factors.append(round(counters.plateau_factor, 6))
    assert factors == [1, 1, 1, 1, 0.2, 0.2, 0.2, 0.2, 0.04, 0.04]
