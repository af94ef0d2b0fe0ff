"""The GPU tests, in a process of their own whose output names the test that runs."""

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting

ROOT = Path(__file__).parents[3]
MARKER = "gpu"
_RESULT = re.compile(r"(\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)\b")


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the numbers of tests that passed, failed and were skipped so far, and each failure."""
    if not (ROOT / "tests").is_dir():
        yield Row("GPU tests", problem=f"{ROOT / 'tests'} does not exist: run the check in a checkout")
        return
    command = [sys.executable, "-m", "pytest", "-v", "-m", MARKER, "--color=no", "-p", "no:cacheprovider", "tests"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    yield from results(process.stdout)
    code = process.wait()
    if code not in (0, 1):
        yield Row("GPU tests", "end", problem=f"pytest ended with exit code {code}: see the log")


def results(lines: Iterable[str]) -> Iterator[Row]:
    """Yield rows for the lines of ``pytest -v``; a row of counts replaces the one before."""
    counts: Counter[str] = Counter()
    for line in lines:
        print(line, end="", flush=True)
        match = _RESULT.match(line)
        if match is None:
            continue
        name, result = match.groups()
        counts[{"ERROR": "failed", "XFAIL": "passed", "XPASS": "passed"}.get(result, result.lower())] += 1
        if result in ("FAILED", "ERROR"):
            yield Row("GPU test", name, problem="failed")
        for outcome in ("passed", "failed", "skipped"):
            yield Row("GPU tests", outcome, counts[outcome])
