"""Compile the kernels for the GPU that is present, in parallel, before they are needed.

    python -m sashimi_kernels.warm_up
    python -m sashimi_kernels.warm_up --d-model 128 --batch 16 --dtype bfloat16

Triton compiles a form of a kernel at its first launch, one after the other. This command runs all operations of the
benchmark, forward and backward, on inputs of the sizes that a three-stage SaShiMi has, without launching kernels. It
notes the forms that Triton would compile, and compiles them into Triton's cache on disk, where later processes find
them. On a computer without a GPU it prints one line, and the exit code is 2.

The forms come from Triton's own launcher (its hook before compilation), so types, divisibility by 16 and integers that
are 1 are those of a real launch. The tests check this without a GPU: launches of the same operations through Triton's
whole launch path, up to the load of the binary, find every binary in the cache.
"""

import contextlib
import importlib
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from tqdm import tqdm

from sashimi_kernels.commands import Parser, UnusableError, positive, run
from sashimi_kernels.workloads import Sizes, workloads

if TYPE_CHECKING:  # needs Triton; the command reports if it is missing
    from triton.backends.compiler import GPUTarget
    from triton.compiler import CompiledKernel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STAGES = 3


class Form(NamedTuple):
    """One form of a kernel, as Triton describes it to itself (``specialization_data``, JSON)."""

    module: str
    kernel: str
    description: str


class CompileOnlyDriver:
    """Stands in for the driver of a GPU in a process that compiles and does not launch: it needs no GPU."""

    def __init__(self, target: "GPUTarget") -> None:
        self._target = target

    def get_current_target(self) -> "GPUTarget":
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def forms_only() -> Iterator[dict[Form, None]]:
    """Collect the forms that the launches in this context would compile. Nothing is compiled or launched.

    Results of operations have undefined values. Forms that this process has compiled before are launched, and are not
    collected.
    """
    from triton import knobs

    forms: dict[Form, None] = {}

    def collect(fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        forms[Form(fn.module, fn.name, compile["specialization_data"])] = None
        return True  # do not compile

    with knobs.runtime.scope():
        knobs.runtime.jit_cache_hook = collect
        yield forms


def compile_form(form: Form) -> "CompiledKernel":
    """Compile a form for the target of the active driver, or find it in Triton's cache."""
    kernel = getattr(importlib.import_module(form.module), form.kernel)
    return kernel.preload(form.description)


def compile_forms(forms: Iterable[Form], jobs: int) -> int:
    """Compile forms in ``jobs`` processes into Triton's cache, and return how many were not there before."""
    from triton.runtime import driver

    forms = list(forms)
    target = driver.active.get_current_target()
    with multiprocessing.get_context("spawn").Pool(jobs, _use, (target,)) as pool:
        compiled = pool.imap_unordered(_was_missing, forms)
        return sum(tqdm(compiled, total=len(forms), unit="binary", desc="compiling"))


def main() -> int:
    """Run the command and return the exit code."""
    return run(_warm_up)


def _warm_up() -> int:
    parser = Parser(__doc__)
    parser.add_argument("--d-model", type=positive, default=64, help="features of the first stage (default: 64)")
    parser.add_argument("--n-state", type=positive, default=64, help="states per feature (default: 64)")
    parser.add_argument("--length", type=positive, default=16000, help="samples of the first stage (default: 16000)")
    parser.add_argument("--batch", type=positive, nargs="+", default=(1, 16), help="batch sizes (default: 1 16)")
    parser.add_argument(
        "--dtype", choices=_DTYPES, nargs="+", default=tuple(_DTYPES)[:2], help="dtypes of the features"
    )
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="processes (default: %(default)s)")
    options = parser.parse_args()
    _require_gpu()
    stages = [(options.d_model << stage, max(1, options.length >> 2 * stage)) for stage in range(_STAGES)]
    with forms_only() as forms:
        for batch in options.batch:
            for features, length in stages:
                sizes = Sizes(batch, features, max(1, options.n_state // 2), length)
                for dtype in options.dtype:
                    _run_all(sizes, _DTYPES[dtype])
    missing = compile_forms(forms, options.jobs)
    print(f"{len(forms)} forms: compiled {missing}, found {len(forms) - missing} in Triton's cache")
    return 0


def _require_gpu() -> None:
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise UnusableError("TRITON_INTERPRET is set, so Triton interprets kernels instead of compiling them: unset it")
    if not torch.cuda.is_available():
        raise UnusableError("no CUDA or ROCm device is present: kernels are compiled for the GPU of this computer")


def _run_all(sizes: Sizes, dtype: torch.dtype) -> None:
    for workload in workloads(sizes, dtype, "cuda"):
        runs: tuple[Callable[[str], None], ...] = (workload.forward, workload.backward)
        for pass_ in runs if workload.inputs else runs[:1]:
            pass_("triton")


def _use(target: "GPUTarget") -> None:
    from triton.runtime import driver

    driver.set_active(CompileOnlyDriver(target))


def _was_missing(form: Form) -> bool:
    from triton import knobs

    found: list[bool] = []
    with knobs.compilation.scope():
        knobs.compilation.listener = lambda cache_hit, **_: found.append(cache_hit)
        compile_form(form)
    return not all(found)


if __name__ == "__main__":
    sys.exit(main())
