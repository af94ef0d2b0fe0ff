"""Compile every Triton kernel for GPUs that may be absent, and print the resources that each kernel uses.

    python -m sashimi_kernels.aot
    python -m sashimi_kernels.aot --target cuda:90 --kernel _gated_residual_kernel
    python -m sashimi_kernels.aot --markdown

Every form of a kernel (types, constants) is compiled under each assumption on its arguments: ``any``, ``contiguous``,
``aligned`` and ``ones`` (see :mod:`sashimi_kernels.compilation`). The exit code is 1 if a kernel does not compile,
spills registers, exceeds the shared memory of a block, or does not use the matrix units that its design requires.
"""

import functools
import importlib
import itertools
import multiprocessing
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from sashimi_kernels.commands import Parser, UnusableError, positive, run
from sashimi_kernels.hardware import HARDWARE, Resources

if TYPE_CHECKING:  # needs Triton; the command reports if it is missing
    from sashimi_kernels.triton_backend.launch import Launch

TARGETS = ("cuda:80", "cuda:90", "cuda:100", "hip:gfx942", "hip:gfx1100")


class Task(NamedTuple):
    """One compilation: the launch at this position of ``every_launch()`` for a target under an assumption."""

    position: int
    target: str
    assumption: str


class Outcome(NamedTuple):
    """The result of a task. ``resources`` is None if the kernel did not compile; ``problems`` has one line for each."""

    task: Task
    resources: Resources | None
    problems: list[str]


@functools.cache
def every_launch() -> tuple["Launch", ...]:
    """Return all forms in which the modules of the Triton backend launch kernels."""
    from sashimi_kernels import triton_backend

    names = [module.name for module in pkgutil.iter_modules(triton_backend.__path__, f"{triton_backend.__name__}.")]
    modules = [importlib.import_module(name) for name in names]
    return tuple(launch for module in modules if hasattr(module, "launches") for launch in module.launches())


def main() -> int:
    """Run the command and return the exit code."""
    return run(_compile_and_print)


def compile_task(task: Task) -> Outcome:
    """Compile one form for one target and check its resources."""
    from sashimi_kernels.compilation import compile_for

    launch = every_launch()[task.position]
    try:
        resources = compile_for(launch, task.target, task.assumption)
    except Exception as error:  # Triton's passes and ptxas raise various types
        reason = " ".join(str(error).split())[-300:] or type(error).__name__
        return Outcome(task, None, [f"{_name(task)} does not compile: {reason}"])
    return Outcome(task, resources, [f"{_name(task)} {problem}" for problem in problems_of(launch, task, resources)])


def table(outcomes: Iterable[Outcome]) -> str:
    """Return a table with one line per form and target."""
    header = f"{'kernel':<40} {'target':<11}{'registers':>10}{'spills':>8}{'shared':>8}{'warps':>7}  matrix    form"
    return "\n".join([header, *map(_row, outcomes)])


def markdown(outcomes: list[Outcome]) -> str:
    """Return a Markdown table with one row per kernel and one column per target; a cell has the worst of all forms."""
    targets = list(dict.fromkeys(outcome.task.target for outcome in outcomes))
    lines = [f"| kernel | forms | {' | '.join(targets)} |", f"|---|---|{'---|' * len(targets)}"]
    for kernel in dict.fromkeys(_kernel(outcome.task) for outcome in outcomes):
        of_kernel = [outcome for outcome in outcomes if _kernel(outcome.task) == kernel]
        cells = [_cell([one.resources for one in of_kernel if one.task.target == target]) for target in targets]
        forms = len({outcome.task.position for outcome in of_kernel})
        lines.append(f"| `{kernel}` | {forms} | {' | '.join(cells)} |")
    return "\n".join(lines)


def problems_of(launch: "Launch", task: Task, resources: Resources) -> Iterator[str]:
    """Yield the problems of a binary: spilled registers, too much shared memory, unused matrix units."""
    limit = HARDWARE[task.target].shared_block
    if resources.spills:
        yield f"spills {resources.spills} bytes of registers per lane"
    if resources.shared > limit:
        yield f"takes {resources.shared} bytes of shared memory, but the limit of a block is {limit}"
    if launch.matrix and not resources.matrix:
        yield "has no matrix instruction, but its design requires one"


def _compile_and_print() -> int:
    parser = Parser(__doc__)
    parser.add_argument(
        "--target", action="append", help=f"{', '.join(HARDWARE)}; may be repeated (default: {' '.join(TARGETS)})"
    )
    parser.add_argument("--kernel", help="compile this kernel only (default: all)")
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="processes (default: %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print one row per kernel, as a Markdown table")
    arguments = parser.parse_args()
    outcomes = list(_outcomes(_tasks(arguments.target or TARGETS, arguments.kernel), arguments.jobs))
    print(markdown(outcomes) if arguments.markdown else table(outcomes))
    problems = [f"problem: {problem}" for outcome in outcomes for problem in outcome.problems]
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _tasks(targets: Iterable[str], kernel: str | None) -> list[Task]:
    for target in targets:
        if target not in HARDWARE:
            raise UnusableError(f"unknown target {target!r}: expected one of {', '.join(HARDWARE)}")
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        raise UnusableError("TRITON_INTERPRET is set, so Triton interprets kernels instead of compiling them: unset it")
    try:
        from sashimi_kernels.compilation import assumptions

        launches = every_launch()
    except ImportError as error:
        raise UnusableError(
            f"compiling kernels requires a recent triton package (pip install -U triton): {error}"
        ) from error
    names = [launch.kernel.__name__ for launch in launches]
    if kernel is not None and kernel not in names:
        raise UnusableError(f"unknown kernel {kernel!r}: expected one of {', '.join(dict.fromkeys(names))}")
    return [
        Task(position, target, assumption)
        for position, launch in enumerate(launches)
        if kernel in (None, names[position])
        for target, assumption in itertools.product(targets, assumptions(launch))
        if target in (launch.targets or targets)
    ]


def _outcomes(tasks: list[Task], jobs: int) -> Iterator[Outcome]:
    progress = functools.partial(tqdm, total=len(tasks), unit="binary", desc="compiling")
    if jobs == 1:
        yield from progress(map(compile_task, tasks))
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from progress(pool.imap(compile_task, tasks))


def _kernel(task: Task) -> str:
    return every_launch()[task.position].kernel.__name__


def _form(task: Task) -> str:
    """Return a description of the form: tensor types, constants and assumptions on the arguments."""
    launch = every_launch()[task.position]
    types = [type.removeprefix("*") for type in launch.signature.values() if type.startswith("*")]
    constants = [f"{name}={value}" for name, value in launch.constants.items()]
    return " ".join(["/".join(types), *constants, f"warps={launch.num_warps}", task.assumption])


def _name(task: Task) -> str:
    return f"{_kernel(task)} ({_form(task)}) for {task.target}"


def _row(outcome: Outcome) -> str:
    task, resources = outcome.task, outcome.resources
    columns = f"{_kernel(task):<40} {task.target:<11}"
    if resources is None:
        return f"{columns}{'does not compile':>33}  {'':<9} {_form(task)}"
    used = f"{resources.registers:>10}{resources.spills:>8}{resources.shared:>8}{resources.occupancy:>7.0%}"
    return f"{columns}{used}  {'+'.join(resources.matrix) or '-':<9} {_form(task)}"


def _cell(resources: list[Resources | None]) -> str:
    forms = [one for one in resources if one is not None]
    if len(forms) < len(resources):
        return "does not compile"
    spills = max(one.spills for one in forms)
    matrix = sorted({kind for one in forms for kind in one.matrix})
    shared = max(one.shared for one in forms) / 1024
    worst = [f"{max(one.registers for one in forms)} registers", f"{shared:.1f} KiB".replace(".0", "")]
    occupancy = f"{min(one.occupancy for one in forms):.0%}"
    return ", ".join([*worst, *matrix, occupancy] + ([f"spills {spills} bytes"] if spills else []))


if __name__ == "__main__":
    sys.exit(main())
