"""Tests of converted DiffWave networks against float64 outputs of the official code."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.interop.diffwave import output_distance
from sashimi_diffusion.interop.layers import output_from_truncated
from sashimi_diffusion.models import SashimiDenoiser
from sashimi_diffusion.ssm import StateSpace
from sashimi_kernels.reference.generation import truncated_output

NEWER = ["master_sashimi_unet_uncond", "master_sashimi_unet_L16000"]
OLDER = ["ckpt_sashimi_unet_uncond", "ckpt_sashimi_snet_uncond", "ckpt_sashimi_unet_vocoder"]
WAVENETS = ["master_wavenet_uncond", "master_wavenet_vocoder", "ckpt_wavenet_vocoder"]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual.double() - expected.double()).abs().max() / expected.double().abs().max()).item()


def run(model: torch.nn.Module, tensors: dict[str, Tensor]) -> Tensor:
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        return model(tensors["in.audio"].to(dtype), tensors["in.steps"][:, 0], mel=tensors.get("in.mel")).sample


@pytest.mark.parametrize("name", NEWER + WAVENETS)
def test_output_matches(official: Callable, name: str) -> None:
    network = official(f"d_diffwave/{name}")
    model = network.convert(step_on_residual=name.startswith("ckpt")).model
    assert relative_error(run(model, network.tensors), network.tensors["out64.eps"]) < 1e-5


@pytest.mark.parametrize("name", OLDER)
def test_output_of_the_older_layout_matches(official: Callable, name: str, tmp_path: Path) -> None:
    """The official results use the inexact nodes of the file; a conversion uses exact nodes by default."""
    network = official(f"d_diffwave/{name}")
    model = network.convert().model
    exact = run(model, network.tensors)
    if "out64_exactnodes.eps" in network.tensors:
        assert relative_error(exact, network.tensors["out64_exactnodes.eps"]) < 1e-5
    converted = network.convert(stored_nodes=True).model
    stored = run(converted, network.tensors)
    assert relative_error(stored, network.tensors["out64.eps"]) < 2e-6
    assert relative_error(exact, network.tensors["out64.eps"]) > 1e-5
    converted.save_pretrained(tmp_path)
    loaded = SashimiDenoiser.from_pretrained(tmp_path).eval()
    assert relative_error(run(loaded, network.tensors), stored) < 1e-6
    # The error of the stored nodes changes the output by about 1e-4.
    assert 1e-5 < relative_error(exact, stored) < 1e-3
    assert relative_error(exact, run(network.convert().model.double(), network.tensors)) < 1e-5


def test_output_distance_between_stored_and_exact_nodes(official: Callable) -> None:
    network = official("d_diffwave/ckpt_sashimi_snet_uncond")
    model = network.convert().model
    assert 1e-5 < output_distance(model, network.convert(stored_nodes=True).model) < 1e-3
    exact = {name: tensor.clone() for name, tensor in network.state.items()}
    for name in exact:
        if name.endswith((".nodes", ".z")):
            size = exact[name].shape[0]
            root = torch.exp(-1j * torch.pi * torch.arange(size, dtype=torch.float64) / (size - 1))
            value = root if name.endswith(".nodes") else 2 * (1 - root) / (1 + root)
            exact[name] = torch.view_as_real(value)
    stored = network._replace(state=exact).convert(stored_nodes=True).model
    assert output_distance(model, stored) < 5e-6  # nodes are stored in single precision


def test_only_the_older_layout_stores_nodes(official: Callable) -> None:
    for name in ("master_sashimi_unet_L16000", "master_wavenet_uncond"):
        with pytest.raises(UserError, match="--stored-nodes does not apply"):
            official(f"d_diffwave/{name}").convert(stored_nodes=True)


def test_a_higher_rank_is_refused(official: Callable) -> None:
    network = official("d_diffwave/master_sashimi_unet_L16000")
    for key in [key for key in network.state if key.endswith(".P")]:
        network.state[key] = network.state[key].repeat(2, 1, 1, 1)
    with pytest.raises(UserError, match=r"low-rank term of rank 2.*only rank 1 is supported"):
        network.convert()


@pytest.mark.parametrize("length", [768, 1536])
def test_other_lengths_match(official: Callable, length: int) -> None:
    network = official("d_diffwave/master_sashimi_unet_uncond")
    model = network.convert().model
    # The file does not name the diffusion step of these outputs; only step 42 reproduces them.
    with torch.no_grad():
        output = model(network.tensors[f"in.audio_len{length}"], 42).sample
    assert relative_error(output, network.tensors[f"out64.eps_len{length}"]) < 1e-5


@pytest.mark.parametrize(("name", "length"), [("unet_L16000", 1000), ("unet_uncond", 64)])
def test_the_output_vector_is_recovered_from_the_truncated_one(official: Callable, name: str, length: int) -> None:
    """After its first run the official network contains C (I - Ā^L) and L instead of C."""
    network = official(f"d_diffwave/master_sashimi_{name}")
    layer = "c_layers.0.layer.kernel.kernel"
    expected = network.convert().model
    for part in ("C", "L"):
        network.state[f"{layer}.{part}"] = network.tensors[f"sd_after.{layer}.{part}"]
    model = network.convert().model
    assert int(network.state[f"{layer}.L"]) == length
    assert not torch.equal(model.backbone.center[0][0].s4.ssm.C, expected.backbone.center[0][0].s4.ssm.C)
    assert relative_error(run(model, network.tensors), network.tensors["out64.eps"]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 64, 16000])
def test_recovering_the_output_vector_inverts_its_truncation(length: int) -> None:
    torch.manual_seed(0)
    ssm = StateSpace(5, n_state=16, bidirectional=True)
    dt, a, p, _, b = ssm.continuous_system()
    c = torch.view_as_complex(ssm.C.double())
    truncated = truncated_output(dt, a, p, p.conj(), b, c, length)
    recovered = output_from_truncated(ssm, torch.view_as_real(truncated), length)
    assert (recovered - ssm.C.double()).abs().max() < 1e-10 * ssm.C.abs().max()


def test_the_training_length_is_read_from_the_file(official: Callable) -> None:
    newer = official("d_diffwave/master_sashimi_unet_L16000")
    assert newer.convert(length=None).model.config.sample_size == 16000
    newer.state[[key for key in newer.state if key.endswith(".L")][-1]] = torch.tensor(2048)
    assert newer.convert(length=None).model.config.sample_size == 2048
    assert official("d_diffwave/ckpt_sashimi_snet_uncond").convert(length=None).model.config.sample_size == 1024
