"""Tests of converting official autoregressive checkpoints: outputs, layouts, refused files."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from sashimi_diffusion.commands.convert import main
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.interop.autoregressive import AutoregressiveOptions, convert_autoregressive
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline

SMALL = ["v3_sashimi-sc09_small", "v4_sashimi-sc09_small", "v4_sashimi-sc09-unet_small"]
PUBLISHED = {
    "ar_v3_sashimi-sc09": 4_751_072,
    "ar_v3_sashimi-sc09-unet": 6_820_512,
    "ar_v4_sashimi-sc09": 4_751_072,
    "ar_v4_sashimi-sc09-unet": 6_820_512,
    "ar_v4_sashimi-youtubemix": 4_751_072,
    "ar_v4_sashimi-beethoven": 4_751_072,
    # The pools of this project have weight normalization: a gain for each of 128 + 256 + 512 + 256 outputs.
    "ar_v4_sashimi-standalone": 5_447_680 + 1152,
}


@pytest.fixture
def small(official: Callable) -> Callable:
    return lambda name: official(f"c_ar/{name}")


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_logits_loss_and_bits_match(small: Callable, name: str) -> None:
    network = small(name)
    model = convert_autoregressive(network.state).model
    expected = network.tensors["out64.logits"].transpose(1, 2)  # all positions or the last ones
    logits = model(network.tensors["in.tokens"])
    assert (logits[..., -expected.shape[-1] :] - expected).abs().max() < 1e-5 * expected.abs().max()
    loss = F.cross_entropy(logits, network.tensors["in.targets"].squeeze(-1))
    assert loss.item() == pytest.approx(network.tensors["out.loss"].item(), rel=1e-5)
    assert loss.item() / math.log(2) == pytest.approx(network.tensors["out.bpb"].item(), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_steps_match(small: Callable, name: str) -> None:
    network = small(name)
    model = convert_autoregressive(network.state).model
    expected, state = network.tensors["out64.logits_step_dense"], model.initial_state(2)
    for index in range(expected.shape[1]):
        logits, state = model.step(network.tensors["in.tokens"][:, index], state)
        assert (logits - expected[:, index]).abs().max() < 1e-5 * expected.abs().max()


def test_the_truncated_output_of_version_3_files_is_converted(small: Callable) -> None:
    """The official code stores C (I - Ā^L) and L; the conversion computes C from them."""
    network = small("v3_sashimi-sc09_small")
    after = {key.removeprefix("sd_after."): v for key, v in network.tensors.items() if key.startswith("sd_after.")}
    name = "model.c_layers.0.layer.kernel.kernel"
    state = {**network.state, f"{name}.C": after[f"{name}.C"], f"{name}.L": after[f"{name}.L"]}
    assert (after[f"{name}.C"] - network.state[f"{name}.C"]).abs().max() > 1e-3
    layer = convert_autoregressive(state).model.backbone.center[0][0].s4.ssm
    torch.testing.assert_close(layer.C, network.state[f"{name}.C"], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_version_3_names_are_read(small: Callable) -> None:
    """The weights of a version 4 file with the names of version 3, where dt is exp(·), give the same logits."""
    network, state = small("v4_sashimi-sc09-unet_small"), {}
    for key, value in network.state.items():
        key = key.replace("layer.layer.kernel", "layer.kernel.kernel").replace("layer.layer.D", "layer.D")
        key = key.replace("A_real", "inv_w_real").replace("l_kernel", "L")
        if key.endswith("A_imag"):
            key, value = key.replace("A_imag", "w_imag"), -value
        if key.endswith("inv_dt"):
            key, value = key.replace("inv_dt", "log_dt"), F.softplus(value.double()).log().squeeze(-1)
        state[key] = value
    model, layout = convert_autoregressive(state)
    assert "version 3" in layout
    expected = network.tensors["out64.logits"].transpose(1, 2)
    logits = model(network.tensors["in.tokens"])[..., -expected.shape[-1] :]
    assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", ["snet", "unet"])
def test_the_standalone_network_gives_the_official_output(golden, name: str) -> None:
    tensors, config = golden.tensors(f"b_sashimi/standalone_{name}"), golden.info(f"b_sashimi/standalone_{name}")
    width = config["config"]["d_model"]
    ends = {"encoder.0.weight": (256, width), "decoder.0.output_transform.weight": (256, width)}
    state = {f"model.{key.removeprefix('sd.')}": value for key, value in tensors.items() if key.startswith("sd.")}
    state |= {key: torch.zeros(shape) for key, shape in ends.items()}
    model = convert_autoregressive({**state, "decoder.0.output_transform.bias": torch.zeros(256)}).model
    y = model.output_norm(model.backbone(tensors["in.x"].transpose(1, 2))).transpose(1, 2)
    assert (y - tensors["out64.y"]).abs().max() < 1e-5 * tensors["out64.y"].abs().max()


def renamed_to_version_4(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the tensors of version 3 like the official script does."""
    renamed = {}
    for key, value in state.items():
        if key.endswith("log_dt"):
            key, value = key.replace("log_dt", "inv_dt"), value.unsqueeze(-1)
        if key.endswith("w_imag"):
            key, value = key.replace("w_imag", "A_imag"), -value
        key = key.replace("inv_w_real", "A_real").replace("kernel.kernel.L", "kernel.kernel.l_kernel")
        renamed[key.replace("layer.kernel.kernel", "layer.layer.kernel").replace("layer.D", "layer.layer.D")] = value
    return renamed


@torch.no_grad()
def test_a_renamed_version_3_file_needs_exp(small: Callable) -> None:
    network = small("v3_sashimi-sc09_small")
    tokens, expected = network.tensors["in.tokens"], network.tensors["out64.logits"].transpose(1, 2)
    renamed = renamed_to_version_4(network.state)
    errors = {}
    for transform in ("exp", None):
        model = convert_autoregressive(renamed, AutoregressiveOptions(dt_transform=transform)).model
        errors[transform] = ((model(tokens) - expected).abs().max() / expected.abs().max()).item()
    assert errors["exp"] < 1e-5
    assert errors[None] > 1e-3  # softplus, the default of version 4, is wrong for such a file


def published(golden, name: str) -> dict[str, torch.Tensor]:
    listed = golden.info(f"keys/{name}")["state_dict"]
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.zeros(shape, dtype=torch.int64)
        if dtype == "int64"
        else 0.1 * torch.randn(shape, generator=generator)
        for key, (shape, dtype, _) in listed.items()
    }


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_every_published_key_is_converted(golden, name: str, parameters: int) -> None:
    model, layout = convert_autoregressive(published(golden, name))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.config.n_layers == 8
    assert list(model.config.pool) == [4, 4]
    assert model.config.unet == ("unet" in name)
    assert ("version 3" if "v3" in name else "version 4") in layout


def test_the_command_writes_a_pipeline(small: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    network = small("v4_sashimi-sc09-unet_small")
    torch.save({"state_dict": network.state}, tmp_path / "official.ckpt")
    options = ["--quantization", "linear", "--length", "128", "--sample-rate", "8000"]
    assert main([str(tmp_path / "official.ckpt"), str(tmp_path / "out"), *options]) == 0
    printed = capsys.readouterr().out
    for text in ("version 4", "softplus", "128 samples at 8,000 Hz, linear in 256 levels", "d_model 16, 2 layers"):
        assert text in printed
    pipe = SashimiAutoregressivePipeline.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        expected = convert_autoregressive(network.state).model(network.tensors["in.tokens"])
        assert torch.equal(pipe.model(network.tensors["in.tokens"]), expected)


def test_tensors_and_options_that_do_not_fit_are_named(
    small: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    state = small("v4_sashimi-sc09-unet_small").state
    with pytest.raises(UserError, match=r"missing model\.norm\.weight \(16,\)"):
        convert_autoregressive({key: value for key, value in state.items() if key != "model.norm.weight"})
    with pytest.raises(UserError, match=r"unexpected model\.extra"):
        convert_autoregressive({**state, "model.extra": torch.zeros(1)})
    with pytest.raises(UserError, match=r"unexpected model\.c_layers\.x"):
        convert_autoregressive({**state, "model.c_layers.x": torch.zeros(1)})
    truncated = {key: value for key, value in state.items() if not key.startswith("model.u_layers.9.")}
    with pytest.raises(UserError, match="it has 23 of 24 layers"):
        convert_autoregressive(truncated)
    older = {key.replace("A_real", "w"): value for key, value in state.items()}
    with pytest.raises(UserError, match="no autoregressive checkpoint of version 3 or 4"):
        convert_autoregressive(older)
    diagonal = {key: value for key, value in state.items() if not key.endswith("kernel.P")}
    with pytest.raises(UserError, match=r"diagonal \(mode diag, S4D or DSS\)"):
        convert_autoregressive(diagonal)
    rank_two = {key: value.repeat(2, 1, 1, 1) if key.endswith("kernel.P") else value for key, value in state.items()}
    with pytest.raises(UserError, match="low-rank term of rank 2"):
        convert_autoregressive(rank_two)
    torch.save(state, tmp_path / "official.pt")
    for option in (["--timesteps", "50"], ["--beta-start", "1e-4"], ["--no-step-on-residual"], ["--stored-nodes"]):
        assert main([str(tmp_path / "official.pt"), str(tmp_path / "out"), *option]) == 2
        assert f"{option[0].replace('--no-', '--')} does not apply" in capsys.readouterr().err
