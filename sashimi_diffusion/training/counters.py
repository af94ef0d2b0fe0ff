"""The state of a run in addition to its tensors: counts, times and losses."""

import dataclasses
import math
import sys
from dataclasses import dataclass
from typing import Any

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import printable
from sashimi_diffusion.training.splits import compare_fingerprints

EXPLODED = 100
"""A loss has exploded if its average is more than this multiple of the lowest average, and above the first loss.

The second condition is for losses that fall to almost 0, where such a multiple is an ordinary fluctuation.
"""

SMOOTHING = 0.1
"""Weight of a new loss in the average of losses."""


@dataclass
class Counters:
    """The state of a run in addition to its tensors.

    Args:
        step: optimizer steps done, including skipped ones.
        seconds: time spent in optimizer steps.
        nonfinite_total: steps skipped because the loss or the gradient was not finite.
        nonfinite_in_row: steps skipped since the last finite one.
        loss_sum: sum of the finite losses since the last training line of metrics.jsonl.
        loss_count: number of those losses.
        global_batch: examples per optimizer step, of all processes together.
        data: fingerprint of the training data, for a distillation with the hash of the teacher.
        plateau_factor: factor of the learning rate after plateaus of the validation loss.
        plateau_loss: lowest validation loss so far; None before the first.
        plateau_validations: validations since that loss, or since the last change of ``plateau_factor``.
        loss_first: the first finite loss; None before it.
        loss_average: exponential average of the finite losses, over about ten steps.
        loss_lowest: lowest value of that average.
        metrics: SHA-256 of metrics.jsonl up to ``step``; "" in checkpoints of older versions.
    """

    step: int = 0
    seconds: float = 0.0
    nonfinite_total: int = 0
    nonfinite_in_row: int = 0
    loss_sum: float = 0.0
    loss_count: int = 0
    global_batch: int = 0
    data: str = ""
    plateau_factor: float = 1.0
    plateau_loss: float | None = None
    plateau_validations: int = 0
    loss_first: float | None = None
    loss_average: float | None = None
    loss_lowest: float | None = None
    metrics: str = ""

    def count(self, loss: float, norm: float) -> bool:
        """Count a step that has this loss and gradient norm, and return whether both are finite."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.nonfinite_total += 1
            self.nonfinite_in_row += 1
            return False
        self.nonfinite_in_row = 0
        self.loss_sum += loss
        self.loss_count += 1
        if self.loss_first is None or self.loss_average is None or self.loss_lowest is None:
            self.loss_first = self.loss_average = self.loss_lowest = loss
        self.loss_average += SMOOTHING * (loss - self.loss_average)
        self.loss_lowest = min(self.loss_lowest, self.loss_average)
        return True

    def check_same_run(self, expected: "Counters", checkpoint: str) -> str:
        """Check that a run may continue with these counters of a checkpoint.

        Returns:
            What could not be checked, in words that follow the name of the checkpoint, or "".

        Raises:
            UserError: the checkpoint is of a run with another global batch, with other data or with another teacher.
        """
        if self.global_batch != expected.global_batch:
            raise UserError(
                f"{checkpoint} was made with {self.global_batch} examples per step, this command has "
                f"{expected.global_batch}: set training.batch_size and training.gradient_accumulation so that their "
                "product with the number of processes is the same"
            )
        difference = compare_fingerprints(self.data, expected.data)
        if difference in ("recordings", "contents"):
            other = "recordings with other contents" if difference == "contents" else "other recordings"
            raise UserError(
                f"{checkpoint} was made with {other} than `data` of the config selects now: restore them, or start "
                "again in another output_dir"
            )
        if difference == "teacher":
            raise UserError(
                f"{checkpoint} was made with another teacher than training.initial_pipeline is now: restore it, or "
                "start again in another output_dir"
            )
        if difference == "unknown":
            return "; the contents of the recordings were not compared, because it is of an older version"
        return ""

    @property
    def exploded(self) -> bool:
        """Whether the loss has exploded, see :data:`EXPLODED`."""
        if self.loss_first is None or self.loss_average is None or self.loss_lowest is None:
            return False
        return self.loss_average > max(EXPLODED * self.loss_lowest, self.loss_first)


# Checkpoints of older versions lack these.
_ADDED_LATER = (
    *("plateau_factor", "plateau_loss", "plateau_validations"),
    *("loss_first", "loss_average", "loss_lowest", "metrics"),
)


def read_counters(stored: Any) -> tuple[Counters, int]:
    """Return the counters and the number of updates of the average from the content of counters.json.

    Raises:
        UserError: a counter is missing, unknown or not valid.
    """
    if not isinstance(stored, dict):
        raise UserError("it contains no counters")
    types = {field.name: field.type for field in dataclasses.fields(Counters)} | {"ema_updates": int}
    for name in stored:
        if name not in types:
            raise UserError(f"the counter {printable(name)} is unknown, because a newer version wrote it")
    for name in types:
        if name not in stored and name not in _ADDED_LATER:
            raise UserError(f"the counter {name} is missing")
    values = {name: _checked(name, stored[name], types[name]) for name in types if name in stored}
    updates = values.pop("ema_updates")
    return Counters(**values), updates


def _checked(name: str, value: Any, kind: Any) -> Any:
    """Return a counter of type ``kind``."""
    if kind is str:
        valid = isinstance(value, str)
    elif kind is int:
        valid = type(value) is int and 0 <= value < 2**63
    elif kind == float | None and (value is None or value == math.inf):
        return None  # older versions wrote infinity where there was no number yet
    else:
        valid = type(value) in (int, float) and abs(value) <= sys.float_info.max
    if not valid:
        raise UserError(f"the counter {name} is {printable(repr(value)[:40])}")
    return kind(value) if kind in (int, float, str) else float(value)
