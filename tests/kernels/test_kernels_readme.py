"""Tests of kernels/README.md: code blocks and commands run, shortened to seconds."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

README = (Path(__file__).resolve().parents[2] / "kernels" / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for language, text in BLOCKS if language == "bash" for line in text.splitlines()]
SHORT = {
    "sashimi_kernels.benchmark": "--features 2 --length 100 --repeats 1",
    "sashimi_kernels.aot": "--kernel _gated_residual_kernel --target cuda:80 --jobs 1",
}


def test_python_blocks_run_in_order() -> None:
    names: dict[str, object] = {}
    for language, text in BLOCKS:
        if language == "python":
            exec(compile(text.replace("L = 64, 32, 16000", "L = 3, 4, 300"), "README.md", "exec"), names)
    assert names["kernel"].shape == (1, 3, 300)
    assert names["y"].shape == (2, 3, 300)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command: str, tmp_path: Path) -> None:
    if "--device cuda" in command and not torch.cuda.is_available():
        pytest.skip("needs a CUDA or ROCm device")
    if "aot" in command:
        pytest.importorskip("triton", reason="the triton package is not installed")
    python, _, module, *options = shlex.split(command)
    assert python == "python"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"SASHIMI_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", module, *options, *shlex.split(SHORT[module])]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
