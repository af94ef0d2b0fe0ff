"""Tests of the counter of launches, bytes, synchronizations and transfers on the device "meta"."""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sashimi_kernels import gated_residual, scalar_norm
from sashimi_kernels.backends import backend_name
from sashimi_kernels.counters import Counter, Counts

META = torch.device("meta")


def meta(*shape: int, dtype: torch.dtype = torch.float32, grad: bool = False) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device=META, requires_grad=grad)


def counted(run: Callable[[], object]) -> Counts:
    with Counter() as counts:
        run()
    return counts


def launches(counts: Counts) -> dict[str, int]:
    return {name: operation.launches for name, operation in counts.operations.items()}


def test_views_and_allocations_launch_nothing() -> None:
    x, z = meta(4, 6), meta(4, 6, dtype=torch.complex64)

    def run() -> None:
        x.view(24), x.T, x.transpose(0, 1), x.expand(2, 4, 6), x[1:, ::2], x.unsqueeze(0), x.unbind(), x.split(2)
        x.unfold(1, 2, 1), x.detach(), x.reshape(3, 8), x.flatten(), x.as_strided((2, 2), (1, 2))
        x.contiguous(), x.to(torch.float32), torch.view_as_real(z), z.real, z.conj()
        torch.empty_like(x), x.new_empty(3), torch.empty(3, device=META)
        torch.zeros(0, device=META), meta(0, 3) + 1, meta(0, 3) @ meta(3, 0)

    counts = counted(run)
    assert (counts.launches, counts.bytes, counts.operations) == (0, 0, {})


def test_launches_and_bytes_of_a_small_function() -> None:
    x, weight, bias = meta(8, 5), meta(3, 5), meta(3)
    counts = counted(lambda: torch.nn.functional.linear(x + 1, weight, bias).relu_().sum())
    assert launches(counts) == {"aten.add": 1, "aten.addmm": 1, "aten.relu": 1, "aten.sum": 1}
    expected = {"aten.add": 80, "aten.addmm": 40 + 15 + 3 + 24, "aten.relu": 48, "aten.sum": 25}  # numbers
    assert {name: operation.bytes for name, operation in counts.operations.items()} == {
        name: 4 * numbers for name, numbers in expected.items()
    }
    assert counts.bytes == 4 * sum(expected.values())
    ((line, operation),) = counts.lines.items()
    assert re.search(r"test_counters\.py:\d+$", line)
    assert (operation.calls, operation.launches, operation.bytes) == (4, 4, counts.bytes)


def test_a_backward_pass_is_counted() -> None:
    x, weight = meta(8, 5), meta(5, 3, grad=True)
    counts = counted(lambda: (x @ weight).square().sum().backward())
    # The gradient of the sum is an expanded one; 2 (x W) is a product with 2 and one with the gradient.
    assert launches(counts) == {"aten.mm": 2, "aten.pow": 2, "aten.sum": 1, "aten.ones_like": 1, "aten.mul": 2}
    assert weight.grad is not None
    nodes = {line.partition(" in ")[2]: operation.launches for line, operation in counts.lines.items()}
    assert nodes == {"": 4, "PowBackward0": 3, "MmBackward0": 1}


def test_memory_that_elements_share_is_read_once() -> None:
    row, series, x = meta(1, 6), meta(10), meta(4, 6)
    assert counted(lambda: row.expand(4, 6).exp()).bytes == 4 * (6 + 24)
    assert counted(lambda: series.unfold(0, 3, 1).exp()).bytes == 4 * (10 + 24)
    assert counted(lambda: x.mul(x)).bytes == 4 * (24 + 24)


def test_operations_in_place_read_and_write_and_copies_only_write() -> None:
    x, y = meta(10), meta(10)
    assert counted(lambda: x.add_(y)).bytes == 4 * 30
    assert counted(lambda: x.copy_(y)).bytes == 4 * 20
    assert counted(lambda: x.zero_()).bytes == 4 * 10
    assert counted(lambda: torch.exp(y, out=x)).bytes == 4 * 20


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda x: torch.nn.functional.pad(x, (0, 3)), 2),
        (lambda x: torch.nn.functional.pad(x, (0, -1)), 1),
        (lambda x: torch.fft.rfft(x), 2),
        (lambda x: torch.fft.rfft(x.T), 3),
        (lambda x: torch.fft.rfft(x, norm="forward"), 3),
        (lambda x: torch.fft.rfft(x, n=32000), 2 + 3),
        (lambda x: torch.fft.irfft(torch.complex(x, x), n=6, norm="forward"), 1 + 3),
        (lambda x: torch.cat([x] * 129), 2),
        (lambda x: torch.baddbmm(x.unsqueeze(0), meta(1, 4, 2), meta(1, 2, 6)), 2),
        (lambda x: meta(4, 5, 6)[:, ::2, ::2] @ meta(4, 3, 2), 2),
        (lambda x: x[torch.arange(2, device=META)], 2),
        (lambda x: torch._weight_norm(x, meta(4, 1), 0), 1),
    ],
)
def test_operations_of_several_kernels(run: Callable[[Tensor], Tensor], expected: int) -> None:
    x = meta(4, 6)
    assert counted(lambda: run(x)).launches == expected


def test_multi_tensor_operations() -> None:
    small, large = [meta(3) for _ in range(111)], [meta(321 * 65536)]
    assert counted(lambda: torch._foreach_mul_(small, 2.0)).launches == 2  # 110 tensors per launch
    assert counted(lambda: torch._foreach_lerp_(small, small, 0.5)).launches == 2  # 64 per launch
    assert counted(lambda: torch._foreach_add(small, small)).launches == 3  # 48 per launch
    assert counted(lambda: torch._foreach_mul_(large, 2.0)).launches == 2  # 320 blocks of 65536 numbers per launch
    assert counted(lambda: torch._foreach_norm(small)).launches == 4
    assert counted(lambda: torch._foreach_mul_([meta(3), meta(3, dtype=torch.float64)], 2.0)).launches == 2
    assert counted(lambda: torch._foreach_copy_([meta(3)] * 2, [meta(3, dtype=torch.float64)] * 2)).launches == 1
    assert counted(lambda: torch._foreach_add_([meta(2, 3)] * 5, [meta(3, 2).T] * 5)).launches == 5
    assert counted(lambda: torch._foreach_add_([meta(1, 3)] * 5, [meta(3, 1).T] * 5)).launches == 1


def test_the_fused_optimizer_is_one_launch_and_reads_four_lists() -> None:
    tensors = [[meta(7)] for _ in range(4)]
    options = {"lr": torch.empty((), device=META), "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.0, "eps": 1e-8}

    def run() -> None:
        torch._fused_adamw_(*tensors, [], [torch.empty((), device=META)], **options, amsgrad=False, maximize=False)

    counts = counted(run)
    assert counts.launches == 1
    assert counts.bytes == 4 * (7 * 4 * 2 + 1 + 1)  # the number of steps and the rate are only read


def test_tensors_on_the_cpu_are_not_counted() -> None:
    x = torch.ones(3)
    counts = counted(lambda: (x + 1).sum().item())
    assert counts == Counts()


def test_kernels_of_triton_are_counted_in_both_directions() -> None:
    pytest.importorskip("triton", reason="the triton package is not installed")
    x, residual = meta(2, 8, 5, grad=True), meta(2, 4, 5)
    counts = counted(lambda: gated_residual(x, residual, backend="triton").backward(meta(2, 4, 5)))
    assert launches(counts) == {"triton.gated_residual_kernel": 1, "triton.gated_residual_backward_kernel": 1}
    assert [operation.bytes for operation in counts.operations.values()] == [4 * (80 + 40 + 40), 4 * (40 + 80 + 80)]
    assert x.grad is not None
    assert x.grad.shape == x.shape


def test_operations_inside_custom_operations_are_counted() -> None:
    pytest.importorskip("triton", reason="the triton package is not installed")
    x, gain, shift, bias = meta(2, 8, 5), meta(1), meta(1), meta(8, 2).T
    counts = counted(lambda: scalar_norm(x, gain, shift, bias, backend="triton"))
    assert launches(counts) == {"aten.clone": 1, "triton.channel_norm_kernel": 1}


def test_the_triton_backend_is_selected_on_meta_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="the triton package is not installed")
    monkeypatch.delenv("SASHIMI_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert backend_name("auto", META, "scalar_norm") == "torch"
    assert backend_name("triton", META, "scalar_norm") == "triton"
    monkeypatch.setenv("SASHIMI_KERNELS", "triton")
    assert backend_name("auto", META, "scalar_norm") == "triton"


@pytest.mark.parametrize(
    ("read", "value"),
    [
        (lambda x: x.sum().item(), 1.0),
        (lambda x: bool((x > 0).all()), True),
        (lambda x: float(x[0]), 1.0),
        (lambda x: x.tolist(), [1.0, 1.0, 1.0]),
        (lambda x: x.cpu().tolist(), [1.0, 1.0, 1.0]),
        (lambda x: x.to("cpu", torch.int64).tolist(), [1, 1, 1]),
        (lambda x: torch.zeros(3).copy_(x).tolist(), [1.0, 1.0, 1.0]),
        (lambda x: torch.equal(x, x), True),
        (lambda x: torch.allclose(x, x), True),
    ],
)
def test_a_synchronization_is_found_with_its_place(read: Callable[[Tensor], object], value: object) -> None:
    x = meta(3)
    with Counter() as counts:
        assert read(x) == value
    (text,) = counts.synchronizations
    line = read.__code__.co_firstlineno
    assert text.endswith(f"test_counters.py:{line}"), text


def test_a_comparison_is_two_kernels() -> None:
    x = meta(3)
    assert launches(counted(lambda: torch.equal(x, x))) == {"aten.equal": 2}


@pytest.mark.parametrize(
    "run", [torch.nonzero, torch.unique, lambda x: x[x > 0], lambda x: torch.masked_select(x, x > 0)]
)
def test_a_size_that_depends_on_values_is_refused(run: Callable[[Tensor], Tensor]) -> None:
    x = meta(3)
    with pytest.raises(RuntimeError, match=r"at \S*test_counters\.py:\d+ waits for the device") as caught, Counter():
        run(x)
    assert "\n" not in str(caught.value)


def test_transfers_are_found_with_their_place() -> None:
    def run() -> None:
        torch.ones(2, 3).to(META)
        meta(5).copy_(torch.ones(5))
        torch.ones(4).to(META, non_blocking=True)
        torch.tensor([1, 2], device=META)
        torch.as_tensor(3.0, device=META)
        torch.as_tensor(meta(2), dtype=torch.float64)
        meta(3) + torch.tensor(2.0)  # a number on the CPU is an argument of the kernel

    counts = counted(run)
    found = [re.sub(r" at \S*test_counters\.py:", " at ", text) for text in counts.transfers]
    first = run.__code__.co_firstlineno
    assert found == [
        f"blocking copy of (2, 3) at {first + 1}",
        f"blocking copy of (5,) at {first + 2}",
        f"copy of (4,) at {first + 3}",
        f"(2,) from Python numbers at {first + 4}",
        f"() from Python numbers at {first + 5}",
    ]
    assert counts.synchronizations == []
    assert launches(counts) == {"aten._to_copy": 1, "aten.add": 1}


def test_functions_of_pytorch_are_restored() -> None:
    names = ("autocast", "is_autocast_enabled", "get_autocast_dtype")
    before = [getattr(torch, name) for name in names]
    with Counter():
        assert torch.autocast is not before[0]
    with pytest.raises(RuntimeError), Counter():
        torch.nonzero(meta(3))
    assert [getattr(torch, name) for name in names] == before
    assert not torch.amp.is_autocast_available("meta")


class MatrixProducts(nn.Module):
    """Every kind of matrix product, with a weight that is used twice, as itself and as a view."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(4, 4, device=device), nn.Conv1d(3, 3, 1, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Map (3, 4) to (3, 4)."""
        x = self.linear(self.linear(x).relu()) + self.conv(x)
        x = x @ self.linear.weight.T + torch.addmm(x, x, self.linear.weight[:])
        with torch.autocast(x.device.type, enabled=False):
            x = x.float() @ self.linear.weight
        batched = torch.bmm(x.unsqueeze(0), x.T.unsqueeze(0))
        x = torch.baddbmm(batched, batched, batched).squeeze(0).matmul(x) + x.double().mm(x.double().T).float() @ x
        return x + (x.abs() @ x.new_ones(4)).unsqueeze(-1)


class Casts(TorchDispatchMode):
    """Records the shapes and dtypes of all casts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple] = []

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default:
            self.found.append((tuple(args[0].shape), args[0].dtype, result.dtype))
        return result


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("calls", [1, 2])
def test_autocast_on_meta_makes_the_casts_of_the_cpu(grad: bool, calls: int) -> None:
    found = {}
    for device in (META, torch.device("cpu")):
        module, x = MatrixProducts(device), torch.ones(3, 4, device=device)
        with Counter(), Casts() as casts, torch.set_grad_enabled(grad):
            for _ in range(calls):
                with torch.autocast(device.type, torch.bfloat16):
                    assert torch.is_autocast_enabled(device.type)
                    assert torch.get_autocast_dtype(device.type) == torch.bfloat16
                    y = module(x)
            if grad:
                y.float().sum().backward()
        found[device.type] = sorted(casts.found, key=str)
    assert found["meta"] == found["cpu"] != []


def test_autocast_on_meta_computes_some_functions_in_float32() -> None:
    x = meta(2, 4, dtype=torch.bfloat16)
    with Counter() as counts, torch.autocast("meta", torch.bfloat16):
        assert x.exp().dtype == torch.nn.functional.layer_norm(x, (4,)).dtype == torch.float32
        assert (x + x).dtype == torch.bfloat16
    assert counts.operations["aten._to_copy"].launches == 2
