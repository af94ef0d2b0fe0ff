"""How much faster the ``torch`` backend makes convolution kernels than ``reference``, measured side by side.

    python -m sashimi_kernels.benchmark
    python -m sashimi_kernels.benchmark --features 64 --length 4000 --threads 1

Each row is the median of interleaved repeats, so that a busy moment of the computer hits both sides.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch

from sashimi_kernels import diagonal_kernel, discretize_diagonal, nplr_kernel


def interleaved_medians(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each function over ``repeats`` rounds, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def conditions() -> str:
    """One line about what the numbers were measured on."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, float32"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--features", type=int, default=128, help="number of features H")
    parser.add_argument("--states", type=int, default=64, help="state size, both halves of the conjugate pairs")
    parser.add_argument("--length", type=int, default=16000, help="kernel length L in samples")
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats of each side")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (all cores if not given)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"kernel generation, H {arguments.features}, N {arguments.states}, L {arguments.length}; {conditions()}")
    print(f"{'operation':<32}{'reference':>12}{'torch':>12}{'faster':>10}")
    for name, functions in _cases(arguments.features, arguments.states // 2, arguments.length).items():
        seconds = interleaved_medians(functions, arguments.repeats)
        slow, fast = seconds["reference"], seconds["torch"]
        print(f"{name:<32}{slow * 1e3:>9.1f} ms{fast * 1e3:>9.1f} ms{slow / fast:>9.0f}x", flush=True)


def _cases(features: int, n: int, length: int) -> dict[str, dict[str, Callable[[], object]]]:
    """For every row of the table, what each backend has to run."""
    torch.manual_seed(0)
    dt = torch.logspace(-3, -1, features, dtype=torch.float64).unsqueeze(-1)
    imag = torch.pi * torch.arange(n, dtype=torch.float64).expand(features, n)
    a = torch.complex(torch.full_like(imag, -0.5), imag).requires_grad_()
    p, b = torch.randn(2, features, n, dtype=torch.complex128)
    c = torch.randn(1, features, n, dtype=torch.complex64, requires_grad=True)

    def nplr(backend: str) -> torch.Tensor:
        return nplr_kernel(dt, a, p, p.conj(), b, c, length, backend=backend)[0]

    def diagonal(backend: str) -> torch.Tensor:
        system = discretize_diagonal(dt, a, b, "zoh")
        # The reference makes H · N · L exponentials: in single precision, to be fair to it.
        log_a = system.log_a.to(torch.complex64) if backend == "reference" else system.log_a
        return diagonal_kernel(log_a, c * system.b.to(c.dtype), length, backend=backend)

    def forward(make: Callable, backend: str) -> Callable[[], object]:
        return torch.no_grad()(lambda: make(backend))

    def backward(make: Callable, backend: str) -> Callable[[], object]:
        return lambda: make(backend).square().sum().backward()

    backends = ("reference", "torch")
    return {
        f"{name}, {passes}": {backend: run(make, backend) for backend in backends}
        for name, make in (("NPLR", nplr), ("diagonal", diagonal))
        for passes, run in (("forward", forward), ("forward + backward", backward))
    }


if __name__ == "__main__":
    main()
