"""Tests of SashimiBackbone: outputs of the official code, causality, refused arguments."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.models import SashimiBackbone, recurrence
from sashimi_diffusion.models.recurrence import BackboneState
from sashimi_diffusion.ssm import S4Layer
from sashimi_diffusion.ssm.legacy_s4 import LegacyS4

AUTOREGRESSIVE = {
    "b_sashimi/standalone_snet": {"unet": False, "stage_skip": True, "norm": "layer", "pool_weight_norm": False},
    "b_sashimi/standalone_unet": {"unet": True, "split_blocks": True, "norm": "layer", "pool_weight_norm": False},
    "c_ar/v4_sashimi-sc09_small": {"unet": False, "stage_skip": True, "norm": "scalar", "pool_weight_norm": True},
    "c_ar/v4_sashimi-sc09-unet_small": {
        "unet": True,
        "split_blocks": True,
        "norm": "scalar",
        "pool_weight_norm": False,
    },
}


# The official stand-alone network with bidirectional S4 layers; its pools are delayed as in the causal one.
BIDIRECTIONAL = {"b_sashimi/standalone_snet_bi": AUTOREGRESSIVE["b_sashimi/standalone_snet"]}


def autoregressive_backbone(n_ssm: int | None = None, bidirectional: bool = False, **options) -> SashimiBackbone:
    def make_s4(width: int, stage: int) -> nn.Module:
        return S4Layer(width, n_state=64, n_ssm=n_ssm, bidirectional=bidirectional)

    return SashimiBackbone(16, 2, [4, 4], 2, 2, make_s4, causal_pools=True, ff_weight_norm=False, **options)


def layers_in_order(backbone: SashimiBackbone) -> dict[str, list[nn.Module]]:
    """Return the layers by the name of the official list, in the order in which they run."""
    down, up = [], []
    for blocks, pool in zip(backbone.down, backbone.down_pools, strict=True):
        down += [layer for block in blocks for layer in block] + [pool]
    for blocks, pool in zip(reversed(backbone.up), reversed(backbone.up_pools), strict=True):
        up += [pool] + [layer for block in blocks for layer in block]
    return {"d_layers": down, "c_layers": [layer for block in backbone.center for layer in block], "u_layers": up}


def official_layers(state: dict[str, Tensor], name: str) -> list[dict[str, Tensor]]:
    """Return the tensors of each layer of an official list, which may be nested twice."""
    layers: dict[tuple[int, ...], dict[str, Tensor]] = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] != name:
            continue
        depth = 2 if parts[2].isdigit() else 1
        layers.setdefault(tuple(int(part) for part in parts[1 : 1 + depth]), {})[".".join(parts[1 + depth :])] = value
    return [layers[position] for position in sorted(layers)]


def fill(layer: nn.Module, official: dict[str, Tensor], softplus: bool) -> None:
    """Copy an official layer (V4 names) into ``layer`` and assert that every tensor is used."""
    left = dict(official)

    def take(parameter: Tensor, *names: str) -> None:
        value = next(left.pop(name) for name in names if name in left)
        parameter.data.copy_(value.view_as(parameter))

    if hasattr(layer, "pool"):
        linear = layer.linear
        if hasattr(linear, "parametrizations"):
            take(linear.parametrizations.weight.original0, "linear.weight_g")
            take(linear.parametrizations.weight.original1, "linear.weight_v")
        else:
            take(linear.weight, "linear.weight")
        take(linear.bias, "linear.bias")
        assert not left
        return
    norm = list(layer.norm.parameters())
    for parameter, names in zip(norm, [("norm.norm.s", "norm.weight"), ("norm.norm.m", "norm.bias")], strict=True):
        take(parameter, *names)
    if hasattr(layer, "s4"):
        ssm, kernel = layer.s4.ssm, "layer.layer.kernel."
        dt = left.pop(kernel + "inv_dt").double().squeeze(-1)
        ssm.log_dt.data.copy_((F.softplus(dt) if softplus else dt.exp()).log())
        ssm.imag.data.copy_(-left.pop(kernel + "A_imag"))
        left.pop(kernel + "l_kernel")
        take(ssm.log_neg_real, kernel + "A_real")
        for name in "BCP":
            take(getattr(ssm, name), kernel + name)
        take(ssm.D, "layer.layer.D")
        linears = {"layer.output_linear.0": layer.s4.output_linear}
    else:
        linears = {"layer.ff.0.0": layer.input_linear, "layer.ff.2": layer.output_linear}
    for name, linear in linears.items():
        take(linear.weight, f"{name}.weight")
        take(linear.bias, f"{name}.bias")
    assert not left


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", [*AUTOREGRESSIVE, *BIDIRECTIONAL])
def test_autoregressive_backbones_match(golden, name: str, dtype: torch.dtype) -> None:
    tensors = golden.tensors(name, full=name.startswith("c_ar"))  # the small set has the last logits only
    config = golden.info(name)["config"]
    state = {key.removeprefix("sd.").removeprefix("model."): v for key, v in tensors.items() if key.startswith("sd.")}
    framework = name.startswith("c_ar")
    s4 = config["model"]["layer"] if framework else {}
    softplus = s4.get("dt_transform") == "softplus"
    # Cast before the parameters are copied, so that log(softplus(·)) is not rounded.
    options = {"bidirectional": name in BIDIRECTIONAL, **{**AUTOREGRESSIVE, **BIDIRECTIONAL}[name]}
    backbone = autoregressive_backbone(s4.get("n_ssm"), **options).to(dtype).eval()
    for group, layers in layers_in_order(backbone).items():
        for layer, official in zip(layers, official_layers(state, group), strict=True):
            fill(layer, official, softplus)
    state = {key: value.to(dtype) for key, value in state.items()}
    with torch.no_grad():
        x = F.embedding(tensors["in.tokens"], state["encoder.0.weight"]) if framework else tensors["in.x"].to(dtype)
        y = backbone(x.transpose(1, 2)).transpose(1, 2)
        y = F.layer_norm(y, y.shape[-1:], state["norm.weight"], state["norm.bias"])
        if framework:
            y = F.linear(y, state["decoder.0.output_transform.weight"], state["decoder.0.output_transform.bias"])
    expected = tensors["out64.logits" if framework else "out64.y"]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-9
    assert (y - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("name", AUTOREGRESSIVE)
def test_outputs_of_a_causal_backbone_do_not_depend_on_later_inputs(name: str) -> None:
    torch.manual_seed(0)
    backbone = autoregressive_backbone(**AUTOREGRESSIVE[name]).double().eval()
    x = torch.randn(1, 16, 64, dtype=torch.float64)
    changed = x.clone()
    changed[..., 37:] += 1
    with torch.no_grad():
        before, after = backbone(x), backbone(changed)
    torch.testing.assert_close(after[..., :37], before[..., :37], rtol=0, atol=1e-9)
    assert (after[..., 37] - before[..., 37]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("unet", [True, False])
def test_causal_pools_with_bidirectional_layers(unet: bool) -> None:
    """In the official stand-alone U-net the pools are delayed by a frame and the S4 layers are bidirectional."""
    options = {"unet": unet, "split_blocks": unet, "stage_skip": not unet}
    torch.manual_seed(0)
    backbone = autoregressive_backbone(bidirectional=True, **options).double().eval()
    x = torch.randn(2, 16, 64, dtype=torch.float64)
    assert backbone(x).shape == (2, 16, 64)
    changed = x.clone()
    changed[..., 37:] += 1
    assert (backbone(changed)[..., :37] - backbone(x)[..., :37]).abs().max() > 1e-3
    without = autoregressive_backbone(bidirectional=True, **options).double()
    for stage in (*without.down, without.center, *without.up):
        del stage[:]
    difference = (without(changed) - without(x)).abs().amax((0, 1))  # through the pools only
    assert difference[:37].max() == 0
    pooled = difference[48:].amin()  # starts at the first whole frame of the slowest stage
    assert pooled > 0


@pytest.mark.parametrize(
    "backbone",
    [
        lambda: autoregressive_backbone(bidirectional=True),
        lambda: SashimiBackbone(4, 1, [2], 2, 0, lambda width, stage: S4Layer(width, n_state=4)),
        lambda: SashimiBackbone(4, 1, [2], 2, 0, lambda width, stage: LegacyS4(width, 8), causal_pools=True),
    ],
    ids=["bidirectional", "pools", "legacy"],
)
def test_backbones_that_are_not_causal_have_no_recurrence(backbone: Callable[[], SashimiBackbone]) -> None:
    backbone = backbone()
    width = backbone.up_pools[0].linear.out_channels // backbone.up_pools[0].pool
    state = BackboneState(0, (None,) * len(backbone.s4_layers()), (), ())
    with pytest.raises(RuntimeError, match="has no recurrence: its pools or S4 layers look ahead; use forward"):
        recurrence.step(backbone, torch.zeros(1, width), state)
    with pytest.raises(RuntimeError, match="has no recurrence"):
        recurrence.prefill(backbone, torch.zeros(1, width, 16), None)


@pytest.mark.parametrize("unet", [True, False])
@pytest.mark.parametrize("n_layers", [2, [0, 1, 2], [0, 0, 1], [1, 0, 0]])
def test_any_number_of_layers_per_stage(n_layers: int | list[int], unet: bool) -> None:
    backbone = SashimiBackbone(4, n_layers, [2, 3], 2, 0, lambda width, stage: S4Layer(width, n_state=4), unet=unet)
    numbers = [n_layers] * 3 if isinstance(n_layers, int) else n_layers
    assert [len(stage) for stage in backbone.up] == numbers[:2]
    assert [len(stage) for stage in backbone.down] == (numbers[:2] if unet else [0, 0])
    assert len(backbone.center) == numbers[2]
    assert backbone.length_multiple == 6
    assert backbone(torch.randn(2, 4, 12)).shape == (2, 4, 12)


@pytest.mark.parametrize("n_layers", [[1, 2], [1, 2, 3, 4], [1, -1, 2]])
def test_wrong_number_of_layers_is_named(n_layers: list[int]) -> None:
    with pytest.raises(ValueError, match="one number or 3 numbers"):
        autoregressive_backbone_with(n_layers)


@pytest.mark.parametrize("n_layers", [0, [0, 0, 0]])
def test_a_backbone_without_layers_is_refused(n_layers: int | list[int]) -> None:
    with pytest.raises(ValueError, match="expected at least one layer in one of the 3 stages"):
        autoregressive_backbone_with(n_layers)


def autoregressive_backbone_with(n_layers: int | list[int]) -> SashimiBackbone:
    return SashimiBackbone(4, n_layers, [2, 2], 2, 0, lambda width, stage: S4Layer(width, n_state=4))


def test_unknown_norm_is_named() -> None:
    with pytest.raises(ValueError, match="'scalar' or 'layer'"):
        autoregressive_backbone(norm="batch")
