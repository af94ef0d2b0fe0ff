"""The pipelines that the page offers: loaded once, ready to sample."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines import (
    SashimiAutoregressivePipeline,
    SashimiPipeline,
    is_autoregressive,
    resolve_pipeline,
)
from sashimi_diffusion.pipelines.labels import KnownLabels, known_labels
from sashimi_diffusion.pipelines.loading import BUNDLED
from sashimi_diffusion.pipelines.steps import set_timesteps
from sashimi_diffusion.schedulers import create_scheduler, fitting_schedulers
from sashimi_diffusion.schedulers.noise_paths import distilled_steps
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.terminal import printable


@dataclass
class Entry:
    """A loaded pipeline.

    Args:
        name: the folder or name with which it was asked for; ``sashimi-sample --pipeline`` takes it as well.
        pipe: the pipeline.
        lock: held while the pipeline samples, because a call changes its scheduler.
    """

    name: str
    pipe: Any
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        scheduler: Any = None if self.autoregressive else self.pipe.scheduler
        self.scheduler = scheduler
        self.samplers = [] if scheduler is None else usable_samplers(scheduler.config)

    @property
    def autoregressive(self) -> bool:
        """Whether the pipeline generates sample by sample."""
        return isinstance(self.pipe, SashimiAutoregressivePipeline)

    @property
    def classes(self) -> KnownLabels | None:
        """The classes of the model; None if it has none."""
        return known_labels(self.pipe.model.config, "class")

    @property
    def speakers(self) -> KnownLabels | None:
        """The speakers of the model; None if it has none."""
        return known_labels(self.pipe.model.config, "speaker")

    @property
    def rate(self) -> int:
        """Sample rate in Hz."""
        return self.pipe.model.config.sample_rate

    @property
    def most_steps(self) -> int:
        """Largest number of sampling steps: that of the training schedule, or for which a student was distilled."""
        config = self.scheduler.config
        return distilled_steps(config) or config.num_train_timesteps

    @property
    def takes_guidance(self) -> bool:
        """Whether the model has labels to guide towards, and is no student, which has learned guidance."""
        has_labels = self.classes is not None or self.speakers is not None
        return has_labels and distilled_steps(self.scheduler.config) is None


class Catalog:
    """The pipelines that were asked for, followed by the bundled ones.

    All of them are loaded at once, so that every error is reported before the page opens. Their convolution kernels
    are kept between calls.

    Args:
        names: folders, names of bundled pipelines, or hub ids.
        device: where they run.

    Raises:
        UserError: a pipeline cannot be loaded, or is a vocoder.
    """

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.device = device
        self._kept = ExitStack()
        bundled = sorted(path.parent.name for path in BUNDLED.glob("*/model_index.json"))
        self._entries = {name: self._load(name) for name in dict.fromkeys([*names, *bundled])}

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def names(self, autoregressive: bool) -> list[str]:
        """Return the names of the pipelines of one kind."""
        return [name for name, entry in self._entries.items() if entry.autoregressive == autoregressive]

    def _load(self, name: str) -> Entry:
        folder = resolve_pipeline(name)
        pipe = _loaded(folder).to(self.device)
        if pipe.model.config.get("mel_channels") is not None:
            raise UserError(f"{printable(name)} is a vocoder: it needs mel spectrograms, so use it from Python")
        pipe.set_progress_bar_config(disable=True)
        self._kept.enter_context(frozen(pipe.model))
        return Entry(name, pipe)


def usable_samplers(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the samplers that a pipeline does not refuse.

    Args:
        config: config of the scheduler of the pipeline.
    """
    usable = []
    for name in fitting_schedulers(config):
        try:
            set_timesteps(create_scheduler(name, config))
        except UserError:
            continue
        usable.append(name)
    return usable


def _loaded(folder: Path) -> Any:
    loader = SashimiAutoregressivePipeline if is_autoregressive(folder) else SashimiPipeline
    return loader.from_pretrained(folder)
