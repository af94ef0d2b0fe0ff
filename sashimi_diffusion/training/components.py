"""From a config to the things it names: data sets, network, scheduler, mel transform."""

import hashlib
import math

from diffusers import ModelMixin

from sashimi_diffusion.data.recordings import Recordings
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.schedulers.diffwave import DiffWaveScheduler
from sashimi_diffusion.training.config import DataConfig, TrainConfig
from sashimi_diffusion.training.networks import model_class

_WHERE_TO_GET_DATA = (
    "for spoken digits clone https://github.com/Jakobovski/free-spoken-digit-dataset and set "
    "data.path=free-spoken-digit-dataset/recordings, or let data.kind=speech_commands data.download=true "
    "data.path=FOLDER fetch Speech Commands (2.3 GB)"
)


def create_model(config: TrainConfig, class_names: list[str] | None) -> ModelMixin:
    """The untrained network; sample rate, size and classes come from the data.

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
        model = model_class(config.model.name)(
            sample_rate=config.data.sample_rate,
            sample_size=config.data.length,
            num_classes=None if classes is None else len(classes),
            class_names=classes,
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


def create_training_scheduler(config: TrainConfig) -> DiffWaveScheduler:
    """The noise schedule the network is trained on, which the saved pipeline keeps."""
    return DiffWaveScheduler(**vars(config.schedule))


def create_mel(config: TrainConfig, model: ModelMixin):
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


def open_data(data: DataConfig, skip_bad_files: bool = False) -> tuple[Recordings, Recordings | None]:
    """The training recordings and the held-out ones (None where the data have none).

    Raises:
        UserError: no path, nothing there, or files that cannot be used.
    """
    if data.path is None:
        raise UserError(f"data.path is not set: it must name the folder of the recordings; {_WHERE_TO_GET_DATA}")
    training = _open_split(data, "train", skip_bad_files)
    held_out = data.kind == "speech_commands" or data.holdout or data.splits[1] > 0
    return training, _open_split(data, "validation", skip_bad_files) if held_out else None


def _open_split(data: DataConfig, split: str, skip_bad_files: bool) -> Recordings:
    common = {
        "split": split,
        "sample_rate": data.sample_rate,
        "length": data.length,
        "cache_dir": data.cache_dir,
        "skip_bad_files": skip_bad_files,
    }
    if data.kind == "speech_commands":
        from sashimi_diffusion.data.speech_commands import SpeechCommandsDigits

        recordings = SpeechCommandsDigits(data.path, download=data.download, **common)
    else:
        from sashimi_diffusion.data.audio_folder import AudioFolder

        recordings = AudioFolder(
            data.path, pattern=data.pattern, where=data.where, holdout=data.holdout, splits=tuple(data.splits), **common
        )
    recordings.normalize_rms = data.normalize_rms
    return recordings


def fingerprint(recordings: Recordings) -> str:
    """A hash of which recordings there are, in order, with their lengths and labels: equal where training on them is.

    Folders do not count, so data may be moved between a run and its continuation.
    """
    text = "\n".join(
        f"{recordings.files[recording].name} {start} {recordings.clip_length(item)} {recordings.labels[item]}"
        for item, (recording, start) in enumerate(recordings.items)
    )
    return hashlib.sha256(text.encode()).hexdigest()
