"""CUDA graphs: a function that works on fixed memory is recorded once and replayed without Python."""

from collections.abc import Callable

import torch


def record_cuda_graph(step: Callable[[], None]) -> Callable[[], None]:
    """Record ``step`` as a CUDA graph and return a function that replays it.

    The recording runs no kernel. Other threads may use the device at the same time. Call ``step`` with
    :func:`run_on_side_stream` before, so that kernels are compiled and caches are filled.

    Args:
        step: function that reads and writes tensors of fixed addresses and waits for no value of the device.

    Raises:
        RuntimeError: ``step`` cannot be recorded.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
        step()
    return graph.replay


def run_on_side_stream(step: Callable[[], None]) -> None:
    """Run ``step`` on a stream of its own, as PyTorch requires before the recording of a backward pass."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
