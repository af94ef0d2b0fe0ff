"""Test of the dense step of the official code, which benchmarks compare with."""

import copy

import pytest
import torch

from sashimi_diffusion.benchmarks.generation import use_dense_steps
from sashimi_diffusion.models import SashimiAutoregressive


@pytest.mark.parametrize("unet", [True, False])
def test_logits_match_the_step_of_the_model(unet: bool) -> None:
    torch.manual_seed(0)
    model = SashimiAutoregressive(d_model=8, n_layers=1, n_state=16, pool=(2, 2), unet=unet).eval()
    dense = copy.deepcopy(model)
    use_dense_steps(dense)
    tokens = torch.randint(256, (30, 2))
    states = [model.initial_state(2), dense.initial_state(2)]
    with torch.no_grad():
        for token in tokens:
            expected, states[0] = model.step(token, states[0])
            logits, states[1] = dense.step(token, states[1])
            torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
