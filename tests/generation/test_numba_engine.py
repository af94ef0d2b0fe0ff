"""The compiled engine against the model's own steps, for every kind of network."""

import pytest
import torch

from sashimi_diffusion.generation import Sampling
from sashimi_diffusion.generation.eager import EagerEngine
from sashimi_diffusion.models import SashimiAutoregressive

pytest.importorskip("numba", reason="numba is not installed (pip install 'sashimi-diffusion[fast]')")

from sashimi_diffusion.generation.numba_engine import NumbaEngine
from sashimi_diffusion.generation.numba_engine.arithmetic import erf, sigmoid

S4D = {"parameterization": "diag", "initialization": "lin", "discretization": "zoh"}
NETWORKS = {
    "snet": {},
    "unet": {"unet": True},
    "unet-s4d-layer-norm": {"unet": True, "norm": "layer", **S4D},
    "uneven-stages": {"unet": True, "n_layers": [0, 2, 1]},
    "other-pools": {"pool": [2, 3], "n_layers": 1},
    "one-rate": {"pool": []},
    "no-feed-forward": {"ff": 0},
    "tied": {"n_ssm": 1},
    "odd-sizes": {"d_model": 12, "n_state": 6, "num_tokens": 16, "ff": 3},
}
SAMPLINGS = [Sampling(), Sampling(temperature=0.0), Sampling(temperature=0.8, top_k=7, top_p=0.9)]


def small_model(**options) -> SashimiAutoregressive:
    torch.manual_seed(0)
    sizes = {"num_tokens": 32, "d_model": 16, "n_layers": 2, "n_state": 8}
    model = SashimiAutoregressive(**{**sizes, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_it_draws_what_the_model_draws(options: dict, streams: int, threads: int) -> None:
    model = small_model(**options)
    eager, compiled = EagerEngine(model, streams), NumbaEngine(model, streams, threads)
    prefix = torch.randint(model.config.num_tokens, (streams, 37))  # ends inside of a frame
    with torch.no_grad():
        _, state = model.prefill(prefix)
    for engine in (compiled, eager):
        engine.load(state)
    tokens = prefix[:, -1]
    for sampling in SAMPLINGS:
        uniforms = torch.rand(streams, 40, dtype=torch.float64)
        expected, made = eager.run(tokens, uniforms, sampling), compiled.run(tokens, uniforms, sampling)
        assert torch.equal(made[0], expected[0])
        torch.testing.assert_close(made[1], expected[1], rtol=0, atol=1e-5)
        torch.testing.assert_close(made[2], expected[2], rtol=0, atol=1e-5)
        tokens = expected[0][:, -1]


def test_clips_are_those_of_the_eager_engine() -> None:
    model = small_model(unet=True)

    def clip(engine: str) -> torch.Tensor:
        return model.generate(200, 2, generator=torch.Generator().manual_seed(3), engine=engine).tokens

    assert torch.equal(clip("numba"), clip("eager"))


def test_it_stays_finite_for_a_hundred_thousand_steps() -> None:
    """SaShiMi, section 4.2: stable state spaces do not grow, whatever the parameters."""
    model = small_model(n_layers=1, d_model=8)
    generated = NumbaEngine(model, 1, 1).run(
        torch.tensor([16]), torch.rand(1, 100_000, dtype=torch.float64), Sampling()
    )
    scores = generated[1]
    assert scores.isfinite().all()
    assert scores[0, -1000:].mean() > scores[0, :1000].mean() - 1


@pytest.mark.parametrize(("approximation", "exact"), [(erf, torch.erf), (sigmoid, torch.sigmoid)])
def test_gates_are_exact_to_float32(approximation, exact) -> None:
    numbers = torch.cat([torch.linspace(-8, 8, 4001), torch.tensor([-1e30, -50.0, 50.0, 1e30])])
    ours = torch.tensor([approximation(x) for x in numbers.numpy()], dtype=torch.float64)
    assert (ours - exact(numbers.double())).abs().max() < 5e-7
