"""The goals of the GPU work, the numbers of an H200 before it, and the rows that are computed from measured rows."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from sashimi_diffusion.benchmarks.gpu_check.rows import Row

SOURCE = "NVIDIA H200, 2026-11-27, commit 70bbb2c, torch 2.11, Triton 3.6; bfloat16 product 748 TFLOP/s, copy 4.2 TB/s"


class Goal(NamedTuple):
    """A goal and what was measured before.

    Args:
        name: name of the row.
        target: the number to reach.
        unit: its unit, that of the row.
        at_most: whether smaller numbers are better.
        official: the official code on the H200 of ``SOURCE`` (with its Cauchy extension, float32).
        eager: this project on that card, eager, the better one of float32 and bfloat16.
        graph: this project on that card, captured in a CUDA graph by hand, bfloat16.
    """

    name: str
    target: float
    unit: str
    at_most: bool = True
    official: str = ""
    eager: str = ""
    graph: str = ""

    def reached(self, value: float) -> bool:
        """Return whether a measured number reaches the goal."""
        return value <= self.target if self.at_most else value >= self.target


GOALS = (
    Goal("forward d 64, B 1", 1.5, "ms", True, "79 ms", "37 ms", "3.1 ms (diag 2.8)"),
    Goal("forward d 64, B 16", 6, "ms", True, "69 ms", "44 ms (diag by Triton 107)", "23.5 ms (diag by Triton 30)"),
    Goal("forward d 128, B 16", 12, "ms", True, "104 ms", "56 ms", "47 ms"),
    Goal("training step d 64, B 16", 22, "ms", True, "224 ms", "374 to 527 ms (diag 218 to 287)", "121 ms (diag 96)"),
    Goal("memory of training step d 64, B 16", 8, "GiB", True, "23.8 GiB", "9.9 to 18 GiB"),
    Goal("training step d 128, B 16", 45, "ms", True, "288 ms", "419 to 480 ms", "222 ms"),
    Goal("memory of training step d 128, B 16", 16, "GiB", True, "47.4 GiB", "20 to 36 GiB"),
    Goal("WaveNet over SaShiMi d 64, B 1", 5, "times", False, "", "11.5 / 37 ms", "3.4 / 3.1 ms"),
    Goal("WaveNet over SaShiMi d 64, B 16", 5, "times", False, "", "45 / 44 ms", "43.5 / 23.5 ms"),
    Goal("autoregressive, 1 streams", 8_000, "samples/s", False, "", "32 samples/s", "1,960 samples/s"),
    Goal("autoregressive, 32 streams", 200_000, "samples/s", False, "", "1,047 samples/s", "22,991 samples/s"),
    Goal("autoregressive, 256 streams", 1_000_000, "samples/s", False, "", "", "172,403 samples/s"),
    Goal("small recipe", 50, "steps/s", False, "", "6.5 steps/s"),
    Goal("small recipe's share of the bare step", 0.95, "", False),
    Goal("launches of forward d 64, B 1", 250, "launches", True, "", "1,117"),
    Goal("launches of training step d 64, B 16", 1500, "launches", True, "", "14,900 (diag 7,843)"),
    Goal("GPU tests that failed", 0, "tests", True, "", "4 of 91"),
)


def best(rows: Iterable[Row], name: str, at_most: bool = True) -> Row | None:
    """Return the row of this name with the best number, or None if there is none."""
    numbers = [row for row in rows if row.name == name and _number(row) is not None]
    better: Callable = min if at_most else max
    return better(numbers, key=_number) if numbers else None


def derived(rows: list[Row]) -> list[Row]:
    """Return the rows that follow from measured ones: ratios, and the memory and launches of the fastest variants."""
    found = []
    for batch in (1, 16):
        wavenet, sashimi = best(rows, f"WaveNet forward, B {batch}"), best(rows, f"forward d 64, B {batch}")
        if wavenet is not None and sashimi is not None:
            ratio = (_number(wavenet) or 0) / (_number(sashimi) or 1)
            variant = f"{wavenet.variant} over {sashimi.variant}"
            found.append(Row(f"WaveNet over SaShiMi d 64, B {batch}", variant, ratio, "times"))
    columns = (("memory of", "peak GiB", "GiB"), ("launches of", "launches (profiler)", "launches"))
    for name in dict.fromkeys(row.name for row in rows if row.name.startswith(("forward", "training step"))):
        fastest = best(rows, name)
        for title, column, unit in columns:
            if fastest is not None and column in fastest.details:
                found.append(Row(f"{title} {name}", fastest.variant, fastest.details[column], unit))
    failed = best([row for row in rows if row.variant == "failed"], "GPU tests")
    if failed is not None:
        found.append(Row("GPU tests that failed", "", failed.value, "tests"))
    return found


def _number(row: Row) -> float | None:
    return None if row.problem is not None or not isinstance(row.value, int | float) else float(row.value)
