"""The process of one part of the check: it runs the part's function and appends its rows to a file.

python -m sashimi_diffusion.benchmarks.gpu_check.child ROWS_FILE '{"target": …, "arguments": …, "setting": …}'
"""

import importlib
import json
import sys
from pathlib import Path

from sashimi_diffusion.benchmarks.gpu_check.rows import Setting, append_row


def main() -> None:
    """Run the part that the arguments describe."""
    rows_file, task = Path(sys.argv[1]), json.loads(sys.argv[2])
    module, function = task["target"].split(":")
    measure = getattr(importlib.import_module(module), function)
    for row in measure(Setting(**task["setting"]), *task["arguments"]):
        append_row(rows_file, row)


if __name__ == "__main__":
    main()
