"""The likelihood of recordings under a diffusion model: exact for its probability-flow ODE, and a variational bound.

The ODE connects the noise from which sampling starts with waveforms at the smallest noise level of the training. It is
solved from the recordings to the noise. The log-density is that of the noise plus the integral of the trace.

Quantized recordings become real numbers in one of two ways. With "uniform" dequantization, a number is drawn from the
cell of each sample; the mean of -log density - log width is an upper bound of -log probability (arXiv 1511.01844).
With "variational" dequantization, normal noise of the smallest level is added, as the model has been trained with; the
last step is the model's prediction of the recording from it, with normal errors, as in the last step of sampling. That
is an upper bound, too (arXiv 2107.00630).
"""

import contextlib
import math
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.likelihood.dequantization import Cells, Quantization, as_seen, decoded
from sashimi_diffusion.likelihood.estimate import BitsPerSample, checked_audio, estimate_from, required_labels
from sashimi_diffusion.likelihood.flow_ode import FlowField, Integrator, State, position_of
from sashimi_diffusion.pipelines.labels import Labels
from sashimi_diffusion.pipelines.mel import checked_mel
from sashimi_diffusion.pipelines.memory import require_call_memory
from sashimi_diffusion.pipelines.prediction import Prediction
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.schedulers.noise_paths import (
    NoisePath,
    distilled_steps,
    noise_path,
    require_objective,
    signal_and_deviation,
)

DEQUANTIZATIONS = ("uniform", "variational")


def bits_per_sample(
    pipe: SashimiPipeline,
    audio: np.ndarray | Tensor,
    method: str = "rk45",
    hutchinson: int = 1,
    draws: int = 1,
    *,
    class_labels: Labels | None = None,
    speaker_labels: Labels | None = None,
    mel: Tensor | None = None,
    quantization: Quantization | str = "pcm",
    dequantization: str = "uniform",
    gain: float | Tensor = 1.0,
    lowest_level: float | None = None,
    steps: int = 64,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    generator: torch.Generator | None = None,
) -> BitsPerSample:
    """Return the bits per sample of recordings under the probability-flow ODE of a diffusion model.

    Args:
        pipe: the pipeline. The result depends on the model and on its training objective, not on the timesteps that a
            scheduler visits. There is no guidance.
        audio: recordings at the sample rate of the model, (L,), (B, L) or (B, C, L), full scale is 1. L is a multiple
            of ``model.length_multiple``.
        method: "rk45" or "heun", see :class:`~sashimi_diffusion.likelihood.Integrator`.
        hutchinson: probes of the trace for each draw. Each one costs a backward pass.
        draws: draws of the dequantization, each with an own solution of the ODE.
        class_labels, speaker_labels, mel: as in a call of the pipeline. A model with labels needs them.
        quantization: a :class:`~sashimi_diffusion.likelihood.Quantization`, or its kind: "pcm" with 16 bits, "mu-law"
            or "linear" with 8 bits.
        dequantization: "uniform" or "variational", see the top of this file.
        gain: factor of the recordings before the model sees them, one or (B,), for a model whose training recordings
            were scaled. The quantization is that of the recordings without it.
        lowest_level: noise level at which the ODE begins; None is the smallest one of the training schedule.
        steps, rtol, atol: see :class:`~sashimi_diffusion.likelihood.Integrator`.
        generator: source of the draws and the probes, on the CPU; None is torch's global generator.

    Raises:
        UserError: arguments that do not fit the model or each other, or an error of the integrator.

    Example:
        >>> pipe = SashimiPipeline.from_pretrained("sashimi-digits")
        >>> recording = torch.zeros(1, 1, 5120)
        >>> estimate = bits_per_sample(pipe, recording, "heun", steps=8, class_labels=3, speaker_labels="theo")
    """
    integrator = Integrator(method, steps, rtol, atol)
    if dequantization not in DEQUANTIZATIONS:
        raise UserError(f"dequantization is {dequantization!r}, expected one of {', '.join(DEQUANTIZATIONS)}")
    for name, count in (("hutchinson", hutchinson), ("draws", draws)):
        if type(count) is not int or not 1 <= count <= 10_000:
            raise UserError(f"{name} is {count!r}, expected a whole number from 1 to 10000")
    recordings = _Recordings(pipe, audio, class_labels, speaker_labels, mel, quantization, gain, generator)
    path, device = recordings.path, recordings.device
    start = path.lowest if lowest_level is None else lowest_level
    if not isinstance(start, numbers.Real) or not 0 < start < path.highest:
        raise UserError(f"lowest_level is {start!r}, expected a noise level above 0 and below {path.highest:g}")
    level = torch.tensor(start, dtype=torch.float64, device=device)
    signal, _ = signal_and_deviation(level)
    results, total = [], 0
    with _constant(pipe.model):
        for _ in range(draws):
            if dequantization == "uniform":
                z, cost = recordings.uniform(generator)
            else:
                noise = _normal(recordings.shape, generator).to(device)
                z = recordings.seen.value + level * noise
                cost = -_normal_nats(noise) - recordings.samples * math.log(start)
            probes = _signs((hutchinson, *recordings.shape), generator).to(device)
            field = FlowField(recordings.predict, path, probes)
            x = (signal * z).float()
            if dequantization == "variational":
                cost = cost - decoded(recordings.seen, _denoised(field, x, level))
            begin = State(x, torch.zeros(probes.shape[:2], dtype=torch.float64, device=device))
            end, evaluations = integrator.solve(field, begin, position_of(start), position_of(path.highest))
            total += evaluations
            density = end.trace - _normal_nats(end.x) + recordings.samples * signal.log()  # (probes, B)
            results.append(cost - density)
    return estimate_from(torch.stack(results), recordings.samples, total)


def variational_bound(
    pipe: SashimiPipeline,
    audio: np.ndarray | Tensor,
    draws: int = 16,
    *,
    class_labels: Labels | None = None,
    speaker_labels: Labels | None = None,
    mel: Tensor | None = None,
    quantization: Quantization | str = "pcm",
    gain: float | Tensor = 1.0,
    generator: torch.Generator | None = None,
) -> BitsPerSample:
    """Return the variational bound of the training schedule, in bits per sample (arXiv 2107.00630, eq. 11).

    It is the sum of the losses of all noise levels, with the weights of the likelihood, of which each draw estimates
    one; of the cost of the noisiest level; and of the cost of the recordings, given the least noisy level. A draw costs
    two evaluations of the network, so the bound is cheap, and it is not below the likelihood.

    Args:
        pipe, audio, class_labels, speaker_labels, mel, quantization, gain, generator: see :func:`bits_per_sample`.
        draws: draws of a noise level, spread evenly over all levels, and of noise.

    Raises:
        UserError: arguments that do not fit the model or each other.
    """
    if type(draws) is not int or not 1 <= draws <= 1_000_000:
        raise UserError(f"draws is {draws!r}, expected a whole number from 1 to 1000000")
    recordings = _Recordings(pipe, audio, class_labels, speaker_labels, mel, quantization, gain, generator)
    field = FlowField(recordings.predict, recordings.path, torch.empty(0))
    results = []
    with torch.no_grad(), _constant(pipe.model):
        for draw in range(draws):
            offset = float(torch.rand((), generator=generator, dtype=torch.float64))
            noises = [_normal(recordings.shape, generator).to(recordings.device) for _ in range(2)]
            share = torch.full((recordings.shape[0],), (draw + offset) / draws, dtype=torch.float64)
            results.append(bound_nats(field, recordings.path, recordings.seen, share, (noises[0], noises[1])))
    return estimate_from(torch.stack(results).unsqueeze(1), recordings.samples, 2 * draws)


def bound_nats(field: FlowField, path: NoisePath, seen: Cells, share: Tensor, noises: tuple[Tensor, Tensor]) -> Tensor:
    """Return an unbiased estimate of the variational bound of each waveform in nats, float64 (B,).

    Args:
        field: gives the velocity.
        path: noise path of the model; the levels of the bound are those of its ladder.
        seen: the recordings as the model sees them.
        share: number in [0, 1) that selects the noise level of each waveform, float64 (B,); uniform numbers make the
            estimate unbiased.
        noises: standard normal noise for this level and for the lowest one, each (B, C, L).
    """
    ladder, waveform = path.ladder.to(share.device), seen.value

    def denoised(level: Tensor, noise: Tensor) -> Tensor:
        level = level.to(waveform.device)
        signal, _ = signal_and_deviation(level)
        return _denoised(field, (signal * (waveform + level * noise)).float(), level)

    highest = ladder[-1].to(waveform.device)
    signal, deviation = signal_and_deviation(highest)
    excess = signal**2 * waveform.square() + deviation**2 - 1 - 2 * deviation.log()
    nats = excess.sum(dim=(1, 2)) / 2 - decoded(seen, denoised(ladder[0].reshape(1, 1, 1), noises[1]))
    if len(ladder) == 1:
        return nats
    weights = ladder[:-1] ** -2 - ladder[1:] ** -2
    # Levels are drawn in proportion to their terms for white noise of unit variance, which vary by orders of magnitude.
    chances = weights / (1 + ladder[1:] ** -2)
    chances = chances / chances.sum()
    index = torch.searchsorted(chances.cumsum(dim=0), share, right=True).clamp(max=len(weights) - 1)
    error = (waveform - denoised(ladder[1:][index].reshape(-1, 1, 1), noises[0])).square().sum(dim=(1, 2))
    return nats + (weights / chances)[index].to(waveform.device) / 2 * error


class _Recordings:
    """Recordings with their conditions under a model.

    Attributes:
        seen: their cells, as the model sees them.
        samples: samples of a recording over all channels.
        predict: the output of the network as a function of its input and its timestep.
    """

    def __init__(
        self,
        pipe: SashimiPipeline,
        audio: np.ndarray | Tensor,
        class_labels: Labels | None,
        speaker_labels: Labels | None,
        mel: Tensor | None,
        quantization: Quantization | str,
        gain: float | Tensor,
        generator: torch.Generator | None,
    ) -> None:
        config = pipe.model.config
        require_objective(config, pipe.scheduler)
        if distilled_steps(pipe.scheduler.config) is not None:
            raise UserError("a model that was distilled to few steps has no likelihood: use its teacher")
        if config.get("mel_whitening", False):
            raise UserError(
                "a vocoder with mel_whitening has no likelihood, because its whitening is no invertible map: use one "
                "without it"
            )
        self.device, self.path = pipe.model.device, noise_path(pipe.scheduler)
        waveform = checked_audio(audio, config.in_channels, pipe.model.length_multiple).to(self.device)
        self.shape, self.samples = waveform.shape, waveform[0].numel()
        require_call_memory(config, len(waveform), waveform.shape[-1], self.device)
        labels = required_labels(config, class_labels, speaker_labels, len(waveform))
        labels = {name: own.to(self.device) for name, own in labels.items()}
        if mel is not None:
            mel = checked_mel(config, mel).to(self.device, pipe.model.dtype)
        self.predict = Prediction(pipe.model, labels, mel).compute
        if isinstance(quantization, str):
            quantization = Quantization(quantization, 16 if quantization == "pcm" else 8)
        if not isinstance(quantization, Quantization):
            raise UserError(f"quantization is {short_form(quantization)}: expected its kind or a Quantization")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise UserError(f"generator is {short_form(generator)}: expected one torch.Generator on the CPU")
        self._cells = quantization.cells(waveform)
        self._gain = _checked_gain(gain, len(waveform)).to(self.device)
        self._emphasis, self._std = config.get("pre_emphasis", 0.0), config.waveform_std
        self.seen = as_seen(self._cells, self._gain, self._emphasis, self._std)

    def uniform(self, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Return waveforms from the cells, as the model sees them, and the nats to add to -log density, (B,)."""
        cells = self._cells
        places = torch.rand(self.shape, generator=generator, dtype=torch.float64).to(self.device)
        widths = cells.upper - cells.lower
        drawn = Cells(cells.lower, cells.upper, cells.lower + places * widths)
        # Pre-emphasis has determinant 1. In the scale of the model, cells are wider by gain / waveform_std.
        cost = -(widths * self._gain / self._std).log().sum(dim=(1, 2))
        return as_seen(drawn, self._gain, self._emphasis, self._std).value, cost


def _denoised(field: FlowField, x: Tensor, level: Tensor) -> Tensor:
    """Return the prediction of x_0, float64 (B, C, L), from waveforms x at a level () or (B, 1, 1)."""
    signal, deviation = signal_and_deviation(level)
    with torch.no_grad():
        return signal * x.double() - deviation * field.velocity(x, level).double()


@contextlib.contextmanager
def _constant(model: Any) -> Iterator[None]:
    """Compute no gradients of the parameters, and leave training mode."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        model.train(training)


def _checked_gain(gain: Any, batch_size: int) -> Tensor:
    try:
        gains = torch.as_tensor(gain, dtype=torch.float64).reshape(-1, 1, 1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"gain is {short_form(gain)}: expected a number above 0, or one for each waveform") from error
    if len(gains) not in (1, batch_size) or not (gains.isfinite() & (gains > 0)).all():
        raise UserError(
            f"gain has {len(gains)} values: expected one above 0, or one for each of {batch_size} waveforms"
        )
    return gains


def _normal(shape: torch.Size, generator: torch.Generator | None) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _signs(shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    """Return random signs, whose outer product has the identity as its mean with the least variance."""
    return torch.randint(0, 2, shape, generator=generator).float() * 2 - 1


def _normal_nats(x: Tensor) -> Tensor:
    """Return -log density of waveforms under the standard normal distribution, float64 (B,)."""
    return (x.double().square() + math.log(2 * math.pi)).sum(dim=(1, 2)) / 2
