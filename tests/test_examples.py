"""Tests of the notebooks in examples: they are stored without outputs, and every cell runs."""

import ast
import json
import os
import sys
from pathlib import Path

import pytest

from sashimi_diffusion.cache_files import default_cache_dir

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
SHORT = {
    "train-on-your-own-recordings": {
        "MINUTES = 15": "MINUTES = 600",  # enough for a busy machine; the steps are limited below
        "batch_size=20, class_labels": "batch_size=6, class_labels",
        "num_inference_steps=12": "num_inference_steps=3",
        "output_dir=my-run": "output_dir=my-run training.steps=4 training.batch_size=2 sampling.steps=2",
        "num_inference_steps=20": "num_inference_steps=2",
    },
}
"""Notebook -> text -> shorter text."""


def test_all_notebooks_are_listed() -> None:
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 3
    assert all(f"({path.name})" in page for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_have_no_outputs(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not source.startswith("!"):
            ast.parse(source)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(default_cache_dir() / "compiled"))
    monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    for long, short in SHORT.get(path.stem, {}).items():
        assert sum(cell.source.count(long) for cell in notebook.cells) == 1, long
        for cell in notebook.cells:
            cell.source = cell.source.replace(long, short)
    NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert not any("error:" in output.get("text", "") for output in shown)
