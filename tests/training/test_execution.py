"""Tests of compiled blocks: whole graphs, one per shape, equal results; errors before training."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SampleRNN, SashimiDenoiser, WaveNetDenoiser
from sashimi_diffusion.training import execution
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.execution import compile_blocks
from sashimi_diffusion.training.loop import train

CPU = torch.device("cpu")
EMBEDDING = {"embedding_hidden": 16, "embedding_dim": 16}
SASHIMI = {"d_model": 8, "n_layers": 3, "pool": (4,), "n_state": 4, **EMBEDDING}
WAVENET = {"residual_channels": 4, "skip_channels": 4, "n_layers": 6, "dilation_cycle": 2, **EMBEDDING}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss_and_gradients(network, sample):
    network.zero_grad()
    loss = network(sample, torch.tensor([3, 40])).sample.square().mean()
    loss.backward()
    return loss.detach(), [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (lambda: SashimiDenoiser(**SASHIMI), 3),  # way down, center, and way up with a skip connection; of 9 blocks
        (lambda: SashimiDenoiser(**SASHIMI, parameterization="diag", norm="layer"), 3),
        (lambda: WaveNetDenoiser(**WAVENET), 3),  # dilations, and the last block, which has no residual output
    ],
    ids=["nplr", "diag", "wavenet"],
)
def test_blocks_compile_once_per_shape_without_graph_breaks(make, shapes):
    torch.manual_seed(0)
    network, sample = make(), torch.randn(2, 1, 64)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    expected = loss_and_gradients(network, sample)
    names = list(network.state_dict())
    counter = CompileCounterWithBackend("aot_eager")
    compile_blocks(network, CPU, counter)  # a graph break would be an error
    trial = counter.frame_count
    for _ in range(2):
        actual = loss_and_gradients(network, sample)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
    assert counter.frame_count - trial == shapes
    assert list(network.state_dict()) == names


def test_a_run_with_compiled_blocks(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "BACKEND", "aot_eager")
    short = ["training.steps=2", "sampling.num_samples=0"]
    eager = train(DiffusionTask, tiny_config(*short, f"output_dir={tmp_path / 'eager'}"))
    run = train(DiffusionTask, tiny_config(*short, "training.compile=true"))
    states = [torch.load(path / "checkpoints/step-000002/optimizer.pt")["state"] for path in (run, eager)]
    torch.testing.assert_close(*states, rtol=1e-3, atol=1e-6)


def test_a_computer_without_a_compiler_is_reported_before_training(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/nowhere/g++",))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    with pytest.raises(
        UserError, match=r"training.compile is true, but torch.compile does not work on cpu: .*"
    ) as error:
        train(DiffusionTask, tiny_config("training.compile=true"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_network_without_blocks_is_refused():
    with pytest.raises(UserError, match="SampleRNN has no blocks to compile: set false"):
        compile_blocks(SampleRNN(dim=8, embedding_dim=4), CPU)
