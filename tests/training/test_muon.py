"""Tests of Muon: orthogonalization, size of the updates, parameters left to AdamW, restored states."""

import copy

import pytest
import torch
from torch import nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.autoregressive import SashimiAutoregressive
from sashimi_diffusion.models.denoiser import SashimiDenoiser
from sashimi_diffusion.ssm import state_space_parameters
from sashimi_diffusion.training.config import OptimizerConfig
from sashimi_diffusion.training.muon import CombinedOptimizer, Muon, orthogonalize
from sashimi_diffusion.training.optimizer import create_optimizer, set_learning_rate

MUON = OptimizerConfig(name="muon", lr=1e-2, momentum=0.95)


@pytest.mark.parametrize("shape", [(2, 3, 7), (1, 7, 3), (3, 5, 5)])
def test_singular_values_are_near_one_in_the_same_directions(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrices)
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    rotated = u.mT @ result @ vh.mT  # diagonal if the iteration were exact
    values = rotated.diagonal(dim1=1, dim2=2)
    assert ((values > 0.5) & (values < 1.3)).all()
    assert (rotated - torch.diag_embed(values)).abs().max() < 1e-4


def test_no_gradient_and_a_zero_gradient_change_nothing():
    weight = nn.Parameter(torch.ones(3, 4))
    untouched = nn.Parameter(torch.ones(3, 4))
    muon = Muon([weight, untouched], lr=0.1)
    weight.grad = torch.zeros(3, 4)
    muon.step()
    assert torch.equal(weight, torch.ones(3, 4))
    assert torch.equal(untouched, torch.ones(3, 4))


def test_updates_have_the_size_of_adamw_updates():
    """The RMS of an update is 0.2 lr for every shape and gradient; weight decay is that of AdamW."""
    generator = torch.Generator().manual_seed(1)
    for shape in [(64, 64), (32, 128), (24, 8, 3)]:
        weight = nn.Parameter(torch.ones(shape))
        muon = Muon([weight], lr=0.1, weight_decay=0.5)
        weight.grad = 1e-3 * torch.randn(shape, generator=generator)
        muon.step()
        step = weight.detach() - (1 - 0.05)
        assert step.square().mean().sqrt().item() == pytest.approx(0.02, rel=0.2)
        assert (step * weight.grad).sum() < 0


def test_matrices_of_the_same_shape_are_updated_independently():
    generator = torch.Generator().manual_seed(2)
    gradients = [torch.randn(4, 6, generator=generator) for _ in range(3)]
    together = [nn.Parameter(torch.zeros(4, 6)) for _ in gradients]
    separate = [nn.Parameter(torch.zeros(4, 6)) for _ in gradients]
    for parameter, other, gradient in zip(together, separate, gradients, strict=True):
        parameter.grad, other.grad = gradient.clone(), gradient.clone()
    Muon(together).step()
    for other in separate:
        Muon([other]).step()
    for parameter, other in zip(together, separate, strict=True):
        assert torch.allclose(parameter, other, atol=1e-7)


def denoiser():
    torch.manual_seed(0)
    return SashimiDenoiser(
        d_model=8, n_layers=1, pool=(4,), n_state=4, embedding_hidden=16, embedding_dim=16, num_classes=10
    )


def test_adamw_updates_embeddings_vectors_and_state_spaces():
    model = denoiser()
    muon, adamw = create_optimizer(model, MUON).parts
    assert isinstance(muon, Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    of_muon = {id(p) for group in muon.param_groups for p in group["params"]}
    of_adamw = {id(p) for group in adamw.param_groups for p in group["params"]}
    assert of_muon.isdisjoint(of_adamw)
    assert of_muon | of_adamw == {id(p) for p in model.parameters()}
    assert id(model.class_embedding.weight) in of_adamw
    assert {id(p) for p in state_space_parameters(model)} <= of_adamw
    assert all(p.squeeze().ndim > 1 for group in muon.param_groups for p in group["params"])
    assert id(model.step_embedding.hidden.weight) in of_muon


def test_learning_rates_are_set_in_both_optimizers():
    optimizer = create_optimizer(denoiser(), MUON)
    assert set_learning_rate(optimizer, 0.5) == 5e-3
    assert {group["lr"] for group in optimizer.param_groups} == {5e-3, 5e-4}


@pytest.mark.parametrize("network", ["denoiser", "autoregressive"])
def test_a_restored_state_continues_the_same_run(network):
    def build():
        if network == "denoiser":
            return denoiser()
        torch.manual_seed(0)
        return SashimiAutoregressive(d_model=8, n_layers=1, pool=(4,), n_state=4)

    def step(model, optimizer, seed):
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad()
        assert all(parameter.grad is None for parameter in model.parameters())

    model, copied_model = build(), build()
    optimizer = create_optimizer(model, MUON)
    step(model, optimizer, 1)
    copied_model.load_state_dict(model.state_dict())
    resumed = create_optimizer(copied_model, MUON)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(model, optimizer, 2)
    step(copied_model, resumed, 2)
    for (name, parameter), other in zip(model.named_parameters(), copied_model.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_the_state_of_another_optimizer_is_refused():
    model = denoiser()
    adamw = create_optimizer(model, OptimizerConfig())
    muon = create_optimizer(model, MUON)
    with pytest.raises(ValueError, match=r"another optimizer\.name"):
        muon.load_state_dict(adamw.state_dict())
    with pytest.raises(KeyError):
        adamw.load_state_dict(muon.state_dict())


def test_a_network_without_matrices_is_refused():
    with pytest.raises(UserError, match="use adamw"):
        create_optimizer(nn.LayerNorm(4), MUON)
    assert not isinstance(create_optimizer(nn.Linear(3, 2), OptimizerConfig()), CombinedOptimizer)
