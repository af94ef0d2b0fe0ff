"""The report of a check as JSON and Markdown; it is written again after every row."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from sashimi_diffusion.benchmarks.gpu_check.card import COPY
from sashimi_diffusion.benchmarks.gpu_check.counts import COUNTS
from sashimi_diffusion.benchmarks.gpu_check.goals import GOALS, SOURCE, Goal, best, derived
from sashimi_diffusion.benchmarks.gpu_check.parts import Outcome
from sashimi_diffusion.benchmarks.gpu_check.rows import Row
from sashimi_diffusion.files import write_file

MISSING = "-"


def write_report(folder: Path, heading: dict[str, str], outcomes: Sequence[Outcome]) -> None:
    """Write report.json and report.md.

    Args:
        folder: where to write them.
        heading: lines of the heading by their name: the card, the date, the commit.
        outcomes: the parts so far.
    """
    content = {**heading, "parts": [dataclasses.asdict(outcome) for outcome in outcomes]}
    content["goals"] = [dataclasses.asdict(line) for line in goal_lines(outcomes)]
    write_file(folder / "report.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    write_file(folder / "report.md", markdown(heading, outcomes).encode())


@dataclasses.dataclass(frozen=True)
class GoalLine:
    """A goal with the best number of this check, if there is one, and that of the official code."""

    name: str
    target: str
    now: float | None
    variant: str
    result: str
    official_now: float | None


def goal_lines(outcomes: Sequence[Outcome]) -> list[GoalLine]:
    """Return a line for each goal: "reached", "missed", or "not measured"."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    rows += derived(rows)
    return [_goal_line(goal, rows) for goal in GOALS]


def markdown(heading: dict[str, str], outcomes: Sequence[Outcome]) -> str:
    """Return the report as Markdown: goals, parts, and a table of the rows of each part."""
    rows = [row for outcome in outcomes for row in outcome.rows]
    blocks = [f"# GPU check: {heading.get('card', MISSING)}"]
    blocks.append("\n".join(f"- {name}: {value}" for name, value in heading.items()))
    blocks.append(f"## Goals\n\n{_goals(outcomes)}\n\nEarlier numbers: {SOURCE}.")
    table = [[part.part, part.title, part.status, f"{part.seconds:.0f} s", part.explanation] for part in outcomes]
    blocks.append(f"## Parts\n\n{_table(['part', 'what', 'result', 'time', ''], table)}")
    for outcome in outcomes:
        if outcome.rows:
            blocks.append(f"## {outcome.title[0].upper()}{outcome.title[1:]}\n\n{_rows(outcome.rows, rows)}")
    return "\n\n".join(blocks) + "\n"


def number(value: float | str | None, unit: str = "") -> str:
    """Return a value with three or more significant digits and its unit."""
    if value is None:
        return MISSING
    if isinstance(value, str):
        return value
    text = f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:.3g}"
    return f"{text} {unit}".strip()


def _goal_line(goal: Goal, rows: list[Row]) -> GoalLine:
    row, official = best(rows, goal.name, goal.at_most), best(rows, f"official {goal.name}", goal.at_most)
    target = f"{'≤' if goal.at_most else '≥'} {number(goal.target, goal.unit)}"
    now = None if row is None else float(row.value or 0)
    result = "not measured" if now is None else "reached" if goal.reached(now) else "missed"
    official_now = None if official is None else float(official.value or 0)
    return GoalLine(goal.name, target, now, "" if row is None else row.variant, result, official_now)


def _goals(outcomes: Sequence[Outcome]) -> str:
    header = ["", "target", "now", "variant", "result", "official code now"]
    header += ["official code, H200", "this project, H200, eager", "this project, H200, graph"]
    table = []
    for goal, line in zip(GOALS, goal_lines(outcomes), strict=True):
        now, official = number(line.now, goal.unit), number(line.official_now, goal.unit)
        before = [text or MISSING for text in (goal.official, goal.eager, goal.graph)]
        official = MISSING if line.official_now is None else official
        table.append([goal.name, line.target, now, line.variant, line.result, official, *before])
    return _table(header, table)


def _rows(rows: Sequence[Row], all_rows: Sequence[Row]) -> str:
    """Return the table of a part; launches and bytes counted without a GPU are added where there are some."""
    copy = best(all_rows, COPY, at_most=False)
    peak = None if copy is None else 1e9 * float(copy.value or 0)
    counts = {(row.name, row.variant): row for row in all_rows if row.name.startswith(COUNTS)}
    table, columns = [], []
    for row in rows:
        details = {name: number(value) for name, value in row.details.items()}
        counted = counts.get((f"{COUNTS} {row.name}", row.variant.removesuffix(", graph")))
        if counted is not None and counted.problem is None:
            details["launches (counted)"] = number(counted.value)
            if peak and isinstance(row.value, int | float):
                share = counted.details["bytes"] / (row.value / 1e3) / peak
                details["share of the copy peak"] = f"{share:.0%}"
        columns += [name for name in details if name not in columns]
        table.append((row, details))
    header = ["", "variant", "value", *columns, ""]
    lines = []
    for row, details in table:
        cells = [details.get(name, "") for name in columns]
        lines.append([row.name, row.variant, number(row.value, row.unit), *cells, row.problem or ""])
    return _table(header, lines)


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    cells = ([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
