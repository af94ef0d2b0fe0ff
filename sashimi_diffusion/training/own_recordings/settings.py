"""The settings of a run on own recordings, each with the reason for its value."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from sashimi_diffusion.training.own_recordings.budget import USEFUL_STEPS, Budget
from sashimi_diffusion.training.own_recordings.config_text import Groups, Setting
from sashimi_diffusion.training.own_recordings.survey import Survey
from sashimi_diffusion.training.own_recordings.window import SHIFT, Window, commonest_rate

_EQUAL_LEVELS = 3.0  # decibels between quiet and loud recordings that need no scaling
_CHECKPOINTS = 10  # in a run
_CLEAR_GUIDANCE = 2.0


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Args:
        name: name of the config.
        minutes: of training.
        autoregressive: whether to train an autoregressive model instead of a diffusion model.
        device: of the run.
    """

    name: str
    minutes: float
    autoregressive: bool
    device: torch.device


def settings_of(request: Request, survey: Survey, window: Window, budget: Budget) -> Groups:
    """Return all settings of a run."""
    own = _autoregressive if request.autoregressive else _diffusion
    return own(request, survey, window, budget)


def _diffusion(request: Request, survey: Survey, window: Window, budget: Budget) -> Groups:
    conditional = bool(survey.classes or survey.speakers)
    gpu = request.device.type != "cpu"
    return {
        "seed": Setting(0),
        "output_dir": Setting(f"runs/{request.name}"),
        "model": {
            "name": Setting("sashimi"),
            "class_conditional": Setting(bool(survey.classes), _about_classes(survey)),
            "waveform_std": Setting(
                None, "measured on the training examples, so that the diffused data have unit variance"
            ),
            "in_channels": Setting(window.channels, _about_channels(survey, window)),
            **_network(window, budget),
            **_state_space(),
            "weight_norm": Setting(False, "Muon controls the size of the steps"),
            "embedding_hidden": Setting(256),
            "embedding_dim": Setting(256),
        },
        "data": {
            **_data(survey, window),
            "speakers": Setting("speaker" if survey.speakers else None, _about_speakers(survey)),
            "normalize_rms": _normalization(survey),
        },
        "schedule": {
            "num_train_timesteps": Setting(200, "T"),
            "beta_schedule": Setting("squaredcos_cap_v2", "cosine (arXiv 2102.09672): it ends in pure noise"),
            "prediction_type": Setting(
                "v_prediction", "velocity (arXiv 2202.00512), well-conditioned at both ends of the schedule"
            ),
        },
        "objective": {
            "label_dropout": Setting(0.1, "for classifier-free guidance (arXiv 2207.12598)")
            if conditional
            else Setting(0.0, "there are no labels to drop")
        },
        "optimizer": {
            "name": Setting("muon", "AdamW needs about twice as many steps to the same loss"),
            "lr": Setting(4.0e-3 if gpu else 6.0e-3, "of Muon; up to 8e-3 works for the small networks"),
            "momentum": Setting(0.95),
            "ssm_lr": Setting(1.0e-3),
            "weight_decay": Setting(0.1),
            **_learning_rate(budget),
        },
        "training": _training(request, budget),
        "sampling": _samples(survey, gpu, conditional),
    }


def _autoregressive(request: Request, survey: Survey, window: Window, budget: Budget) -> Groups:
    on_cpu = request.device.type == "cpu"
    return {
        "seed": Setting(0),
        "output_dir": Setting(f"runs/{request.name}"),
        "model": {
            "name": Setting("sashimi"),
            "quantization": Setting("mu-law", "256 levels, finer near silence"),
            **_network(window, budget),
            **(_state_space() if on_cpu else {}),
            "n_ssm": Setting(1, "the features share one system, as in the official code"),
        },
        "data": {
            **_data(survey, window),
            "pattern": Setting(
                survey.layout.pattern, "every split has the same shares of the labels; the model itself has no classes"
            )
            if survey.layout.pattern
            else Setting(None, "an autoregressive model has no classes"),
            "normalize": Setting("example", "each example to the full range of the quantization")
            if window.random_shift is not None
            else Setting("recording", "keeps the dynamics within long recordings"),
            "test": Setting(False, "true: bits per sample of test recordings at the end; needs a share in splits"),
        },
        "optimizer": {"lr": Setting(4.0e-3, "as in the SaShiMi paper"), **_learning_rate(budget)},
        "training": _training(request, budget),
        "sampling": {
            "num_samples": Setting(2 if on_cpu else 4, "drawn at every checkpoint, one sample after the other"),
            "seconds": Setting(round(min(window.seconds, 1.0 if on_cpu else 4.0), 2)),
        },
    }


def _network(window: Window, budget: Budget) -> Groups:
    rates = [f"{window.sample_rate / math.prod(window.pool[:stage]):.0f}" for stage in range(1, len(window.pool) + 1)]
    blocks = "blocks of each stage, the raw rate first"
    if not budget.size.n_layers[0]:
        blocks = "blocks of each stage; none at the raw rate, where they cost most"
    return {
        "d_model": Setting(budget.size.d_model, f"{budget.cost.parameters:,} parameters"),
        "n_layers": Setting(list(budget.size.n_layers), blocks),
        "pool": Setting(list(window.pool), f"the rates of the stages after the first are {', '.join(rates)} Hz"),
    }


def _state_space() -> Groups:
    return {
        "parameterization": Setting("diag", "cheaper to compute than nplr"),
        "initialization": Setting("lin", "S4D-Lin and zoh go together (arXiv 2206.11893)"),
        "discretization": Setting("zoh"),
    }


def _data(survey: Survey, window: Window) -> Groups:
    multiple = math.prod(window.pool)
    return {
        "kind": Setting("folder"),
        "path": Setting(str(survey.root.absolute())),
        "pattern": Setting(survey.layout.pattern, _about_pattern(survey)),
        "sample_rate": Setting(window.sample_rate, about_rate(survey, window)),
        "length": Setting(
            window.length, f"{window.seconds:.2f} s, a multiple of the product of the pools, {multiple}; {_fit(window)}"
        ),
        "random_shift": Setting(window.random_shift, _about_shift(window)),
        "splits": _splits(survey),
    }


def about_rate(survey: Survey, window: Window) -> str:
    """Return in words why the run has its sample rate, and what is resampled."""
    rates = survey.counts(lambda recording: recording.sample_rate)
    resampled = sum(count for rate, count in rates.items() if rate != window.sample_rate)
    if commonest_rate(survey) != window.sample_rate:
        return f"most recordings have {commonest_rate(survey)} Hz, more than such a network can learn in the time"
    return f"the rate of most recordings; {resampled} are resampled" if resampled else "the rate of the recordings"


def _about_channels(survey: Survey, window: Window) -> str:
    if window.channels > 1:
        return "audio channels, those of the recordings"
    several = any(recording.channels > 1 for recording in survey.recordings)
    return f"the recordings are {about_mixing(survey)}" if several else ""


def about_mixing(survey: Survey) -> str:
    """Return in words why recordings of several channels are mixed."""
    if survey.levels.equal_channels:
        return "mixed down to 1 channel, because their channels are equal"
    different = len(survey.counts(lambda recording: recording.channels)) > 1
    return "mixed down to 1 channel" + (", because their numbers of channels differ" if different else "")


def _fit(window: Window) -> str:
    if not window.longer:
        return "no recording is longer"
    text = f"{window.longer:.0%} of the recordings are longer, and cut into whole examples"
    return f"{text}; {window.unused:.0%} of the audio, after the last of them, is not used" if window.unused else text


def _about_shift(window: Window) -> str:
    if window.random_shift is None:
        return "any part of a long recording"
    return f"{1000 * SHIFT:.0f} ms" if window.random_shift else ""


def _splits(survey: Survey) -> Setting:
    """Hold out some recordings of each class if one has at least two."""
    counts = survey.classes.values() or [len(survey.recordings)]
    if max(counts) < 2:
        return Setting([1.0, 0.0, 0.0], "too few recordings to hold some out: whole recordings are held out")
    return Setting([0.94, 0.06, 0.0], "shares of the recordings for training, validation and test")


def _about_pattern(survey: Survey) -> str:
    if survey.layout.pattern is None:
        return "the sub-folders are the classes" if survey.classes else "no fields in the names"
    return "fields in the file names, and in the folders before each slash"


def _about_classes(survey: Survey) -> str:
    if survey.classes:
        return f"{len(survey.classes)} classes, from {survey.layout.source}"
    return survey.layout.note or "neither sub-folders nor file names look like classes"


def _about_speakers(survey: Survey) -> str:
    if survey.speakers:
        return f"{len(survey.speakers)} values of the field speaker; a second condition beside the class"
    return "no second condition beside the class" if survey.classes else ""


def _normalization(survey: Survey) -> Setting:
    """Scale recordings whose levels differ to a level at which few exceed full scale."""
    levels = survey.levels
    quiet, loud = np.percentile(20 * np.log10(levels.rms), [10, 90])
    if loud - quiet < _EQUAL_LEVELS:
        return Setting(None, f"the levels of the recordings differ by {loud - quiet:.1f} dB only")
    loudest = 1 / np.percentile(levels.peaks / levels.rms, 95)  # at which 5 % exceed full scale
    value = float(f"{min(np.median(levels.rms), loudest):.2g}")
    return Setting(
        value, f"levels differ by {loud - quiet:.0f} dB (10 % to 90 %); scaled to this root mean square, few would clip"
    )


def _learning_rate(budget: Budget) -> Groups:
    return {
        "warmup_steps": Setting(max(1, min(50, budget.steps // 20))),
        "decay": Setting("cosine", "to the end of max_minutes"),
    }


def _training(request: Request, budget: Budget) -> Groups:
    cost, gpu = budget.cost, request.device.type == "cuda"
    every = _rounded(max(1, budget.steps // _CHECKPOINTS))
    measured = (
        f"a step took {cost.seconds_of(budget.batch_size):.2g} s on {request.device}: about {budget.steps:,} steps"
    )
    if budget.steps < USEFUL_STEPS:
        measured += f"; good results need {USEFUL_STEPS:,} or more"
    memory = f"{budget.memory} for the network and a step, as measured"
    bf16 = gpu and torch.cuda.is_bf16_supported()
    return {
        "max_minutes": Setting(request.minutes, f"{measured}, without validation and samples"),
        "steps": Setting(_rounded(10 * budget.steps), "max_minutes ends the run earlier"),
        "batch_size": Setting(budget.batch_size, memory),
        **(
            {"gradient_checkpointing": Setting(True, "less memory, more time: it would not fit otherwise")}
            if budget.size.checkpointing
            else {}
        ),
        "mixed_precision": Setting("bf16", "half of the memory of float32")
        if bf16
        else Setting("fp32", "bf16 is faster only on processors with bf16 instructions"),
        "ema_decay": Setting(_ema_decay(budget.steps), "averages over about a tenth of the run, at most 1,000 steps"),
        "checkpoint_every": Setting(every, f"about {_CHECKPOINTS} times in the run, with samples to listen to"),
        "validate_every": Setting(every),
        "validation_examples": Setting(256 if gpu else 64),
    }


def _ema_decay(steps: int) -> float:
    return round(1 - 1 / min(1000, max(10, steps / 10)), 4)


def _samples(survey: Survey, gpu: bool, conditional: bool) -> Groups:
    number = max(1, len(survey.classes)) * max(1, len(survey.speakers))
    largest = 16 if gpu else 8
    about = "drawn at every checkpoint"
    if conditional:
        about += ", the classes in turn" + (f"; {number} would have all" if number > largest else "")
    return {
        "num_samples": Setting(min(number, largest) if conditional else largest // 2, about),
        "steps": Setting(20),
        "scheduler": Setting("unipc-karras"),
        "guidance_scale": Setting(_CLEAR_GUIDANCE, "clearer classes than without guidance, and the pipeline's default")
        if conditional
        else Setting(1.0, "there are no classes to guide to"),
    }


def _rounded(number: int) -> int:
    """Return a number with one significant digit."""
    scale = 10 ** (len(str(number)) - 1)
    return round(number / scale) * scale
