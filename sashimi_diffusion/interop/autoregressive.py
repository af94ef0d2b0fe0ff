"""Official autoregressive checkpoints (versions 3 and 4 of the S4 repository) as this project's model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.interop.checkpoint import Checkpoint
from sashimi_diffusion.interop.layers import load_linear, load_norm, output_from_truncated
from sashimi_diffusion.models.autoregressive import SashimiAutoregressive
from sashimi_diffusion.models.blocks import DownPool, ResidualS4, ScalarNorm, UpPool

DT_TRANSFORMS = ("exp", "softplus")
_STAGES = ("d_layers", "c_layers", "u_layers")


@dataclass(frozen=True)
class AutoregressiveOptions:
    """What the tensors of a checkpoint do not tell.

    Args:
        sample_rate: Hz.
        length: training length in samples.
        quantization: "mu-law", or "linear" as in the Beethoven experiment.
        dt_transform: from the stored step size to dt. None: "exp" for version 3 and for the standalone network,
            "softplus" for version 4 of the training framework. A version 3 file that was renamed to version 4 needs
            "exp": nothing in the file tells, and with "softplus" it sounds like noise.
    """

    sample_rate: int = 16000
    length: int = 16000
    quantization: str = "mu-law"
    dt_transform: str | None = None


class S4Names(NamedTuple):
    """Where a version keeps the parameters of an S4 layer: under the layer, and under its kernel."""

    skip: str
    kernel: str
    step: str
    real: str
    imag: str
    length: str
    imag_sign: int


V3 = S4Names("layer.D", "layer.kernel.kernel", "log_dt", "inv_w_real", "w_imag", "L", 1)
V4 = S4Names("layer.layer.D", "layer.layer.kernel", "inv_dt", "A_real", "A_imag", "l_kernel", -1)


class AutoregressiveConversion(NamedTuple):
    """A converted checkpoint: ``model`` in evaluation mode, and the ``layout`` found, in words."""

    model: SashimiAutoregressive
    layout: str


def is_autoregressive_checkpoint(tensors: dict[str, Tensor]) -> bool:
    """Whether a state dict is of an autoregressive SaShiMi: three lists of layers behind an embedding."""
    names = [name.removeprefix("model.") for name in tensors]
    return any(name.startswith("c_layers.") for name in names) and any(name.startswith("encoder.") for name in tensors)


def convert_autoregressive(
    tensors: dict[str, Tensor], options: AutoregressiveOptions = AutoregressiveOptions()
) -> AutoregressiveConversion:
    """Convert the state dict of an official autoregressive SaShiMi, with or without U-net.

    Raises:
        UserError: the state dict is of no known layout, or has missing, unexpected or misshapen tensors (then listed).
    """
    checkpoint = Checkpoint({_newer_ends(name): tensor for name, tensor in tensors.items()})
    names = _s4_names(checkpoint)
    config = read_config(checkpoint, names)
    dt_transform = options.dt_transform
    if dt_transform is None:
        dt_transform = "softplus" if names is V4 and config["norm"] == "scalar" else "exp"
    if dt_transform not in DT_TRANSFORMS:
        raise UserError(f"unknown dt_transform {dt_transform!r}: expected one of {', '.join(DT_TRANSFORMS)}")
    try:
        model = SashimiAutoregressive(
            sample_rate=options.sample_rate, sample_size=options.length, quantization=options.quantization, **config
        )
    except ValueError as error:
        raise UserError(f"the checkpoint does not fit any known network: {error}") from error
    for name, layer in zip(_official_layers(checkpoint), _layers_in_order(model), strict=False):
        _load_layer(checkpoint, name, layer, names, dt_transform)
    checkpoint.copy(model.embedding.weight, "encoder.0.weight")
    load_linear_map(checkpoint, "model.norm", model.output_norm)
    load_linear_map(checkpoint, "decoder.0.output_transform", model.output)
    checkpoint.finish()
    version = "version 3" if names is V3 else "version 4"
    kind = "U-net" if config["unet"] else "blocks on the way up only"
    return AutoregressiveConversion(model.eval(), f"autoregressive SaShiMi, {version}, {kind}, dt = {dt_transform}(·)")


def read_config(checkpoint: Checkpoint, names: S4Names) -> dict[str, Any]:
    """The network's sizes, read off the shapes of the tensors."""
    layers = {stage: [name for name in _official_layers(checkpoint) if f".{stage}." in name] for stage in _STAGES}
    s4 = [name for name in layers["c_layers"] if f"{name}.{names.skip}" in checkpoint]
    if not s4:
        raise UserError("the checkpoint does not fit any known network: no S4 layer at its centre")
    num_tokens, d_model = checkpoint.shape("encoder.0.weight", 2)
    _, n_ssm, half_states, _ = checkpoint.shape(f"{s4[0]}.{names.kernel}.B", 4)
    _, width, _, _ = checkpoint.shape(f"{s4[0]}.{names.kernel}.C", 4)
    pools, widths = [], [d_model]
    for name in layers["d_layers"]:
        weight = checkpoint.tensors.get(f"{name}.linear.weight", checkpoint.tensors.get(f"{name}.linear.weight_v"))
        if weight is not None:
            out_channels, in_channels = weight.shape[:2]
            pools.append(in_channels // widths[-1])
            widths.append(out_channels)
    feed_forward = [name for name in layers["c_layers"] if f"{name}.layer.ff.0.0.weight" in checkpoint]
    ff = checkpoint.tensors[f"{feed_forward[0]}.layer.ff.0.0.weight"].shape[0] // width if feed_forward else 0
    return {
        "num_tokens": num_tokens,
        "d_model": d_model,
        "n_layers": len(s4),
        "pool": pools,
        "expand": widths[1] // widths[0] if pools else 1,
        "ff": ff,
        "unet": len(layers["d_layers"]) > len(pools),
        "norm": "scalar" if f"{s4[0]}.norm.norm.m" in checkpoint else "layer",
        "n_state": 2 * half_states,
        "n_ssm": None if n_ssm == width else n_ssm,
    }


def load_linear_map(checkpoint: Checkpoint, name: str, layer: nn.Module) -> None:
    """A weight and a bias, the weight with or without an axis for a kernel of size 1."""
    weight = checkpoint.tensors.get(f"{name}.weight")
    shape = layer.weight.shape if weight is None or weight.ndim == layer.weight.ndim else layer.weight.shape[:2]
    with torch.no_grad():
        layer.weight.copy_(checkpoint.take(f"{name}.weight", tuple(shape)).view_as(layer.weight))
    checkpoint.copy(layer.bias, f"{name}.bias")


def _newer_ends(name: str) -> str:
    """Files older than version 3 call the ends otherwise."""
    for old in ("encoder.weight", "decoder.output_transform."):
        if name.startswith(old):
            return name.replace(".", ".0.", 1)
    return name


def _s4_names(checkpoint: Checkpoint) -> S4Names:
    for names in (V3, V4):
        if any(f".{names.kernel}.{names.real}" in name for name in checkpoint.tensors):
            return names
    raise UserError(
        "this is no autoregressive checkpoint of version 3 or 4: its S4 layers hold neither inv_w_real nor A_real; "
        "version 2 files can be brought to version 3 with the official scripts"
    )


def _official_layers(checkpoint: Checkpoint) -> list[str]:
    """Names of the official layers in the order in which they run, pools included."""
    found: dict[tuple[int, ...], str] = {}
    for name in checkpoint.tensors:
        parts = name.removeprefix("model.").split(".")
        if parts[0] not in _STAGES or not name.startswith("model."):
            continue
        depth = 2 if parts[2].isdigit() else 1
        place = tuple(int(part) for part in parts[1 : 1 + depth])
        found[(_STAGES.index(parts[0]), *place)] = ".".join(["model", *parts[: 1 + depth]])
    return [found[place] for place in sorted(found)]


def _layers_in_order(model: SashimiAutoregressive) -> Iterator[nn.Module]:
    """Our layers in the order in which they run, pools included."""
    backbone = model.backbone
    for blocks, pool in zip(backbone.down, backbone.down_pools, strict=True):
        yield from (layer for block in blocks for layer in block)
        yield pool
    yield from (layer for block in backbone.center for layer in block)
    for blocks, pool in zip(reversed(backbone.up), reversed(backbone.up_pools), strict=True):
        yield pool
        yield from (layer for block in blocks for layer in block)


def _load_layer(checkpoint: Checkpoint, name: str, layer: nn.Module, names: S4Names, dt_transform: str) -> None:
    if isinstance(layer, DownPool | UpPool):
        _load_pool(checkpoint, f"{name}.linear", layer.linear)
        return
    if isinstance(layer.norm, ScalarNorm):
        load_norm(checkpoint, f"{name}.norm.norm", layer.norm)
    else:
        load_linear(checkpoint, f"{name}.norm", layer.norm)
    if isinstance(layer, ResidualS4):
        _load_s4(checkpoint, name, layer, names, dt_transform)
    else:
        load_linear_map(checkpoint, f"{name}.layer.ff.0.0", layer.input_linear)
        load_linear_map(checkpoint, f"{name}.layer.ff.2", layer.output_linear)


def _load_pool(checkpoint: Checkpoint, name: str, linear: nn.Module) -> None:
    if not hasattr(linear, "parametrizations"):
        load_linear_map(checkpoint, name, linear)
    elif f"{name}.weight_v" in checkpoint:
        weight = linear.parametrizations.weight
        with torch.no_grad():
            for target, part in ((weight.original0, "weight_g"), (weight.original1, "weight_v")):
                target.copy_(checkpoint.take(f"{name}.{part}", tuple(target.shape[:2])).view_as(target))
        checkpoint.copy(linear.bias, f"{name}.bias")
    else:  # the standalone network has none: a direction of its own length is the same map
        with torch.no_grad():
            linear.weight = checkpoint.take(f"{name}.weight", tuple(linear.weight.shape[:2])).view_as(linear.weight)
        checkpoint.copy(linear.bias, f"{name}.bias")


def _load_s4(checkpoint: Checkpoint, name: str, layer: ResidualS4, names: S4Names, dt_transform: str) -> None:
    """An S4 layer, whose file holds C (I - Ā^L) in the place of C once it has been run with a kernel of length L."""
    ssm, kernel, (n_ssm, half_states) = layer.s4.ssm, f"{name}.{names.kernel}", layer.s4.ssm.imag.shape
    step = checkpoint.tensors.get(f"{kernel}.{names.step}", ssm.log_dt)
    stored = checkpoint.take(f"{kernel}.{names.step}", (ssm.d_model, 1) if step.ndim == 2 else (ssm.d_model,)).double()
    log_dt = stored if dt_transform == "exp" else F.softplus(stored).log()
    with torch.no_grad():
        ssm.log_dt.copy_(log_dt.flatten())
        ssm.imag.copy_(names.imag_sign * checkpoint.take(f"{kernel}.{names.imag}", (n_ssm, half_states)))
        ssm.B.copy_(checkpoint.take(f"{kernel}.B", (1, n_ssm, half_states, 2))[0])
        ssm.P.copy_(checkpoint.take(f"{kernel}.P", (1, n_ssm, half_states, 2))[0])  # one row: the rank is 1
    checkpoint.copy(ssm.log_neg_real, f"{kernel}.{names.real}")
    checkpoint.copy(ssm.D, f"{name}.{names.skip}")
    load_linear_map(checkpoint, f"{name}.layer.output_linear.0", layer.s4.output_linear)
    truncated = checkpoint.take(f"{kernel}.C", tuple(ssm.C.shape))
    length = int(checkpoint.take(f"{kernel}.{names.length}", ()))
    with torch.no_grad():
        ssm.C.copy_(truncated if length == 0 else output_from_truncated(ssm, truncated, length))
