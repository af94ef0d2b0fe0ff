"""Wrong calls of all commands and recipes end with one line, exit code 2 and nothing written; right ones do not."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.command_zoo import Row
from tests.faults.command_zoo_benchmarks import benchmark_rows
from tests.faults.command_zoo_conversion import conversion_rows
from tests.faults.command_zoo_evaluation import evaluation_rows
from tests.faults.command_zoo_recipes import recipe_rows
from tests.faults.command_zoo_sampling import sampling_rows
from tests.faults.command_zoo_world import make_world
from tests.faults.forked import Result, children

ROWS = [*sampling_rows(), *evaluation_rows(), *conversion_rows(), *recipe_rows(), *benchmark_rows()]
_AHEAD = 4  # calls that run or wait while the result of one is checked


class Zoo:
    """The results of the rows. Those of the next rows are computed in advance."""

    def __init__(self, folder: Path) -> None:
        self._world = make_world(folder / "world")
        self._started: dict[int, int] = {}

    def result(self, number: int) -> Result:
        """Return the result of row ``number``."""
        following = [other for other in range(number, len(ROWS)) if ROWS[other].slow == ROWS[number].slow]
        for ahead in following[:_AHEAD]:
            if ahead not in self._started:
                self._started[ahead] = children().start(ROWS[ahead].call, template=self._world)
        return children().result(self._started[number])


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    return Zoo(tmp_path_factory.mktemp("zoo"))


def test_the_zoo_is_large_and_has_no_row_twice() -> None:
    assert sum(row.code != 0 and not row.slow for row in ROWS) >= 400
    assert sum(row.code == 0 for row in ROWS) >= 30
    assert len({row.call for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize(
    "number",
    [pytest.param(number, id=row.id, marks=[pytest.mark.slow] * row.slow) for number, row in enumerate(ROWS)],
)
def test_command(zoo: Zoo, number: int) -> None:
    row, result = ROWS[number], zoo.result(number)
    problems = list(problems_of(row, result))
    assert not problems, f"{row.id}\n{problems}\nstdout: {result.out[-1500:]}\nstderr: {result.err[-1500:]}"


def problems_of(row: Row, result: Result) -> Iterator[str]:
    """Yield what a call did wrong."""
    if result.code != row.code:
        yield f"exit code {result.code} instead of {row.code}"
    for name, text in (("stdout", result.out), ("stderr", result.err)):
        for sign in ("Traceback", "Exception ignored"):
            if sign in text:
                yield f"{sign} on {name}"
        # A progress bar returns to the beginning of its line.
        if unprintable := re.search(r"[\x00-\x09\x0b\x0c\x0e-\x1f\x7f-\x9f]", text):
            yield f"the control character {unprintable.group()!r} on {name}"
    errors = [line for line in result.err.split("\n") if line.startswith("error: ")]
    if row.code == 0:
        yield from _problems_of_right_call(row, result, errors)
        return
    if len(errors) != 1 or not result.err.endswith(f"{errors[0]}\n"):
        yield f"{len(errors)} lines that begin with `error: `, expected one at the end"
    elif row.says not in errors[0]:
        yield f"the error does not contain {row.says!r}"
    if result.created:
        yield f"created {', '.join(result.created[:5])}"
    if result.changed:
        yield f"changed {', '.join(result.changed[:5])}"


def _problems_of_right_call(row: Row, result: Result, errors: list[str]) -> Iterator[str]:
    if errors:
        yield f"an error: {errors[0]}"
    if row.says and row.call.reader and row.says not in result.out:
        yield f"stdout does not contain {row.says!r}"
    for path in row.writes:
        if path not in result.created:
            yield f"did not create {path!r}"
    for what, paths, allowed in (("created", result.created, row.writes), ("changed", result.changed, row.replaces)):
        for path in paths:
            if not any(path == other or path.startswith(f"{other}/") for other in allowed):
                yield f"{what} {path!r}"
