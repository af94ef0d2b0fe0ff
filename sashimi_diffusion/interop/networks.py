"""Official DiffWave networks: configurations from the shapes of their tensors, and loading of their weights."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.interop.checkpoint import Checkpoint
from sashimi_diffusion.interop.layers import (
    layers_by_list,
    load_block,
    load_linear,
    load_mel,
    load_norm,
    load_normalized,
    require_rank_one,
)
from sashimi_diffusion.models.blocks import Block, DownPool, UpPool
from sashimi_diffusion.models.denoiser import SashimiDenoiser
from sashimi_diffusion.models.wavenet import WaveNetBlock, WaveNetDenoiser

DILATION_CYCLES = {36: 12, 30: 10}
"""Dilation cycles of the published WaveNets, by number of layers; a state dict does not contain them."""


def is_wavenet(checkpoint: Checkpoint) -> bool:
    """Return whether the state dict belongs to the WaveNet backbone, not to SaShiMi."""
    return any(name.startswith("residual_layer.") for name in checkpoint.tensors)


def wavenet_config(checkpoint: Checkpoint, dilation_cycle: int | None = None) -> dict[str, Any]:
    """Return the arguments of :class:`WaveNetDenoiser` that the shapes of the tensors imply.

    Args:
        checkpoint: the state dict.
        dilation_cycle: number of layers after which the dilations repeat; None for that of the published network with
            the same number of layers.

    Raises:
        UserError: a required tensor is missing, or the dilation cycle is unknown.
    """
    block = "residual_layer.residual_blocks"
    n_layers = _count(checkpoint, block)
    cycle = dilation_cycle or DILATION_CYCLES.get(n_layers)
    if cycle is None:
        raise UserError(
            f"the dilation cycle of {n_layers} WaveNet layers is not in the file: set it with --dilation-cycle"
        )
    residual, in_channels, _ = checkpoint.shape("init_conv.0.conv.weight_v", 3)
    return {
        "in_channels": in_channels,
        "out_channels": checkpoint.shape("final_conv.2.conv.weight", 3)[0],
        "residual_channels": residual,
        "skip_channels": checkpoint.shape(f"{block}.0.skip_conv.weight_v", 3)[0],
        "n_layers": n_layers,
        "dilation_cycle": cycle,
        **_embedding_config(checkpoint, "residual_layer."),
        **_mel_config(checkpoint, f"{block}.0"),
    }


def load_wavenet(checkpoint: Checkpoint, model: WaveNetDenoiser) -> None:
    """Load the state dict into ``model``.

    Raises:
        UserError: the list of tensors that do not fit.
    """
    _load_ends(checkpoint, model, "residual_layer.")
    for index, block in enumerate(model.blocks):
        assert isinstance(block, WaveNetBlock)
        name = f"residual_layer.residual_blocks.{index}"
        load_linear(checkpoint, f"{name}.fc_t", block.step_projection)
        load_normalized(checkpoint, f"{name}.dilated_conv_layer.conv", block.dilated)
        load_mel(checkpoint, name, block.mel)
        load_normalized(checkpoint, f"{name}.res_conv", block.residual_output)
        load_normalized(checkpoint, f"{name}.skip_conv", block.skip_output)
    checkpoint.finish()


def sashimi_config(checkpoint: Checkpoint, length: int | None = None) -> dict[str, Any]:
    """Return the arguments of :class:`SashimiDenoiser` that the shapes of the tensors imply.

    Args:
        checkpoint: the state dict.
        length: training length in samples; None for the length in the file, or 16,000 if the file has none.

    Raises:
        UserError: a required tensor is missing or misshapen, the file has another length, or its S4 layers are not
            supported.
    """
    d_model, in_channels, _ = checkpoint.shape("init_conv.0.conv.weight_v", 3)
    pool, expand = _pools(checkpoint, d_model)
    legacy = has_legacy_s4(checkpoint)
    kernel = "c_layers.0.layer.kernel.krylov" if legacy else "c_layers.0.layer.kernel.kernel"
    require_rank_one(checkpoint, kernel)
    width = d_model * expand ** len(pool)
    n_ssm = width if legacy else checkpoint.shape(f"{kernel}.B", 4)[1]
    mel = _mel_config(checkpoint, "c_layers.0")
    sample_size = _sample_size(checkpoint, legacy, length)
    return {
        "in_channels": in_channels,
        "out_channels": checkpoint.shape("final_conv.2.conv.weight", 3)[0],
        "sample_size": sample_size,
        "d_model": d_model,
        "n_layers": _count(checkpoint, "c_layers"),
        "pool": pool,
        "expand": expand,
        "ff": _multiple(checkpoint, "c_layers.0.ff.ff.0.conv.weight_v", 0, width),
        "unet": any(re.match(r"d_layers\.\d+\.fc_t\.", name) for name in checkpoint.tensors),
        "parameterization": "legacy" if legacy else "nplr",
        "n_state": 2 * checkpoint.shape(f"{kernel}.C", 4)[2],
        "n_ssm": None if n_ssm == width else n_ssm,
        "kernel_length": sample_size,
        **_embedding_config(checkpoint, ""),
        **mel,
        **({"mel_alignment": "official"} if mel else {}),
    }


def has_legacy_s4(checkpoint: Checkpoint) -> bool:
    """Return whether the S4 layers of a SaShiMi are :class:`LegacyS4`, those of the official checkpoints branch."""
    return any(".kernel.krylov." in name for name in checkpoint.tensors)


def load_sashimi(checkpoint: Checkpoint, model: SashimiDenoiser) -> None:
    """Load the state dict into ``model``.

    Raises:
        UserError: the list of tensors that do not fit.
    """
    _load_ends(checkpoint, model, "")
    load_norm(checkpoint, "norm", model.output_norm)
    for name, layer in named_layers(model):
        if isinstance(layer, Block):
            load_block(checkpoint, name, layer)
        elif isinstance(layer, DownPool | UpPool):
            load_normalized(checkpoint, f"{name}.linear.conv", layer.linear)
    checkpoint.finish()


def named_layers(model: SashimiDenoiser) -> Iterator[tuple[str, nn.Module]]:
    """Yield the blocks and pools of ``model`` with their official names, in the order of execution."""
    for name, layers in layers_by_list(model.backbone).items():
        for index, layer in enumerate(layers):
            yield f"{name}.{index}", layer


def _load_ends(checkpoint: Checkpoint, model: SashimiDenoiser | WaveNetDenoiser, prefix: str) -> None:
    """Load the input layer, the step embedding and the output layers, which are equal in both networks."""
    load_normalized(checkpoint, "init_conv.0.conv", model.input[0])
    load_linear(checkpoint, f"{prefix}fc_t1", model.step_embedding.hidden)
    load_linear(checkpoint, f"{prefix}fc_t2", model.step_embedding.output)
    load_normalized(checkpoint, "final_conv.0.conv", model.output[0])
    load_linear(checkpoint, "final_conv.2.conv", model.output[2])


def _embedding_config(checkpoint: Checkpoint, prefix: str) -> dict[str, Any]:
    hidden, sines = checkpoint.shape(f"{prefix}fc_t1.weight", 2)
    dim, _ = checkpoint.shape(f"{prefix}fc_t2.weight", 2)
    return {"embedding_sines": sines, "embedding_hidden": hidden, "embedding_dim": dim}


def _mel_config(checkpoint: Checkpoint, block: str) -> dict[str, Any]:
    if f"{block}.mel_conv.conv.weight_v" not in checkpoint:
        return {}
    # A transposed convolution that upsamples by s has a kernel of 2 s samples.
    layers = range(_count(checkpoint, f"{block}.upsample_conv2d"))
    kernels = [checkpoint.shape(f"{block}.upsample_conv2d.{index}.weight_v", 4)[-1] for index in layers]
    return {
        "mel_channels": checkpoint.shape(f"{block}.mel_conv.conv.weight_v", 3)[1],
        "mel_upsample": [kernel // 2 for kernel in kernels],
    }


def _pools(checkpoint: Checkpoint, d_model: int) -> tuple[list[int], int]:
    """Return pooling factors and ``expand``: a down-pool is a matrix from (pool · width) to (expand · width)."""
    found = (re.fullmatch(r"d_layers\.(\d{1,9})\.linear\.conv\.weight_v", name) for name in checkpoint.tensors)
    names = [match[0] for match in sorted(filter(None, found), key=lambda match: int(match[1]))]
    pool, width, expand = [], d_model, 1
    for name in names:
        pool.append(_multiple(checkpoint, name, 1, width))
        expand = _multiple(checkpoint, name, 0, width)
        width *= expand
    return pool, expand


def _multiple(checkpoint: Checkpoint, name: str, axis: int, width: int) -> int:
    """Return the size of a convolution's weight along ``axis`` as a multiple of ``width``."""
    shape = checkpoint.shape(name, 3)
    if shape[axis] % width:
        raise UserError(f"the checkpoint does not fit any known network: misshapen {name}: {shape}")
    return shape[axis] // width


def _sample_size(checkpoint: Checkpoint, legacy: bool, length: int | None) -> int:
    """Return the training length: the kernel length of the last S4 layer, which always runs at the raw rate."""
    last = f"u_layers.{_count(checkpoint, 'u_layers') - 1}.layer.kernel"
    if legacy:
        stored = 2 * (checkpoint.shape(f"{last}.krylov.nodes", 2)[0] - 1)
    else:
        stored = checkpoint.number(f"{last}.kernel.L")
    if legacy and length not in (None, stored):
        raise UserError(f"--length {length} does not fit: the kernels in the file have {stored} samples")
    return length or stored or 16000


def _count(checkpoint: Checkpoint, prefix: str) -> int:
    """Return the length of the official list of modules called ``prefix``."""
    found = (re.match(rf"{re.escape(prefix)}\.(\d{{1,9}})\.", name) for name in checkpoint.tensors)
    numbers = [int(match[1]) for match in found if match]
    if not numbers:
        raise UserError(f"this is not an official DiffWave checkpoint of a known layout: missing {prefix}.0")
    return 1 + max(numbers)
