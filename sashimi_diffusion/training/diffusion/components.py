"""From a config to the things it names: denoiser, scheduler, mel transform."""

import math

from diffusers import ModelMixin

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.schedulers.diffwave import DiffWaveScheduler
from sashimi_diffusion.training.diffusion.config import DiffusionConfig


def create_model(
    config: DiffusionConfig, class_names: list[str] | None, speaker_names: list[str] | None = None
) -> ModelMixin:
    """The untrained network; sample rate, size, classes and speakers come from the data.

    Raises:
        UserError: class-conditional without labelled data, a length the network cannot take, or arguments it refuses.
    """
    if config.model.class_conditional and not class_names:
        raise UserError(
            "model.class_conditional is true, but the recordings have no labels: give their classes with "
            "data.pattern (for instance '{label}_{speaker}_{index}'), or set model.class_conditional=false"
        )
    classes = class_names if config.model.class_conditional else None
    try:
        model = config.model.network_class(
            sample_rate=config.data.sample_rate,
            sample_size=config.data.length,
            num_classes=None if classes is None else len(classes),
            class_names=classes,
            num_speakers=None if speaker_names is None else len(speaker_names),
            speaker_names=speaker_names,
            **config.model.arguments,
        )
    except ValueError as error:
        raise UserError(f"the network cannot be built as `model` says: {error}") from error
    if config.data.length % model.length_multiple:
        longer = math.ceil(config.data.length / model.length_multiple) * model.length_multiple
        raise UserError(
            f"data.length is {config.data.length}, but this network takes multiples of {model.length_multiple} samples "
            f"(the product of model.pool): {longer} is the next"
        )
    return model


def create_training_scheduler(config: DiffusionConfig) -> DiffWaveScheduler:
    """The noise schedule the network is trained on, which the saved pipeline keeps."""
    return DiffWaveScheduler(**vars(config.schedule))


def create_mel(config: DiffusionConfig, model: ModelMixin):
    """The mel transform a vocoder is conditioned on, or None for another model."""
    if model.config.mel_channels is None:
        return None
    from sashimi_diffusion.data.mel import LogMel

    return LogMel(
        sample_rate=config.data.sample_rate,
        hop=math.prod(model.config.mel_upsample),
        n_mels=model.config.mel_channels,
        **vars(config.data.mel),
    ).to(model.device)
