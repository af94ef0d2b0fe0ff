"""The model's prediction in a sampling loop: with classifier-free guidance, and replayed as a CUDA graph.

A CUDA graph runs the same kernels on the same memory. The noisy sample, the timestep, the labels and the mel are
therefore copied into fixed buffers, and the prediction is read from one.

Two graphs are recorded. The first one also computes everything that depends only on the parameters, such as convolution
kernels; the second one reads these values. A pipeline call replays the first graph for its first step and the second
one for the others, so it always uses the current parameters.
"""

import numbers
import warnings
from collections.abc import Callable, Hashable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.cuda_graph import record_cuda_graphs
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.adapters import LoraAdapters
from sashimi_diffusion.pipelines.labels import null_labels
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.ssm.cache import drop_values
from sashimi_diffusion.terminal import first_line

MAX_RECORDINGS = 4
"""Recordings that a pipeline keeps. Each one occupies the memory of one forward pass."""

MAX_GUIDANCE_SCALE = 1e6
"""Larger scales of classifier-free guidance exceed the range of float32 during sampling."""

Record = Callable[..., list[Callable[[], None]]]


class Prediction:
    """The prediction of a model under the conditions of one pipeline call.

    Args:
        model: a denoiser.
        labels: its label arguments, int64 (B,).
        mel: log-mel spectrograms, (B, mel_channels, frames), or None.
        guidance_scale: scale of classifier-free guidance; 1 is no guidance.
    """

    def __init__(
        self, model: Any, labels: Mapping[str, Tensor], mel: Tensor | None, guidance_scale: float = 1.0
    ) -> None:
        self.model, self.guidance_scale = model, guidance_scale
        conditions = dict(labels) if mel is None else {**labels, "mel": mel}
        if guidance_scale != 1:
            # One forward pass of a batch of 2B computes the conditional and the unconditional prediction.
            others = {**conditions, **null_labels(model.config, labels)}
            conditions = {name: torch.cat([own, others[name]]) for name, own in conditions.items()}
        self.conditions = conditions

    def __call__(self, sample: Tensor, timestep: Tensor, mel: Tensor | None = None) -> Tensor:
        """Return the prediction, float32 (B, C, L).

        Args:
            sample: noisy waveforms, float32 (B, C, L).
            timestep: the current timestep on the CPU, ().
            mel: spectrograms that replace those of the constructor, of the same shape; None leaves them.
        """
        return self.compute(sample, torch.full_like(timestep, timestep.item(), device=sample.device), mel)

    def compute(self, sample: Tensor, timestep: Tensor, mel: Tensor | None = None) -> Tensor:
        """Return the prediction, float32 (B, C, L), for a ``timestep`` () on the device of ``sample``."""
        guided = self.guidance_scale != 1
        if guided:
            sample = torch.cat([sample, sample])
        conditions = {"mel": None, **self.conditions}
        if mel is not None:
            conditions["mel"] = torch.cat([mel, mel]) if guided else mel
        prediction = self.model(sample.to(self.model.dtype), timestep.expand(len(sample)), **conditions).sample.float()
        if not guided:
            return prediction
        conditional, unconditional = prediction.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)


class RecordedPrediction:
    """A prediction that replays recordings on fixed buffers.

    Args:
        prediction: what to record. Its conditions become buffers.
        sample: a tensor like the noisy waveforms, (B, C, L).
        timestep: a tensor like the timesteps, ().
        record: records functions on fixed memory one after the other, and returns functions that repeat them.
    """

    def __init__(self, prediction: Prediction, sample: Tensor, timestep: Tensor, record: Record) -> None:
        with torch.inference_mode(False), torch.no_grad():  # tensors that may be written to in every mode
            self._sample, self._prediction = sample.clone(), torch.zeros_like(sample)
            self._timestep = torch.full_like(timestep, timestep.item(), device=sample.device)
            prediction.conditions = {name: own.clone() for name, own in prediction.conditions.items()}
        self._conditions, self._started = prediction.conditions, False

        def step() -> None:
            self._prediction.copy_(prediction.compute(self._sample, self._timestep))

        drop_values(prediction.model)
        step()
        drop_values(prediction.model)
        try:
            with frozen(prediction.model), torch.cuda.device_of(sample):  # the recording is made on the current device
                self._first, self._following = record(step, step)
        finally:
            drop_values(prediction.model)  # until the first replay, they are not computed

    def start(self, conditions: Mapping[str, Tensor]) -> None:
        """Begin a sampling loop with the current parameters and the given conditions."""
        self._started = False
        for name, buffer in self._conditions.items():
            buffer.copy_(conditions[name])

    def __call__(self, sample: Tensor, timestep: Tensor, mel: Tensor | None = None) -> Tensor:
        """Return the prediction as :class:`Prediction` does."""
        for own in () if mel is None else self._conditions["mel"].split(len(mel)):  # two parts with guidance
            own.copy_(mel)
        self._sample.copy_(sample)
        self._timestep.fill_(timestep.item())
        replay = self._following if self._started else self._first
        replay()
        self._started = True
        return self._prediction.clone()  # multistep schedulers keep earlier predictions


class PredictionGraphs:
    """The recorded predictions of a pipeline: one for each shape of the inputs, the last ``MAX_RECORDINGS`` of them.

    Args:
        record: see :class:`RecordedPrediction`.
        device_type: type of the devices on which predictions are recorded.
    """

    def __init__(self, record: Record = record_cuda_graphs, device_type: str = "cuda") -> None:
        self._record, self._device_type = record, device_type
        self._recorded: dict[Hashable, RecordedPrediction | None] = {}  # the latest last; None where recording failed
        self._parameters: Hashable = None
        self._warned = False

    def prepare(self, prediction: Prediction, sample: Tensor, timestep: Tensor) -> Prediction | RecordedPrediction:
        """Return a recording of ``prediction`` for a sampling loop, or ``prediction`` itself if it cannot be recorded.

        The reason is told by one warning; on other devices there is no warning.

        Args:
            prediction: what to record.
            sample: the noisy waveforms, (B, C, L).
            timestep: the first timestep on the CPU, ().
        """
        if sample.device.type != self._device_type:
            self.clear()
            return prediction
        if (reason := _reason_against(prediction.model, self._device_type)) is not None:
            self._warn(reason)
            return prediction
        # A recording reads the parameters where they were.
        tensors = chain(prediction.model.parameters(), prediction.model.buffers())
        adapters = prediction.model.adapter_state() if isinstance(prediction.model, LoraAdapters) else ()
        parameters = (prediction.model.training, adapters, *(tensor.data_ptr() for tensor in tensors))
        if parameters != self._parameters:
            self.clear()
            self._parameters = parameters
        key = _key(prediction, sample, timestep)
        recording = self._recorded.pop(key) if key in self._recorded else self._new(prediction, sample, timestep)
        self._recorded[key] = recording
        if recording is None:
            return prediction
        recording.start(prediction.conditions)
        return recording

    def clear(self) -> None:
        """Drop all recordings and free their memory."""
        self._recorded.clear()

    def _new(self, prediction: Prediction, sample: Tensor, timestep: Tensor) -> RecordedPrediction | None:
        if len(self._recorded) == MAX_RECORDINGS:
            del self._recorded[next(iter(self._recorded))]
        try:
            return RecordedPrediction(prediction, sample, timestep, self._record)
        except RuntimeError as error:
            self._warn(f"{type(prediction.model).__name__} cannot be recorded ({first_line(error)})")
            return None

    def _warn(self, reason: str) -> None:
        if not self._warned:
            warnings.warn(
                f"{reason}: sampling does not use a CUDA graph and is slower; cuda_graph = False silences this",
                stacklevel=5,
            )
        self._warned = True

    def __reduce__(self) -> tuple[type, tuple]:
        """Copy and pickle a pipeline without its recordings."""
        return PredictionGraphs, ()


def model_input(scheduler: Any, latents: Tensor, timestep: Tensor) -> Tensor:
    """Return what the network gets for noisy waveforms; flow matching does not scale them."""
    if not hasattr(scheduler, "scale_model_input"):
        return latents
    scaled: Tensor = scheduler.scale_model_input(latents, timestep)
    return scaled


def checked_scale(scale: Any) -> float:
    """Return a scale of classifier-free guidance.

    Raises:
        UserError: the scale is not a number, or beyond ``MAX_GUIDANCE_SCALE``.
    """
    number = isinstance(scale, numbers.Real) and not isinstance(scale, bool)
    if not (number and abs(scale) <= MAX_GUIDANCE_SCALE):
        shown = f"{scale:g}" if isinstance(scale, float) else short_form(scale)
        limits = f"{-MAX_GUIDANCE_SCALE:g} to {MAX_GUIDANCE_SCALE:g}"
        raise UserError(f"guidance_scale is {shown}, expected a number from {limits}")
    return float(scale)


def _key(prediction: Prediction, sample: Tensor, timestep: Tensor) -> Hashable:
    """Return everything that differs between two recordings of a model."""
    autocast = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda")
    shapes = tuple((name, own.shape, own.dtype) for name, own in sorted(prediction.conditions.items()))
    return id(prediction.model), autocast, prediction.guidance_scale, shapes, sample.shape, timestep.dtype


def _reason_against(model: nn.Module, device_type: str) -> str | None:
    """Return why predictions of this model are not recorded, or None."""
    for part in model.modules():
        # A recording runs neither the hooks that move offloaded weights nor those of the user.
        if hasattr(part, "_hf_hook") or hasattr(part, "_diffusers_hook"):
            return "the model is offloaded or has other hooks of accelerate or diffusers"
        if part._forward_hooks or part._forward_pre_hooks:
            return "the model has forward hooks"
    if any(tensor.device.type != device_type for tensor in chain(model.parameters(), model.buffers())):
        return f"not all parameters of the model are on the {device_type} device"
    return None
