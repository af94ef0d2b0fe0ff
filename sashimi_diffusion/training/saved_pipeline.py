"""The pipeline of a run, which people may load while the run goes on."""

import os
import shutil
from pathlib import Path
from typing import Protocol


class Saveable(Protocol):
    """A pipeline, or anything else that saves itself as one does."""

    def save_pretrained(self, folder: Path) -> None:
        """Write all files into ``folder``."""


def save_pipeline(run: Path, pipeline: Saveable) -> None:
    """Bring ``run``/pipeline up to date; it loads with from_pretrained at any instant.

    The first time the folder appears as a whole. Later each file is replaced in one go: within a run only the weights
    and what is known of them differ from the ones before, so old and new files always go together.
    """
    target, beside = run / "pipeline", run / ".pipeline.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        pipeline.save_pretrained(beside)
        files = [path for path in beside.rglob("*") if path.is_file()]
        for path in files:
            with path.open("rb+") as file:
                os.fsync(file.fileno())
        if not target.exists():
            beside.rename(target)
            return
        for path in files:
            place = target / path.relative_to(beside)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
