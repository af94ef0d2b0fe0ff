"""Tests of pools whose frames overlap."""

import pytest
import torch
from torch import nn

from sashimi_diffusion import SashimiDenoiser
from sashimi_diffusion.models.backbone import create_pools
from sashimi_diffusion.models.overlapping_pools import OverlappingDownPool, OverlappingPool, OverlappingUpPool


@pytest.mark.parametrize("pool", [1, 2, 3, 8])
@pytest.mark.parametrize("weight_norm", [False, True])
def test_shapes(pool: int, weight_norm: bool) -> None:
    down = OverlappingDownPool(3, 5, pool, weight_norm)
    up = OverlappingUpPool(5, 3, pool, weight_norm)
    y = down(torch.randn(2, 3, 4 * pool))
    assert y.shape == (2, 5, 4)
    assert up(y).shape == (2, 3, 4 * pool)


@torch.no_grad()
def test_a_constant_stays_constant() -> None:
    """Frames that are equal add up without a step between them."""
    up = OverlappingUpPool(1, 1, 4, weight_norm=False)
    nn.init.ones_(up.weight)
    nn.init.zeros_(up.bias)
    torch.testing.assert_close(up(torch.ones(1, 1, 6))[..., 2:-2], torch.ones(1, 1, 20))


@torch.no_grad()
def test_every_sample_lies_in_two_frames() -> None:
    down = OverlappingDownPool(1, 1, 4, weight_norm=False)
    nn.init.ones_(down.weight)
    nn.init.zeros_(down.bias)
    for sample in range(4, 12):
        x = torch.zeros(1, 1, 16)
        x[..., sample] = 1
        frames = down(x)[0, 0]
        assert (frames > 0).sum() == 2
        assert frames.sum().item() == pytest.approx(1)


def test_a_denoiser_trains_saves_and_loads_them(tmp_path) -> None:
    torch.manual_seed(0)
    model = SashimiDenoiser(
        d_model=8, n_layers=[0, 1, 1], n_state=8, embedding_sines=8, embedding_hidden=16, embedding_dim=16,
        sample_size=64, pooling="overlapping",
    )  # fmt: skip
    nn.init.normal_(model.output[-1].weight)
    x = torch.randn(2, 1, 64)
    model(x, torch.tensor([3, 7])).sample.square().mean().backward()
    pools = [part for part in model.modules() if isinstance(part, OverlappingPool)]
    assert len(pools) == 4
    for pool in pools:
        assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in pool.parameters())
    model.save_pretrained(tmp_path)
    loaded = SashimiDenoiser.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(x, 3).sample, model(x, 3).sample)


def test_wrong_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown pooling 'frame': expected 'frames' or 'overlapping'"):
        create_pools("frame", 2, 4, 2, weight_norm=False, causal=False)
    with pytest.raises(ValueError, match="a causal network needs pooling='frames'"):
        create_pools("overlapping", 2, 4, 2, weight_norm=False, causal=True)


@pytest.mark.parametrize("weight_norm", [False, True])
def test_a_network_with_published_pools_goes_on_with_overlapping_ones(weight_norm: bool) -> None:
    torch.manual_seed(0)
    model = SashimiDenoiser(
        d_model=4, n_layers=[1, 1, 1], pool=[4, 3], n_state=8, embedding_sines=8, embedding_hidden=16,
        embedding_dim=16, sample_size=48, weight_norm=weight_norm,
    )  # fmt: skip
    nn.init.normal_(model.output[-1].weight)
    for pool in model.backbone.up_pools:  # a bias that is the same at all positions of a frame is kept
        nn.init.constant_(pool.linear.bias, 0.3)
    x = torch.randn(2, 1, 48)
    published = model(x, 3).sample
    model.use_overlapping_pools()
    torch.testing.assert_close(model(x, 3).sample, published)
    SashimiDenoiser.from_config(model.config).load_state_dict(model.state_dict())
    assert all(isinstance(pool, OverlappingPool) for pool in [*model.backbone.down_pools, *model.backbone.up_pools])
