"""Starting Triton kernels, and the description of every form in which they may be started."""

from typing import Any, NamedTuple


class Launch(NamedTuple):
    """One compiled form of a Triton kernel: what ahead-of-time compilation needs to know.

    Args:
        kernel: the function decorated with ``triton.jit``.
        signature: Triton type of every argument that is not a constant, in order: "*fp32", "i32", "fp32", …
        constants: value of every ``tl.constexpr`` argument.
        num_warps, num_stages: launch options.
        matrix: the design wants its products on matrix units (``mma.sync``, ``wgmma``, ``mfma``).
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    matrix: bool


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: dict[str, Any],
    constants: dict[str, Any],
    num_warps: int = 4,
    num_stages: int = 2,
) -> None:
    """Start ``kernel`` on ``grid``; a grid with an empty axis has nothing to do."""
    if 0 in grid:
        return
    kernel[grid](**arguments, **constants, num_warps=num_warps, num_stages=num_stages)
