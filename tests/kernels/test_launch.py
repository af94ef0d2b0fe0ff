"""Tests of starting kernels and recording launches."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("triton", reason="the triton package is not installed")

from sashimi_kernels.triton_backend.launch import Launch, launch, recording


class Kernel:
    """Replacement of a kernel that records how it was started."""

    __name__ = "kernel"

    def __init__(self) -> None:
        self.calls: list = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda **arguments: self.calls.append((grid, arguments))


def test_arguments_constants_and_options_reach_the_kernel() -> None:
    kernel, x = Kernel(), torch.zeros(2)
    launch(kernel, (3, 1), {"x_ptr": x, "n": 2}, {"BLOCK": 16}, num_warps=8, num_stages=1)
    assert kernel.calls == [((3, 1), {"x_ptr": x, "n": 2, "BLOCK": 16, "num_warps": 8, "num_stages": 1})]


def test_an_empty_grid_starts_nothing() -> None:
    kernel = Kernel()
    with recording() as started:
        launch(kernel, (3, 0), {"x_ptr": torch.zeros(0)}, {})
    assert kernel.calls == started == []


def test_recordings_contain_types_and_can_be_nested() -> None:
    kernel = Kernel()
    tensors = {f"{name}_ptr": torch.zeros(1, dtype=getattr(torch, name)) for name in ("float16", "bfloat16", "float64")}
    arguments = {**tensors, "absent_ptr": None, "n": 3, "stride": 2**31, "epsilon": 0.5, "flag": True}
    with recording() as outer:
        with recording() as inner:
            launch(kernel, (1,), arguments, {"BLOCK": 16})
        launch(kernel, (1,), {"x_ptr": torch.zeros(1)}, {})
    launch(kernel, (1,), {"x_ptr": torch.zeros(1)}, {})
    assert len(outer) == 2
    signature = {"float16_ptr": "*fp16", "bfloat16_ptr": "*bf16", "float64_ptr": "*fp64"}
    signature |= {"n": "i32", "stride": "i64", "epsilon": "fp32", "flag": "u1"}
    assert inner == [Launch(kernel, signature, {"BLOCK": 16, "absent_ptr": None}, 4, 2, matrix=False)]


def test_a_form_does_not_contain_the_design() -> None:
    launched = Launch(Kernel(), {"x_ptr": "*fp32", "n": "i32"}, {"A": 1, "B": None}, 4, 2, matrix=False)
    same = launched._replace(signature={"n": "i32", "x_ptr": "*fp32"}, constants={"B": None, "A": 1}, matrix=True)
    assert launched.form() == same.form() == "kernel(n: i32, x_ptr: *fp32; A=1, B=None; num_warps=4, num_stages=2)"
    others = [launched._replace(num_warps=8), launched._replace(constants={"A": 2, "B": None})]
    assert launched.form() not in {other.form() for other in others}
