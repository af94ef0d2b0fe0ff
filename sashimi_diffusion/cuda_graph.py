"""Record functions on fixed memory as CUDA graphs, which start many kernels at once."""

import functools
from collections.abc import Callable

import torch


def record_cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Record ``step`` as a CUDA graph and return a function that replays it; see :func:`record_cuda_graphs`."""
    return record_cuda_graphs(step)[0]


def record_cuda_graphs(*steps: Callable[[], None]) -> list[Callable[[], None]]:
    """Record functions one after the other as CUDA graphs, and return functions that replay them.

    A recording does not run its kernels. A replay runs them on the same memory, so inputs and outputs must be in
    tensors that exist before and after. Run a step once before it is recorded: its first run compiles kernels.

    The graphs share one memory pool. A later graph may read tensors of an earlier one that Python still refers to while
    the later one is recorded. Therefore replay them on one stream, the first one first.

    Raises:
        RuntimeError: a step waits for the device or does something else that cannot be recorded.
    """
    current, pool = torch.cuda.current_stream(), torch.cuda.graph_pool_handle()
    side = _side_stream(current.device)
    side.wait_stream(current)
    replays: list[Callable[[], None]] = []
    for step in steps:
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those that pin memory, may use CUDA meanwhile.
        recording = torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local")
        try:
            with recording, _uncached_autocast():
                step()
        except RuntimeError as error:
            # After an error, PyTorch neither restores the stream nor raises the error that caused it.
            torch.cuda.set_stream(current)
            if isinstance(error.__context__, RuntimeError):
                raise error.__context__ from None
            raise
        replays.append(graph.replay)
    return replays


def _uncached_autocast() -> torch.autocast:
    """Return a context in which autocast, if it is enabled, does not use weights that it cast before.

    Their memory is freed at the end of the enclosing autocast context.
    """
    return torch.autocast(
        "cuda", torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda"), cache_enabled=False
    )


def run_on_side_stream(step: Callable[[], None]) -> None:
    """Run ``step`` on a stream of its own, as PyTorch requires before the recording of a backward pass."""
    side = _side_stream(torch.cuda.current_device())
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)


@functools.cache
def _side_stream(device: torch.device | int) -> torch.cuda.Stream:
    """Return the stream of a device for recordings; PyTorch keeps a workspace for matrix products per stream."""
    return torch.cuda.Stream(device)
