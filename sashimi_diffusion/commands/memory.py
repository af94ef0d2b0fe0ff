"""How much memory sampling takes, how much there is, and what to say when it ran out."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.memory import available_memory

_ADVICE = "ask for fewer --seconds or a smaller --batch-size"
_EXHAUSTED = ("out of memory", "can't allocate memory", "not enough memory")


def sampling_memory(config: Mapping[str, Any], batch_size: int, length: int) -> int:
    """Estimate the bytes that generating a batch takes beyond the weights, from two numbers of the model.

    With H features and n layers per stage, (13 + 8 n) copies of a float32 (H, L) for the kernels that are kept, and
    (9 + 3.5 n) for each waveform of the batch: fitted to measurements of SaShiMi (H 64 and 128, n 2 and 6, L 16,000 and
    64,000, batches of 1 to 4), within a fifth. A WaveNet counts as n = 0 with its residual channels, within a third.

    Args:
        config: the model's config.
        batch_size: waveforms per forward (twice as many with guidance).
        length: samples per waveform L.
    """
    features = config.get("d_model") or config.get("residual_channels", 0)
    layers = config["n_layers"] if config.get("d_model") else 0
    layers = layers if isinstance(layers, int) else max(layers)
    return int(4 * features * length * (13 + 8 * layers + (9 + 3.5 * layers) * batch_size))


def require_memory(needed: int, device: torch.device) -> None:
    """Raises ``UserError`` where the device has less than ``needed`` bytes left."""
    available = available_memory(device)
    if available is not None and needed > available:
        raise UserError(
            f"this takes about {needed / 2**30:.1f} GiB of memory, and {max(available, 0) / 2**30:.1f} GiB are free: "
            f"{_ADVICE}"
        )


@contextlib.contextmanager
def explained_exhaustion() -> Iterator[None]:
    """Turns running out of memory into a ``UserError``."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(text in str(error) for text in _EXHAUSTED):
            raise UserError(f"out of memory: {_ADVICE}") from error
        raise


def peak_memory(device: torch.device) -> int | None:
    """The most bytes this process has held: on the CUDA device if it is one, else in main memory; ``None``: unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows has no such module.
        return None
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if psutil.MACOS else 1024)
