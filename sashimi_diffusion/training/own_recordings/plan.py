"""Plan a run on own recordings: training examples, network, batch size, and the text of the config."""

from dataclasses import dataclass

from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.config import RunConfig, from_tree
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.own_recordings.budget import USEFUL_STEPS, Budget, choose_budget
from sashimi_diffusion.training.own_recordings.config_text import config_text, plain
from sashimi_diffusion.training.own_recordings.networks import Size, limits_of, pools_of, sizes_of
from sashimi_diffusion.training.own_recordings.settings import Request, settings_of
from sashimi_diffusion.training.own_recordings.step_cost import Cost, measure_step
from sashimi_diffusion.training.own_recordings.survey import Survey
from sashimi_diffusion.training.own_recordings.window import Window, channels_of, choose_window, sample_rate_of
from sashimi_diffusion.training.yaml_files import read_yaml

_LARGEST_BATCH = {"cpu": 16}
_LARGEST_BATCH_OF_GPU = 32


@dataclass(frozen=True)
class Plan:
    """A run on own recordings.

    Args:
        request: what the user asks for.
        survey: the recordings.
        window: the training examples.
        budget: network, batch size and steps.
    """

    request: Request
    survey: Survey
    window: Window
    budget: Budget

    @property
    def config(self) -> RunConfig:
        """The config of the run."""
        return _config(self.request, self.survey, self.window, self.budget)

    def text(self, command: str) -> str:
        """Return the YAML text of the config, with the command that trains it in its first lines."""
        kind = "An autoregressive" if self.request.autoregressive else "A diffusion"
        header = [
            f"{kind} model of own recordings, written by `sashimi-train init`. Every value may be changed.",
            "",
            command,
            "",
        ]
        text = config_text(settings_of(self.request, self.survey, self.window, self.budget), header)
        if from_tree(type(self.config), read_yaml(text, "the config")) != self.config:
            raise AssertionError("the text of the config has other values than the config")
        return text


def plan_window(request: Request, survey: Survey) -> Window:
    """Return the training examples of a run."""
    limits = limits_of(request.autoregressive, request.device)
    rate = sample_rate_of(survey, limits)
    pool = pools_of(request.autoregressive, request.device, rate)
    channels = 1 if request.autoregressive else channels_of(survey)
    return choose_window(survey, rate, channels, pool, limits, shift=not request.autoregressive)


def plan_run(request: Request, survey: Survey, window: Window) -> Plan:
    """Return the plan of a run with these training examples; it measures training steps on the device.

    The measurement takes seconds on a GPU and up to about two minutes on a CPU.

    Raises:
        UserError: no network fits into the memory of the device, or the minutes are too few.
    """

    def measure(size: Size) -> Cost:
        provisional = Budget(size, Cost((0, 0), (0, 0), 0), batch_size=1, steps=USEFUL_STEPS)
        config = _config(request, survey, window, provisional)
        return measure_step(config, list(survey.classes), list(survey.speakers), request.device)

    largest = _LARGEST_BATCH.get(request.device.type, _LARGEST_BATCH_OF_GPU)
    largest = min(largest, 1 << (window.examples - 1).bit_length())
    sizes = sizes_of(request.autoregressive, request.device)
    return Plan(request, survey, window, choose_budget(sizes, measure, request.device, request.minutes, largest))


def _config(request: Request, survey: Survey, window: Window, budget: Budget) -> RunConfig:
    kind = AutoregressiveConfig if request.autoregressive else DiffusionConfig
    return from_tree(kind, plain(settings_of(request, survey, window, budget)))
