"""A measured row, the file that a part of the check writes its rows to, and the setting of all parts."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        name: what is measured, by which the report finds its goal: "forward d 64, B 1".
        variant: how: "nplr, bfloat16, triton, graph". A later row of the same name and variant replaces an earlier one.
        value: the number, or a text for properties of the card; None if there is none.
        unit: unit of the value.
        details: further numbers, by the names of their columns.
        problem: why there is no value, or what is wrong with it.
    """

    name: str
    variant: str = ""
    value: float | str | None = None
    unit: str = ""
    details: dict[str, float] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class Setting:
    """What all parts of a check have in common.

    Args:
        device: "cuda" or "cpu".
        tiny: use sizes that run in seconds on a CPU, for a trial of the command.
        out: folder of the report.
        peer: folder of the official code, or None.
    """

    device: str
    tiny: bool
    out: str
    peer: str | None = None


def append_row(path: Path, row: Row) -> None:
    """Add a row to a file; it is on the disk when this function returns, even if the process crashes afterwards."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dataclasses.asdict(row)) + "\n")


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, without a line that is not complete; without the file, nothing."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return latest(Row(**json.loads(line)) for line in lines)


def latest(rows: Iterable[Row]) -> list[Row]:
    """Return the last row of each name and variant."""
    return list({(row.name, row.variant): row for row in rows}.values())
