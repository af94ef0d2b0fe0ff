"""Official DiffWave checkpoints, with the SaShiMi or the WaveNet backbone, as this project's model and scheduler."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.interop.checkpoint import Checkpoint
from sashimi_diffusion.interop.layers import stored_nodes
from sashimi_diffusion.interop.networks import (
    is_older,
    is_wavenet,
    load_sashimi,
    load_wavenet,
    named_blocks,
    sashimi_config,
    wavenet_config,
)
from sashimi_diffusion.models.denoiser import SashimiDenoiser
from sashimi_diffusion.models.wavenet import WaveNetDenoiser
from sashimi_diffusion.schedulers import DiffWaveScheduler


@dataclass(frozen=True)
class ConversionOptions:
    """What the tensors of a checkpoint do not tell; None is the published value for the kind of network.

    Args:
        sample_rate: Hz; 16,000, and 22,050 for a vocoder.
        length: training length in samples; the one in the file, else 16,000.
        timesteps, beta_start, beta_end: noise schedule; 200, 1e-4 and 0.02, for a vocoder 50, 1e-4 and 0.05.
        dilation_cycle: of a WaveNet; 12 for 36 layers, 10 for 30.
        step_on_residual: how a WaveNet was trained; the published ones were with it.
    """

    sample_rate: int | None = None
    length: int | None = None
    timesteps: int | None = None
    beta_start: float = 1e-4
    beta_end: float | None = None
    dilation_cycle: int | None = None
    step_on_residual: bool = True


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint: ``model`` in evaluation mode, ``scheduler``, and the ``layout`` found, in words."""

    model: SashimiDenoiser | WaveNetDenoiser
    scheduler: DiffWaveScheduler
    layout: str


def convert_diffwave(tensors: dict[str, Tensor], options: ConversionOptions = ConversionOptions()) -> Conversion:
    """Convert the state dict of an official DiffWave network.

    Raises:
        UserError: the state dict is of no known layout, has missing, unexpected or misshapen tensors (then listed), or
            does not fit the options.
    """
    checkpoint = Checkpoint(tensors)
    vocoder = any(".mel_conv." in name for name in tensors)
    rate = options.sample_rate or (22050 if vocoder else 16000)
    if is_wavenet(checkpoint):
        config = wavenet_config(checkpoint, options.dilation_cycle)
        sizes = {"sample_rate": rate, "sample_size": options.length or 16000}
        model = _build(WaveNetDenoiser, **config, **sizes, step_on_residual=options.step_on_residual)
        load_wavenet(checkpoint, model)
        layout = "DiffWave, WaveNet backbone"
    else:
        model = _build(SashimiDenoiser, **sashimi_config(checkpoint, options.length), sample_rate=rate)
        load_sashimi(checkpoint, model)
        branch = "older (checkpoints branch)" if is_older(checkpoint) else "newer (main branch)"
        layout = f"DiffWave, SaShiMi backbone, {branch} S4 layers"
    scheduler = DiffWaveScheduler(
        num_train_timesteps=options.timesteps or (50 if vocoder else 200),
        beta_start=options.beta_start,
        beta_end=options.beta_end or (0.05 if vocoder else 0.02),
    )
    return Conversion(model.eval(), scheduler, layout)


def _build(network: type, **config: Any) -> Any:
    try:
        return network(**config)
    except ValueError as error:
        raise UserError(f"the checkpoint does not fit any known network: {error}") from error


@torch.no_grad()
def nodes_distance(tensors: dict[str, Tensor], model: SashimiDenoiser, progress: bool = False) -> float:
    """How far the inexact nodes stored in an older checkpoint take the network's output from that of exact nodes.

    Args:
        tensors: the official state dict.
        model: what it was converted into.
        progress: show a progress bar.

    Returns:
        Largest difference on white noise, relative to the largest output.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    noise = torch.randn(1, config.in_channels, config.sample_size, generator=generator)
    mel = None
    if config.mel_channels is not None:
        frames = math.ceil(config.sample_size / math.prod(config.mel_upsample))
        mel = torch.randn(1, config.mel_channels, frames, generator=generator)
    layers = [(name, block[0].s4) for name, block in named_blocks(model)]
    with tqdm(total=2 * len(layers), desc="exact and stored nodes", unit="kernel", disable=not progress) as bar:

        def count(*_: object) -> None:
            bar.update()

        hooks = [layer.register_forward_hook(count) for _, layer in layers]
        exact = model(noise, 100, mel=mel).sample
        for name, layer in layers:
            layer.ssm.use_nodes(stored_nodes(Checkpoint(tensors), f"{name}.layer"))
        stored = model(noise, 100, mel=mel).sample
        for hook in hooks:
            hook.remove()
    for _, layer in layers:
        layer.ssm.use_nodes(None)
    return float((stored - exact).abs().max() / exact.abs().max().clamp_min(torch.finfo(exact.dtype).tiny))
