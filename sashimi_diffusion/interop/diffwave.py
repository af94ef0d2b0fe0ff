"""Conversion of official DiffWave checkpoints with the SaShiMi or the WaveNet backbone."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.interop.checkpoint import Checkpoint, build
from sashimi_diffusion.interop.networks import (
    has_legacy_s4,
    is_wavenet,
    load_sashimi,
    load_wavenet,
    sashimi_config,
    wavenet_config,
)
from sashimi_diffusion.models.denoiser import SashimiDenoiser
from sashimi_diffusion.models.wavenet import WaveNetDenoiser
from sashimi_diffusion.schedulers import DiffWaveScheduler
from sashimi_diffusion.ssm.legacy_s4 import LegacyS4


@dataclass(frozen=True)
class ConversionOptions:
    """Properties of a network that its checkpoint does not contain; None selects the published value.

    Args:
        sample_rate: sampling rate in Hz; 16,000 by default, 22,050 for a vocoder.
        length: training length in samples; by default the length in the file, else 16,000.
        timesteps, beta_start, beta_end: noise schedule; by default 200, 1e-4 and 0.02, for a vocoder 50, 1e-4 and 0.05.
        dilation_cycle: dilation cycle of a WaveNet; by default 12 for 36 layers and 10 for 30 layers.
        step_on_residual: whether a WaveNet also adds the step embedding to the residual path, as the published ones do.
        stored_nodes: keep the inexact FFT nodes in the file, for the older SaShiMi layout; see :class:`LegacyS4`.
    """

    sample_rate: int | None = None
    length: int | None = None
    timesteps: int | None = None
    beta_start: float = 1e-4
    beta_end: float | None = None
    dilation_cycle: int | None = None
    step_on_residual: bool = True
    stored_nodes: bool = False


@dataclass(frozen=True)
class Conversion:
    """A converted checkpoint.

    Args:
        model: the denoiser, in evaluation mode.
        scheduler: its noise schedule.
        layout: description of the network and its version, for the summary of ``sashimi-convert``.
    """

    model: SashimiDenoiser | WaveNetDenoiser
    scheduler: DiffWaveScheduler
    layout: str


def convert_diffwave(tensors: dict[str, Tensor], options: ConversionOptions = ConversionOptions()) -> Conversion:
    """Convert the state dict of an official DiffWave network.

    Raises:
        UserError: the layout is unknown, tensors are missing, unexpected or misshapen (the error lists them), or the
            options do not fit the checkpoint.
    """
    checkpoint = Checkpoint(tensors)
    vocoder = any(".mel_conv." in name for name in tensors)
    rate = options.sample_rate or (22050 if vocoder else 16000)
    legacy = has_legacy_s4(checkpoint)
    if options.stored_nodes and not legacy:
        raise UserError("--stored-nodes does not apply: only the older SaShiMi layout stores FFT nodes; leave it out")
    model: SashimiDenoiser | WaveNetDenoiser
    if is_wavenet(checkpoint):
        config = wavenet_config(checkpoint, options.dilation_cycle)
        sizes = {"sample_rate": rate, "sample_size": options.length or 16000}
        model = wavenet = build(
            WaveNetDenoiser, checkpoint, **config, **sizes, step_on_residual=options.step_on_residual
        )
        load_wavenet(checkpoint, wavenet)
        layout = "DiffWave, WaveNet backbone"
    else:
        config = sashimi_config(checkpoint, options.length)
        model = sashimi = build(
            SashimiDenoiser, checkpoint, **config, sample_rate=rate, stored_nodes=options.stored_nodes
        )
        load_sashimi(checkpoint, sashimi)
        branch = "older (checkpoints branch)" if legacy else "newer (main branch)"
        layout = f"DiffWave, SaShiMi backbone, {branch} S4 layers"
    scheduler = DiffWaveScheduler(
        num_train_timesteps=options.timesteps or (50 if vocoder else 200),
        beta_start=options.beta_start,
        beta_end=options.beta_end or (0.05 if vocoder else 0.02),
    )
    return Conversion(model.eval(), scheduler, layout)


@torch.no_grad()
def output_distance(
    model: SashimiDenoiser | WaveNetDenoiser, other: SashimiDenoiser | WaveNetDenoiser, progress: bool = False
) -> float:
    """Return the largest difference between the outputs of two denoisers, relative to the largest output of the first.

    The input is white noise at diffusion step 100.

    Args:
        model: a denoiser.
        other: a denoiser with the same configuration, such as the same checkpoint converted with ``stored_nodes``.
        progress: show a progress bar.
    """
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, config.in_channels, config.sample_size, generator=generator)
    mel = None
    if config.mel_channels is not None:
        frames = math.ceil(config.sample_size / math.prod(config.mel_upsample))
        mel = torch.randn(1, config.mel_channels, frames, generator=generator)
    networks: list[Any] = [model, other]
    layers = [layer for network in networks for layer in network.modules() if isinstance(layer, LegacyS4)]
    with tqdm(total=len(layers), desc="comparing exact and stored nodes", unit="kernel", disable=not progress) as bar:

        def count(*_: object) -> None:
            bar.update()

        hooks = [layer.register_forward_hook(count) for layer in layers]
        first, second = (network(noise, 100, mel=mel).sample for network in networks)
        for hook in hooks:
            hook.remove()
    return float((first - second).abs().max() / first.abs().max().clamp_min(torch.finfo(first.dtype).tiny))
