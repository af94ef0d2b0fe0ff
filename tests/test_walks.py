"""Tests of the walks in docs/architecture.md: the page lists the files that are entered."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def files_on_the_page(walk: str) -> set[str]:
    section = re.search(rf"^### .*\(`{walk}`.*?\n(.*?)(?=^##|\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    assert section is not None, f"the page has no walk {walk}"
    return set(re.findall(r"`((?:recipes|sashimi_diffusion|kernels|evaluation)/[\w/]+\.py)`", section[1]))


@pytest.mark.parametrize("walk", ["waveform", "batch", "evaluation", "conversion"])
def test_the_page_lists_the_files_of_a_walk(walk: str) -> None:
    command = [sys.executable, str(ROOT / "tests" / "walks.py"), walk]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    assert files_on_the_page(walk) == set(done.stdout.split())
