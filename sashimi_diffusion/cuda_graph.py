"""Record functions on fixed memory as CUDA graphs, which start many kernels at once."""

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
    side, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()
    side.wait_stream(torch.cuda.current_stream())
    replays: list[Callable[[], None]] = []
    for step in steps:
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those that pin memory, may use CUDA meanwhile.
        recording = torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local")
        with recording, _uncached_autocast():
            step()
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
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
