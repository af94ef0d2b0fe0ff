"""metrics.jsonl: one JSON object a line, complete up to the last step whatever happens to the process."""

import json
import os
from pathlib import Path

from sashimi_diffusion.files import write_file


class MetricsFile:
    """Appends lines and can be cut back to a step, so that a resumed run reads like one that never stopped.

    Args:
        path: of the file; made at the first line.
        last_step: lines of later steps, and a line that a kill left unfinished, are dropped.
    """

    def __init__(self, path: Path, last_step: int):
        self._path = path
        if path.exists():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _is_up_to(line, last_step)]
            write_file(path, "".join(line + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")

    def write(self, values: dict) -> None:
        """Append one line and hand it to the operating system, where a killed process cannot lose it."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _is_up_to(line: str, last_step: int) -> bool:
    try:
        return json.loads(line)["step"] <= last_step
    except (json.JSONDecodeError, KeyError, TypeError):
        return False
