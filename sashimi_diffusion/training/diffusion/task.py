"""Diffusion training: a denoiser, its noise schedule, and the loss of predicting the noise or the velocity."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sashimi_diffusion.data.mel_envelope import MelEnvelope
from sashimi_diffusion.data.recordings import Recordings
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.likelihood.dequantization import Cells
from sashimi_diffusion.likelihood.diffusion import bound_nats
from sashimi_diffusion.likelihood.flow_ode import FlowField
from sashimi_diffusion.pipelines.mel import log_mel
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.schedulers.noise_paths import noise_path
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.training.config import with_measured
from sashimi_diffusion.training.diffusion.batches import Batch, BatchSource, Windows, measure_std
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.fine_tuning import (
    TunedPipeline,
    initial_network,
    load_initial,
    trained_parameters,
    transfer_initial_weights,
    use_labels_of,
    with_initial_settings,
)
from sashimi_diffusion.training.diffusion.objective import TIME_BINS, loss_curve, time_bins, training_scheduler
from sashimi_diffusion.training.diffusion.samples import check_sampling, save_samples
from sashimi_diffusion.training.examples import spread_evenly, unused_ends
from sashimi_diffusion.training.log import evaluation_bar
from sashimi_diffusion.training.model_card import diffusion_usage
from sashimi_diffusion.training.run_folder import Saveable
from sashimi_diffusion.training.splits import fingerprint, has_validation, open_split


class DiffusionTask:
    """Diffusion training; implements :class:`sashimi_diffusion.training.task.Task`.

    Args:
        config: the config of the run.
        device: where the network is trained.
        skip_bad_files: whether recordings that cannot be used are left out, with a warning.

    Raises:
        UserError: the recordings or the initial pipeline do not fit the config.
    """

    chunks = 1
    against_graph = ""

    def __init__(self, config: DiffusionConfig, device: torch.device, skip_bad_files: bool) -> None:
        initial = load_initial(config) if config.training.transfer else None
        if initial is not None:
            config = with_initial_settings(config, initial[0])
        self.config, self.samples, self.device = config, config.sampling.num_samples, device
        recordings = self._open("train", skip_bad_files)
        held_out = self._open("validation", skip_bad_files) if has_validation(config.data) else None
        self.measured: Mapping[str, float] = {}
        if config.training.initial_pipeline is not None and initial is None:
            self.network = initial_network(config, recordings).to(device)
            for part in (recordings, held_out):
                if part is not None:
                    use_labels_of(self.network, part)
        else:
            self.network = self._new_network(recordings, initial).to(device)
        self.guidance_scale = config.sampling.guidance(is_conditional(self.network))
        self.module: nn.Module = self.network
        self.scheduler: Any = training_scheduler(config)
        if self.samples:
            self.check_sampling()
        self.source = self._batch_source(recordings, device)
        self.validation = None if held_out is None else self._batch_source(held_out, device)
        self.data, self.usage = fingerprint(recordings), diffusion_usage(self.network)
        classes = "no" if self.network.config.num_classes is None else f"{self.network.config.num_classes:,}"
        self.description = (
            f"{len(recordings):,} training and {0 if held_out is None else len(held_out):,} held-out examples"
            + (f", {classes} classes" if config.model.class_conditional is None else "")
            + (f"; {recordings.changes}" if recordings.changes else "")
        )
        if unused := unused_ends(recordings, config.data.random_shift):
            self.description += f"; {unused}"
        if config.training.lora_rank is not None:
            self.description += f"; {trained_parameters(self.network):,} parameters are trained"

    def _new_network(self, recordings: Recordings, initial: tuple[Any, Any] | None) -> nn.Module:
        """Return a network for the recordings; with a network and its schedule in ``initial``, with its weights."""
        config = self.config
        if config.model.argument("waveform_std") is None:
            self.measured = {"waveform_std": round(measure_std(recordings, config), 6)}
        network = create_model(with_measured(config, self.measured), recordings.class_names, recordings.speaker_names)
        if initial is not None:
            transfer_initial_weights(config, *initial, network)
        return network

    def check_sampling(self) -> None:
        """Check that the samples can be drawn; raise UserError if not."""
        check_sampling(self.config.sampling, self.network, self.scheduler)

    def batch(self, step: int, positions: range, global_batch: int) -> Batch | Windows:
        """Return the examples at ``positions``; for a GPU, without the random numbers that are drawn there."""
        if self.device.type == "cuda":
            return self.source.windows(step, positions, global_batch)
        return self.source.training_batch(step, positions, global_batch)

    def complete(self, batch: Batch | Windows, step: int, positions: range, global_batch: int) -> Batch:
        """Draw the random numbers that :meth:`batch` left out."""
        return self.source.complete(batch, step, positions, global_batch) if isinstance(batch, Windows) else batch

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, see :func:`diffusion_losses`."""
        return diffusion_losses(module, self.scheduler, batch, self.config.objective.min_snr_gamma).mean()

    @torch.no_grad()
    def validate(self, accelerator: Accelerator, network: nn.Module) -> dict[str, float]:
        """Return the mean loss of held-out recordings, also for each part of the times; the processes share the work.

        The noise and the timestep of an example depend only on the seed of the run, so the losses of different steps
        are comparable. With ``training.validate_bound``, the variational bound is in the result.
        """
        if self.validation is None:
            return {}
        size = self.config.training.batch_size
        indices = spread_evenly(len(self.validation.dataset), self.config.training.validation_examples)
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        losses, counts = torch.zeros(2, TIME_BINS, device=accelerator.device)
        total, bits = torch.zeros(2, device=accelerator.device)
        own = batches[accelerator.process_index :: accelerator.num_processes]
        with frozen(network), evaluation_bar("validation", len(own), accelerator.is_main_process) as bar:
            for chosen in own:
                batch = self.validation.validation_batch(chosen)
                with accelerator.autocast():
                    found = diffusion_losses(network, self.scheduler, batch, self.config.objective.min_snr_gamma)
                    if self.config.training.validate_bound:
                        bits += bound_bits(network, self.scheduler, batch, chosen).sum()
                total += found.sum()
                part = time_bins(self.config, batch.timesteps)
                losses.index_add_(0, part, found)
                counts.index_add_(0, part, torch.ones_like(found))
                bar.update()
        losses, counts, total, bits = (accelerator.reduce(one, "sum") for one in (losses, counts, total, bits))
        metrics = {"validation_loss": total.item() / len(indices)}
        if self.config.training.validate_bound:
            metrics["validation_bound_bits"] = bits.item() / len(indices)
        return metrics | loss_curve(losses, counts)

    def conclude(self, accelerator: Accelerator, network: nn.Module) -> dict[str, float]:
        """Return no metrics: the last validation has already computed them."""
        return {}

    def pipeline(self, network: Any) -> Saveable:
        """Return a pipeline of the denoiser and its training schedule, with the guidance scale of the samples."""
        pipeline: Any = SashimiPipeline(network, self.scheduler, self.guidance_scale)
        return TunedPipeline(pipeline) if self.config.training.lora_rank is not None else pipeline

    def save_samples(self, run: Path, step: int, network: Any) -> str:
        """Draw samples; a vocoder resynthesizes held-out recordings."""
        recordings = self.validation or self.source
        return save_samples(run, step, network, self.scheduler, self.config.sampling, recordings, self.guidance_scale)

    def _open(self, split: str, skip_bad_files: bool) -> Recordings:
        data, labels = self.config.data, self.config.model.class_conditional is not False
        recordings = open_split(data, split, data.length, skip_bad_files, data.speakers, labels, self.config.channels)
        recordings.normalize_rms = data.normalize_rms
        return recordings

    def _batch_source(self, recordings: Recordings, device: torch.device) -> BatchSource:
        model = self.network.config
        mel = None if model.mel_channels is None else log_mel(model).to(device)
        return BatchSource(
            recordings,
            self.config,
            normalize=self.network.normalize,
            num_classes=model.num_classes,
            mel=mel,
            device=device,
            num_speakers=model.num_speakers,
            envelope=MelEnvelope(mel).to(device) if mel is not None and model.get("mel_whitening") else None,
        )


def create_model(config: DiffusionConfig, class_names: list[str] | None, speaker_names: list[str] | None = None) -> Any:
    """Return the untrained network; sample rate, length, classes and speakers come from the data.

    Raises:
        UserError: a class-conditional network without labels, a length that the network does not support, or invalid
            arguments.
    """
    if config.model.class_conditional and not class_names:
        raise UserError(
            "model.class_conditional is true, but the recordings have no labels: give their classes with "
            "data.pattern (for instance '{label}_{speaker}_{index}') or with a sub-folder for each class, or set "
            "model.class_conditional=false"
        )
    classes = None if config.model.class_conditional is False else class_names
    vocoder = config.model.argument("mel_channels") is not None
    try:
        model = config.model.network_class(
            sample_rate=config.data.sample_rate,
            sample_size=config.data.length,
            num_classes=None if classes is None else len(classes),
            class_names=classes,
            num_speakers=None if speaker_names is None else len(speaker_names),
            speaker_names=speaker_names,
            objective=config.objective.name,
            out_channels=config.channels,
            mel_settings=asdict(config.data.mel.settings) if vocoder else None,
            **config.model.arguments,
        )
    except ValueError as error:
        raise UserError(f"cannot build the network of `model`: {error}") from error
    if config.data.length % model.length_multiple:
        longer = math.ceil(config.data.length / model.length_multiple) * model.length_multiple
        raise UserError(
            f"data.length is {config.data.length}, but this network needs multiples of {model.length_multiple} samples "
            f"(the product of model.pool): {longer} is the next"
        )
    return model


def is_conditional(model: Any) -> bool:
    """Return whether a denoiser has classes or speakers."""
    return model.config.num_classes is not None or model.config.num_speakers is not None


def diffusion_losses(
    model: Callable[..., Any], scheduler: Any, batch: Batch, min_snr_gamma: float | None = None
) -> Tensor:
    """Return the loss of each example, (B,) float32: the mean square error of what the network predicts.

    That is the noise or the velocity (DDPM equation 14, Ho et al. 2020), optionally with the weights of Min-SNR (arXiv
    2303.09556), the velocity of flow matching, or F of EDM (see :mod:`sashimi_diffusion.schedulers.noise_paths`).

    Args:
        model: a denoiser, called as ``model(noisy, timesteps, class_labels=, mel=, speaker_labels=)``.
        scheduler: the scheduler of the run.
        batch: examples with their noise and timesteps.
        min_snr_gamma: gamma; None: no weighting.
    """
    noisy, target = noise_path(scheduler).example(batch.waveform, batch.noise, batch.timesteps)  # (B, C, L)
    prediction = model(noisy, batch.timesteps, **_conditioning(batch), return_dict=False)[0]
    losses = (prediction.float() - target).square().mean(dim=(1, 2))  # (B,)
    if min_snr_gamma is None:
        return losses
    velocity = scheduler.config.prediction_type == "v_prediction"
    return losses * min_snr_weights(scheduler.noise_levels(batch.timesteps), min_snr_gamma, velocity)


def bound_bits(network: Any, scheduler: Any, batch: Batch, numbers: Sequence[int]) -> Tensor:
    """Return an estimate of the variational bound of each example, in bits per sample, (B,) float64.

    The examples have an accuracy of 16 bits as the network sees them, after scaling. The noise level of an example
    depends only on its number, so bounds of different steps are comparable.

    Args:
        network: a denoiser.
        scheduler: the scheduler of the run.
        batch: examples with their noise.
        numbers: number of each example.
    """
    path, waveform = noise_path(scheduler), batch.waveform.double()
    half = 2.0**-16 / network.config.waveform_std
    # The golden ratio spreads consecutive numbers over all levels.
    share = torch.tensor([number * 0.6180339887498949 % 1.0 for number in numbers], dtype=torch.float64)

    def predict(x: Tensor, timestep: Tensor) -> Tensor:
        output: Tensor = network(x.float(), timestep.expand(len(x)), **_conditioning(batch), return_dict=False)[0]
        return output.float()

    field = FlowField(predict, path, torch.empty(0))
    noise = batch.noise.double()
    nats = bound_nats(field, path, Cells(waveform - half, waveform + half, waveform), share, (noise, noise))
    return nats / (waveform[0].numel() * math.log(2))


def _conditioning(batch: Batch) -> dict[str, Tensor | None]:
    return {"class_labels": batch.labels, "mel": batch.mel, "speaker_labels": batch.speakers}


def min_snr_weights(alphas_cumprod: Tensor, gamma: float, velocity: bool) -> Tensor:
    """Return Min-SNR weights of the noise loss, min(SNR, gamma)/SNR, or the velocity loss, min(SNR, gamma)/(SNR + 1).

    SNR = abar/(1 - abar) with abar = alphas_cumprod. The formulas use abar, so that the weights are finite at abar = 0
    and abar = 1.

    Args:
        alphas_cumprod: abar of the timestep of each example, shape (B,).
        gamma: upper limit of the SNR.
        velocity: whether the network predicts the velocity.
    """
    noise_power = 1 - alphas_cumprod
    if velocity:
        return torch.minimum(alphas_cumprod, gamma * noise_power)
    return torch.where(alphas_cumprod > gamma * noise_power, gamma * noise_power / alphas_cumprod, 1.0)
