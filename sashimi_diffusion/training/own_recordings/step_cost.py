"""Measure the time and the memory of training steps on the device of a run."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from sashimi_diffusion.schedulers.diffwave import DiffWaveScheduler
from sashimi_diffusion.training.accelerator import available_cores
from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.autoregressive.task import NextTokenLoss
from sashimi_diffusion.training.config import RunConfig, with_measured
from sashimi_diffusion.training.diffusion.batches import Batch
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import create_model, diffusion_losses
from sashimi_diffusion.training.ema import Ema
from sashimi_diffusion.training.execution import enable_gradient_checkpointing
from sashimi_diffusion.training.optimizer import create_optimizer, gradient_norm, parts_of, set_learning_rate

_BATCHES = (1, 4)  # batch sizes that are measured; time and memory of others are on the line through them
_LONG_ENOUGH = 0.5  # seconds of measured steps
_LONG_STEP = 5.0  # seconds of a step that is not repeated


@dataclass(frozen=True)
class Cost:
    """Time and memory of a training step as linear functions of the batch size.

    Args:
        seconds: seconds of a step without an example, and of each example.
        memory: bytes of the weights, the optimizer and a step without an example, and of each example.
        parameters: number of parameters of the network.
    """

    seconds: tuple[float, float]
    memory: tuple[float, float]
    parameters: int

    def seconds_of(self, batch_size: int) -> float:
        """Return the seconds of a step."""
        return self.seconds[0] + self.seconds[1] * batch_size

    def memory_of(self, batch_size: int) -> float:
        """Return the bytes of a step, together with weights and optimizer."""
        return self.memory[0] + self.memory[1] * batch_size


class OutOfMemory(Exception):
    """The memory of the device is not enough for a step with one example."""


def measure_step(
    config: RunConfig, class_names: Sequence[str], speaker_names: Sequence[str], device: torch.device
) -> Cost:
    """Take training steps of the network of ``config`` on random examples, with two batch sizes.

    Noise has the shape of the recordings, so they need not be decoded for the measurement. The state of the random
    number generators and the number of threads are not changed.

    Raises:
        OutOfMemory: the memory of a GPU is not enough.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _threads_of_a_run(device):
        step = TrialStep(config, class_names, speaker_names, device)
        seconds, memory = [], []
        for batch_size in _BATCHES:
            try:
                seconds.append(step.seconds(batch_size))
                memory.append(step.memory(batch_size))
            except torch.OutOfMemoryError:
                break
    if not memory:
        raise OutOfMemory
    parameters = sum(parameter.numel() for parameter in step.network.parameters())
    return Cost(_line(seconds[: len(memory)]), _line(memory), parameters)


def _line(values: Sequence[float]) -> tuple[float, float]:
    """Return the values for no example and for each further example, from the values for ``_BATCHES``.

    Without a value for the larger batch, for which the memory was not enough, everything counts for each example.
    """
    if len(values) == 1:
        return 0.0, values[0] / _BATCHES[0]
    slope = max(0.0, (values[1] - values[0]) / (_BATCHES[1] - _BATCHES[0]))
    return max(0.0, values[0] - slope * _BATCHES[0]), slope


class TrialStep:
    """A training step on random examples: loss, gradient, optimizer and averaged weights."""

    def __init__(
        self, config: RunConfig, class_names: Sequence[str], speaker_names: Sequence[str], device: torch.device
    ) -> None:
        self.config, self.device = config, device
        if isinstance(config, DiffusionConfig):
            with_scale = with_measured(config, {"waveform_std": 1.0})
            self.network = create_model(with_scale, list(class_names) or None, list(speaker_names) or None)
        else:
            data = cast(AutoregressiveConfig, config).data
            sizes = {"sample_rate": data.sample_rate, "sample_size": data.length}
            self.network = config.model.network_class(**sizes, **config.model.arguments)
        self.network.to(device).train()
        if config.training.gradient_checkpointing:
            enable_gradient_checkpointing(self.network)
        self.optimizer = create_optimizer(self.network, config.optimizer)
        set_learning_rate(self.optimizer, 1.0)
        self.ema = Ema(self.network, config.training.ema_decay)

    def seconds(self, batch_size: int) -> float:
        """Return the seconds of a step: the fewest of several, because other programs may take time of the device."""
        seconds = [self._run(batch_size)]
        if seconds[0] < _LONG_STEP:  # the first step takes longer than the others
            seconds = [self._run(batch_size)]
            while sum(seconds) < _LONG_ENOUGH:
                seconds.append(self._run(batch_size))
        return min(seconds)

    def memory(self, batch_size: int) -> float:
        """Return the bytes that a step needs: on a GPU those of the allocator, on a CPU those that can be counted.

        Counted are weights, their averages, gradients, the state of the optimizer, and what the backward pass keeps.
        """
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._run(batch_size)
            return float(torch.cuda.max_memory_allocated(self.device))
        weights = sum(parameter.nbytes for parameter in self.network.parameters())
        state = sum(
            tensor.nbytes
            for part in parts_of(self.optimizer)
            for tensors in part.state.values()
            for tensor in tensors.values()
            if isinstance(tensor, Tensor)
        )
        return float(3 * weights + state + self._kept_bytes(batch_size))

    def _kept_bytes(self, batch_size: int) -> int:
        """Return the bytes of the tensors, other than weights, that the loss keeps for its backward pass."""
        weights = {parameter.untyped_storage().data_ptr() for parameter in self.network.parameters()}
        kept: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = self._loss(batch_size)
        del loss
        return sum(kept.values())

    def _run(self, batch_size: int) -> float:
        started = time.monotonic()
        self.optimizer.zero_grad(set_to_none=True)
        self._loss(batch_size).backward()
        gradient_norm(self.network).item()  # waits for the device, as reading any value does
        self.optimizer.step()
        self.ema.update(self.network)
        return time.monotonic() - started

    def _loss(self, batch_size: int) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, self.config.training.mixed_precision == "bf16"):
            diffusion = isinstance(self.config, DiffusionConfig)
            return self._diffusion_loss(batch_size) if diffusion else self._autoregressive_loss(batch_size)

    def _diffusion_loss(self, batch_size: int) -> Tensor:
        config, model, device = cast(DiffusionConfig, self.config), self.network.config, self.device
        shape = (batch_size, model.in_channels, config.data.length)
        classes, speakers = (
            None if number is None else torch.zeros(batch_size, dtype=torch.int64, device=device)
            for number in (model.num_classes, model.num_speakers)
        )
        timesteps = torch.randint(config.schedule.num_train_timesteps, (batch_size,), device=device)
        waveform, noise = torch.randn(shape, device=device), torch.randn(shape, device=device)
        batch = Batch(waveform, noise, timesteps, classes, None, speakers)
        scheduler = DiffWaveScheduler(**config.schedule.model_dump())
        return diffusion_losses(self.network, scheduler, batch, config.objective.min_snr_gamma).mean()

    def _autoregressive_loss(self, batch_size: int) -> Tensor:
        shape = (batch_size, self.config.data.length)  # type: ignore[attr-defined]
        tokens = torch.randint(self.network.config.num_tokens, shape, device=self.device)
        return NextTokenLoss(self.network)(tokens, tokens, False, None)[0] / tokens.numel()


@contextlib.contextmanager
def _threads_of_a_run(device: torch.device) -> Iterator[None]:
    """Use all cores, as a run on a CPU does."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(available_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)
