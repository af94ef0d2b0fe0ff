"""Conversion of official autoregressive checkpoints (versions 3 and 4 of the S4 repository)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrize import is_parametrized

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.interop.checkpoint import Checkpoint, build
from sashimi_diffusion.interop.layers import (
    layers_by_list,
    load_linear,
    load_norm,
    load_output_vectors,
    require_rank_one,
)
from sashimi_diffusion.models.autoregressive import SashimiAutoregressive
from sashimi_diffusion.models.blocks import Block, DownPool, ResidualFeedForward, ResidualS4, ScalarNorm, UpPool
from sashimi_diffusion.ssm import S4Layer

DT_TRANSFORMS = ("exp", "softplus")
_STAGES = ("d_layers", "c_layers", "u_layers")


@dataclass(frozen=True)
class AutoregressiveOptions:
    """Properties of a network that its checkpoint does not contain.

    Args:
        sample_rate: sampling rate in Hz.
        length: training length in samples.
        quantization: "mu-law", or "linear" as in the Beethoven experiment.
        dt_transform: function that maps a stored value to the step size dt. None: "exp" for version 3 and for the
            standalone network, "softplus" for version 4 of the training framework. A version 3 file with the names of
            version 4 needs "exp". This cannot be detected; with "softplus" the model generates noise.
    """

    sample_rate: int = 16000
    length: int = 16000
    quantization: str = "mu-law"
    dt_transform: str | None = None


class S4Names(NamedTuple):
    """Names of the parameters of an S4 layer in one version of the official code.

    Args:
        skip: D, relative to the layer.
        kernel: the module of the kernel, relative to the layer; the names below are relative to it.
        dt: transformed step sizes.
        real, imag: log(-Re Λ) and ± Im Λ.
        length: buffer with the length L of the kernel.
        imag_sign: factor of the stored Im Λ, 1 or -1.
    """

    skip: str
    kernel: str
    dt: str
    real: str
    imag: str
    length: str
    imag_sign: int


V3 = S4Names("layer.D", "layer.kernel.kernel", "log_dt", "inv_w_real", "w_imag", "L", 1)
V4 = S4Names("layer.layer.D", "layer.layer.kernel", "inv_dt", "A_real", "A_imag", "l_kernel", -1)


class AutoregressiveConversion(NamedTuple):
    """A converted checkpoint.

    Args:
        model: the model, in evaluation mode.
        layout: description of the network and its version, for the summary of ``sashimi-convert``.
    """

    model: SashimiAutoregressive
    layout: str


def is_autoregressive_checkpoint(tensors: dict[str, Tensor]) -> bool:
    """Return whether a state dict belongs to an autoregressive SaShiMi: an embedding and lists of layers."""
    names = [name.removeprefix("model.") for name in tensors]
    return any(name.startswith("c_layers.") for name in names) and any(name.startswith("encoder.") for name in tensors)


def convert_autoregressive(
    tensors: dict[str, Tensor], options: AutoregressiveOptions = AutoregressiveOptions()
) -> AutoregressiveConversion:
    """Convert the state dict of an official autoregressive SaShiMi, with or without U-net.

    Raises:
        UserError: the layout is unknown, or tensors are missing, unexpected or misshapen (the error lists them).
    """
    checkpoint = Checkpoint({_newer_name(name): tensor for name, tensor in tensors.items()})
    names = _s4_names(checkpoint)
    config = read_config(checkpoint, names)
    dt_transform = options.dt_transform
    if dt_transform is None:  # only the standalone network has layer norms
        dt_transform = "softplus" if names is V4 and config["norm"] == "scalar" else "exp"
    if dt_transform not in DT_TRANSFORMS:
        raise UserError(f"unknown dt_transform {dt_transform!r}: expected one of {', '.join(DT_TRANSFORMS)}")
    options_of_audio = {"sample_rate": options.sample_rate, "sample_size": options.length}
    model = build(SashimiAutoregressive, checkpoint, **options_of_audio, quantization=options.quantization, **config)
    official_names, layers = _official_layers(checkpoint), list(_layers_in_order(model))
    if len(official_names) < len(layers):
        raise UserError(
            f"the checkpoint does not fit the network that its shapes imply: it has {len(official_names)} of "
            f"{len(layers)} layers"
        )
    for name, layer in zip(official_names, layers, strict=False):  # tensors of other layers are reported as unexpected
        _load_layer(checkpoint, name, layer, names, dt_transform)
    checkpoint.copy(model.embedding.weight, "encoder.0.weight")
    load_linear_map(checkpoint, "model.norm", model.output_norm)
    load_linear_map(checkpoint, "decoder.0.output_transform", model.output)
    checkpoint.finish()
    version = "version 3" if names is V3 else "version 4"
    kind = "U-net" if config["unet"] else "blocks only in the upward path"
    return AutoregressiveConversion(model.eval(), f"autoregressive SaShiMi, {version}, {kind}, dt = {dt_transform}(·)")


def read_config(checkpoint: Checkpoint, names: S4Names) -> dict[str, Any]:
    """Return the arguments of :class:`SashimiAutoregressive` that the shapes of the tensors imply.

    Raises:
        UserError: a required tensor is missing or misshapen, or the S4 layers are not supported.
    """
    layers = {stage: [name for name in _official_layers(checkpoint) if f".{stage}." in name] for stage in _STAGES}
    s4 = [name for name in layers["c_layers"] if f"{name}.{names.skip}" in checkpoint]
    if not s4:
        raise UserError("the checkpoint does not fit any known network: no S4 layer in its center")
    num_tokens, d_model = checkpoint.shape("encoder.0.weight", 2)
    require_rank_one(checkpoint, f"{s4[0]}.{names.kernel}")
    _, n_ssm, half_states, _ = checkpoint.shape(f"{s4[0]}.{names.kernel}.B", 4)
    _, width, _, _ = checkpoint.shape(f"{s4[0]}.{names.kernel}.C", 4)
    pools: list[int] = []
    widths = [d_model]
    for name in layers["d_layers"]:
        weight = next((one for one in ("weight", "weight_v") if f"{name}.linear.{one}" in checkpoint), None)
        if weight is not None:
            out_channels, in_channels = _matrix_shape(checkpoint, f"{name}.linear.{weight}")
            pools.append(in_channels // widths[-1])
            widths.append(out_channels)
    feed_forward = [name for name in layers["c_layers"] if f"{name}.layer.ff.0.0.weight" in checkpoint]
    ff = _matrix_shape(checkpoint, f"{feed_forward[0]}.layer.ff.0.0.weight")[0] // width if feed_forward else 0
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
    """Load the weight and the bias of a linear map; in the file, the weight may lack the kernel axis of size 1."""
    weight = layer.get_parameter("weight")
    with torch.no_grad():
        weight.copy_(_take_matrix(checkpoint, f"{name}.weight", weight))
    checkpoint.copy(layer.get_parameter("bias"), f"{name}.bias")


def _take_matrix(checkpoint: Checkpoint, name: str, target: Tensor) -> Tensor:
    """Return the tensor called ``name`` in the shape of ``target``; in the file it may lack the axis of size 1."""
    stored = checkpoint.tensors.get(name)
    shape = target.shape if stored is None or stored.ndim == target.ndim else target.shape[:2]
    return checkpoint.take(name, tuple(shape)).view_as(target)


def _matrix_shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...]:
    """Return the numbers of outputs and inputs of the linear map called ``name``; it may have an axis of size 1."""
    return checkpoint.shape(name, 3 if checkpoint.tensors[name].ndim == 3 else 2)[:2]


def _newer_name(name: str) -> str:
    """Return the name in version 3 of an encoder or decoder tensor of an earlier version."""
    for old in ("encoder.weight", "decoder.output_transform."):
        if name.startswith(old):
            return name.replace(".", ".0.", 1)
    return name


def _s4_names(checkpoint: Checkpoint) -> S4Names:
    """Return the names of the version of the file.

    Raises:
        UserError: the S4 layers are diagonal or of an earlier version.
    """
    if any(name.endswith(("kernel.A_imag", "kernel.w_imag")) for name in checkpoint.tensors) and not any(
        name.endswith("kernel.P") for name in checkpoint.tensors
    ):
        raise UserError(
            "the S4 layers of the checkpoint are diagonal (mode diag, S4D or DSS): only mode nplr can be converted"
        )
    for names in (V3, V4):
        if any(f".{names.kernel}.{names.real}" in name for name in checkpoint.tensors):
            return names
    raise UserError(
        "this is no autoregressive checkpoint of version 3 or 4: its S4 layers contain neither inv_w_real nor A_real; "
        "convert a version 2 file to version 3 with the official scripts first"
    )


def _official_layers(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the official layers in the order of execution, including pools."""
    found: dict[tuple[int, ...], str] = {}
    for name in checkpoint.tensors:
        # Without U-net, u_layers is a list of stages, each of which is a list of layers: two numbers.
        match = re.match(r"(model\.([dcu]_layers)\.(\d{1,9}(?:\.\d{1,9})?))\.", name)
        if match:
            place = (_STAGES.index(match[2]), *map(int, match[3].split(".")))
            found[place] = match[1]
    return [found[place] for place in sorted(found)]


def _layers_in_order(model: SashimiAutoregressive) -> Iterator[nn.Module]:
    """Yield the layers of ``model`` in the order of execution, including pools."""
    for layers in layers_by_list(model.backbone).values():
        for layer in layers:
            yield from layer if isinstance(layer, Block) else (layer,)


def _load_layer(checkpoint: Checkpoint, name: str, layer: nn.Module, names: S4Names, dt_transform: str) -> None:
    if isinstance(layer, DownPool | UpPool):
        _load_pool(checkpoint, f"{name}.linear", layer.linear)
        return
    assert isinstance(layer, ResidualS4 | ResidualFeedForward)
    if isinstance(layer.norm, ScalarNorm):
        load_norm(checkpoint, f"{name}.norm.norm", layer.norm)
    else:
        load_linear(checkpoint, f"{name}.norm", layer.norm)
    if isinstance(layer, ResidualS4):
        assert isinstance(layer.s4, S4Layer)
        _load_s4(checkpoint, name, layer.s4, names, dt_transform)
    else:
        load_linear_map(checkpoint, f"{name}.layer.ff.0.0", layer.input_linear)
        load_linear_map(checkpoint, f"{name}.layer.ff.2", layer.output_linear)


def _load_pool(checkpoint: Checkpoint, name: str, linear: nn.Conv1d) -> None:
    if not is_parametrized(linear):
        load_linear_map(checkpoint, name, linear)
        return
    if f"{name}.weight_v" in checkpoint:
        for index, part in enumerate(("weight_g", "weight_v")):
            target = linear.get_parameter(f"parametrizations.weight.original{index}")
            with torch.no_grad():
                target.copy_(_take_matrix(checkpoint, f"{name}.{part}", target))
    else:  # the standalone network has no weight normalization: assigning the weight sets gain and direction
        with torch.no_grad():
            linear.weight = _take_matrix(checkpoint, f"{name}.weight", linear.weight)
    checkpoint.copy(linear.get_parameter("bias"), f"{name}.bias")


def _load_s4(checkpoint: Checkpoint, name: str, layer: S4Layer, names: S4Names, dt_transform: str) -> None:
    ssm, kernel = layer.ssm, f"{name}.{names.kernel}"
    n_ssm, half_states = ssm.imag.shape
    has_column = checkpoint.tensors.get(f"{kernel}.{names.dt}", ssm.log_dt).ndim == 2
    stored = checkpoint.take(f"{kernel}.{names.dt}", (ssm.d_model, 1) if has_column else (ssm.d_model,)).double()
    log_dt = stored if dt_transform == "exp" else F.softplus(stored).log()
    checkpoint.copy_computed(ssm.log_dt, log_dt.flatten(), f"{kernel}.{names.dt}")
    with torch.no_grad():
        ssm.imag.copy_(names.imag_sign * checkpoint.take(f"{kernel}.{names.imag}", (n_ssm, half_states)))
        for part in ("B", "P"):  # one row, as the rank is 1
            ssm.get_parameter(part).copy_(checkpoint.take(f"{kernel}.{part}", (1, n_ssm, half_states, 2))[0])
    checkpoint.copy(ssm.get_parameter("log_neg_real"), f"{kernel}.{names.real}")
    checkpoint.copy(ssm.D, f"{name}.{names.skip}")
    load_linear_map(checkpoint, f"{name}.layer.output_linear.0", layer.output_linear)
    load_output_vectors(checkpoint, kernel, names.length, ssm)
