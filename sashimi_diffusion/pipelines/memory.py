"""Memory of sampling: an estimate, a check before sampling, an error message, and a measurement."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.memory import available_memory

_ADVICE = "ask for fewer --seconds or a smaller --batch-size"
_PLAN_BYTES = 1000  # of a clip: its seed, file name and measurements
_LEAST = 0.6  # share of the estimate that a call certainly needs
_NOT_CHECKED = 2**28  # bytes; measuring the free memory takes longer than a small call should
_EXHAUSTED = ("out of memory", "can't allocate memory", "not enough memory")


def require_plan_memory(count: int) -> None:
    """Raise UserError if the seeds, names and measurements of ``count`` clips do not fit into main memory."""
    require_memory(count * _PLAN_BYTES, torch.device("cpu"), "ask for fewer --num-samples")


def sampling_memory(config: Mapping[str, Any], batch_size: int, length: int) -> int:
    """Estimate the bytes that a batch needs in addition to the weights.

    For H features and n layers per stage, the estimate is (13 + 8 n) float32 arrays of shape (H, L) for the cached
    kernels, and (9 + 3.5 n) for each waveform. The numbers were fitted to measurements of SaShiMi (H 64 and 128, n 2
    and 6, L 16,000 and 64,000, batches of 1 to 4); the error is less than 20 %. For a WaveNet, n is 0 and H is the
    number of residual channels; the error is less than 33 %.

    Args:
        config: config of the model.
        batch_size: waveforms in one forward pass; with guidance, twice the batch size of the pipeline.
        length: samples per waveform L.
    """
    features = config.get("d_model") or config.get("residual_channels", 0)
    layers = config.get("n_layers", 0) if config.get("d_model") else 0
    layers = layers if isinstance(layers, int) else max(layers)
    return int(4 * features * length * (13 + 8 * layers + (9 + 3.5 * layers) * batch_size))


def require_memory(needed: int, device: torch.device, advice: str = _ADVICE) -> None:
    """Raise UserError with ``advice`` if the device has fewer than ``needed`` bytes of free memory."""
    available = available_memory(device)
    if available is not None and needed > available:
        raise UserError(
            f"this takes about {needed / 2**30:.1f} GiB of memory, and {max(available, 0) / 2**30:.1f} GiB are free: "
            f"{advice}"
        )


def require_call_memory(
    config: Mapping[str, Any], count: int, length: int | None, device: torch.device, held: int = 0
) -> None:
    """Check before anything is allocated that a call of a pipeline is not hopeless.

    The limit is lower than the estimate: a call that needs slightly more than the free memory may succeed.

    Args:
        config: config of the model.
        count: waveforms.
        length: samples per waveform; None if not known.
        device: of the model.
        held: samples of all waveforms, if the ``count`` waveforms are windows of them.

    Raises:
        UserError: the call needs more memory than is free.
    """
    advice = "ask for fewer or shorter waveforms in one call"
    plan = count * _PLAN_BYTES
    if plan > _NOT_CHECKED:
        require_memory(plan, torch.device("cpu"), advice)
    if length is not None:
        least = int(_LEAST * sampling_memory(config, count, length)) + 8 * count * length  # the noise and the waveforms
        least += 12 * held  # the same, and their prediction
        if least > _NOT_CHECKED:
            require_memory(least, device, advice)


@contextlib.contextmanager
def report_out_of_memory(advice: str = _ADVICE) -> Iterator[None]:
    """Turn an out-of-memory error in the block into a UserError with ``advice``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(text in str(error) for text in _EXHAUSTED):
            raise UserError(f"out of memory: {advice}") from error
        raise


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory of this process in bytes: on a CUDA device, or else in main memory; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # on Windows
        return None
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if psutil.MACOS else 1024)
