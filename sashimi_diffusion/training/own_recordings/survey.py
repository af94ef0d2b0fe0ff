"""Look at a folder of recordings: what is in it, what can be used, and what it says about classes and speakers."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sashimi_diffusion.data.audio_files import find_audio
from sashimi_diffusion.data.names import natural_order
from sashimi_diffusion.data.recordings import report_bad_files, report_unusual_files, require_folder
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import printable
from sashimi_diffusion.training.own_recordings.headers import Recording, read_headers
from sashimi_diffusion.training.own_recordings.layout import Layout, find_layout, layout_of_pattern
from sashimi_diffusion.training.own_recordings.levels import Levels, measure_levels


@dataclass(frozen=True)
class Survey:
    """What is known about a folder of recordings.

    Args:
        root: the folder.
        recordings: those that can be used, as far as is known.
        bad: the files that cannot be used, with the reason.
        layout: classes and speakers.
        levels: measured levels.
    """

    root: Path
    recordings: list[Recording]
    bad: dict[Path, str]
    layout: Layout
    levels: Levels

    @property
    def hours(self) -> float:
        """The duration of all recordings in hours."""
        return sum(recording.seconds for recording in self.recordings) / 3600

    @property
    def classes(self) -> dict[str, int]:
        """The classes, with the number of their recordings; empty if there are none."""
        return self._counts(self.layout.labels)

    @property
    def speakers(self) -> dict[str, int]:
        """The speakers, with the number of their recordings; empty if there are none."""
        return self._counts(self.layout.speakers)

    def counts(self, of: Callable[[Recording], int]) -> dict[int, int]:
        """Return how many recordings have each value of ``of``, for instance of their sample rate, most first."""
        return dict(Counter(map(of, self.recordings)).most_common())

    def _counts(self, values: Mapping[Path, str]) -> dict[str, int]:
        counts = Counter(values[recording.path] for recording in self.recordings) if values else Counter[str]()
        return {name: counts[name] for name in sorted(counts, key=natural_order)}


def look_at(folder: Path, pattern: str | None = None) -> Survey:
    """Look at all recordings in a folder and its sub-folders. Files that cannot be used are named in a warning.

    Args:
        folder: the folder.
        pattern: pattern of the file names, with ``{label}`` and ``{speaker}``; None: find out.

    Raises:
        UserError: the path is no folder, it has no audio that can be used, all of it is silent, or the pattern is
            malformed.
    """
    root = require_folder(folder, "a folder with recordings (wav, flac, ogg or mp3)")
    files, bad = find_audio(root)
    total = len(files) + len(bad)
    recordings, unreadable = read_headers(files)
    levels = measure_levels(recordings)
    bad |= unreadable | levels.bad
    usable = [recording.path for recording in recordings if recording.path not in bad]
    layout = find_layout(usable, root) if pattern is None else layout_of_pattern(usable, root, pattern)
    bad |= layout.unmatched
    report_bad_files(bad, total, root, skip_bad_files=True)  # an error if nothing is left
    report_unusual_files(levels.unusual, len(usable), root)
    if not len(levels.rms):
        what = "all recordings" if levels.complete else f"all of the {levels.files} recordings that were decoded"
        raise UserError(f"{what} in {printable(root)} are silent (all samples are 0): nothing to train on")
    return Survey(root, [recording for recording in recordings if recording.path not in bad], bad, layout, levels)
