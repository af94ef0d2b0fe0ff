"""The part of a config that says which recordings to train on."""

from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.data.names import field_names
from sashimi_diffusion.data.speech_commands import check_words
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.base import RANGES
from sashimi_diffusion.training.settings import Settings, Text, Values, read_overrides
from sashimi_diffusion.training.yaml_files import Override

MAX_RATE, MAX_LENGTH = int(RANGES["sample_rate"].high), int(RANGES["sample_size"].high)
"""The largest sample rate and length of a network."""


def _checked_pattern(pattern: str) -> str:
    try:
        field_names(pattern)
    except UserError as error:
        raise ValueError(str(error)) from None
    return pattern


def _checked_splits(splits: list[float]) -> list[float]:
    if len(splits) != 3 or min(splits) < 0 or abs(sum(splits) - 1) > 1e-6:
        raise ValueError("it must be three shares (training, validation, test) that add up to 1")
    return splits


def _no_truth_values(words: Any) -> Any:
    if isinstance(words, list) and any(isinstance(word, bool) for word in words):
        raise ValueError('YAML reads yes, no, on and off as true and false: write them within quotes, as in ["no"]')
    return words


def _checked_words(words: list[str]) -> list[str]:
    try:
        check_words(words)
    except UserError as error:
        raise ValueError(str(error)) from None
    return words


Words = Annotated[list[Text], Len(1), BeforeValidator(_no_truth_values), AfterValidator(_checked_words)]
"""Words of Speech Commands; at least one, each once."""
Pattern = Annotated[Text, AfterValidator(_checked_pattern)]
"""Pattern of file names with at least one field, see :mod:`sashimi_diffusion.data.names`."""
Splits = Annotated[list[float], AfterValidator(_checked_splits)]
"""Shares of the training, validation and test files."""


_NAMING_FIELDS = ("speakers", "where", "holdout")
"""Settings that name fields of the pattern."""


_FOLDER = ("folder", "speech_commands")  # the second ignores settings of the first, as older versions did
_KINDS = {
    "subset": ("hf_dataset",),
    "audio_column": ("hf_dataset", "webdataset"),
    "label_column": ("hf_dataset", "webdataset"),
    "train_split": ("hf_dataset",),
    "validation_split": ("hf_dataset",),
    "test_split": ("hf_dataset",),
    "shuffle_buffer": ("webdataset",),
    "pattern": (*_FOLDER, "webdataset"),
    "where": (*_FOLDER, "hf_dataset"),
    "holdout": (*_FOLDER, "hf_dataset"),
    "order": (*_FOLDER, "hf_dataset"),
    "download": _FOLDER,
    "whole": ("folder",),
    "words": ("speech_commands",),
    "more_paths": ("speech_commands",),
    "min_contrast_db": ("speech_commands",),
}
"""The kinds of data that have a setting; the others are errors."""


class DataConfig(Settings):
    """The recordings to train on."""

    kind: Literal["speech_commands", "folder", "hf_dataset", "webdataset"] = Field(
        default="folder",
        description='"folder" (any recordings); "speech_commands" (words of Speech Commands, official split); '
        '"hf_dataset" (a Hugging Face data set); or "webdataset" (tar files, which are read as they are used)',
    )
    path: Text | None = Field(
        default=None,
        description="folder of the recordings; hf_dataset: also an id on the hub such as owner/name; webdataset: "
        "folder of the tar files, or a pattern such as shards/train-{000000..000009}.tar",
    )
    subset: Text | None = Field(default=None, description="hf_dataset only: the configuration of the data set")
    audio_column: Text | None = Field(
        default=None,
        description="hf_dataset: the column of the audio, null: the only one with audio, or the one called audio; "
        "webdataset: the ending of the audio in the tar files, such as mic1.flac, null: wav, flac, ogg or mp3",
    )
    label_column: Text | None = Field(
        default=None,
        description="hf_dataset: the column of the class, null: label, if there is such a column; webdataset: the "
        "ending of a member with the class (cls, txt), or a key of the member ending in json, null: cls, or the key "
        "label",
    )
    train_split: Text = Field(default="train", description="hf_dataset only: the training split")
    validation_split: Text | None = Field(
        default=None,
        description="hf_dataset only: the validation split; null: validation if there is such a split, otherwise a "
        "share of the training split, see `splits`",
    )
    test_split: Text | None = Field(
        default=None, description="hf_dataset only: the test split; null: test, or a share of the training split"
    )
    shuffle_buffer: int = Field(
        default=1000,
        ge=1,
        le=10_000_000,  # their order is in memory
        description="webdataset only: number of recordings among which the order is shuffled; the order of the tar "
        "files is shuffled as well",
    )
    download: bool = Field(
        default=False, description="speech_commands only: download the data set into `path` if it is not there"
    )
    words: Words | None = Field(
        default=None, description="speech_commands only: the words, in the order of the classes; null: the ten digits"
    )
    more_paths: list[Text] = Field(
        default=[],
        description="speech_commands only: further folders with words, each with its own lists of the splits",
    )
    min_contrast_db: float | None = Field(
        default=None,
        ge=0,
        le=200,
        description="speech_commands only: leave out recordings whose loud parts exceed their quiet parts by fewer "
        "decibels, in which there is no word, or only below noise or a constant offset; null: use all",
    )
    sample_rate: int = Field(
        default=16000, ge=1, le=MAX_RATE, description="in Hz; recordings of another rate are resampled"
    )
    length: int = Field(default=16000, ge=1, le=MAX_LENGTH, description="length of a training example in samples")
    pattern: Pattern | None = Field(
        default=None,
        description='folder and webdataset: fields in the file names, for instance "{label}_{speaker}_{index}"; null: '
        "in a folder, the names of the sub-folders are the labels, if the recordings are in at least two sub-folders",
    )
    where: dict[str, Values] = Field(
        default={},
        description="folder and hf_dataset: use only files whose field (or column) has one of these values, for "
        "instance {speaker: [theo]}",
    )
    holdout: dict[str, Values] | None = Field(
        default=None,
        description="folder and hf_dataset: use files whose field (or column) has one of these values for validation, "
        "for instance {index: [0, 1]}; null: `splits` selects them",
    )
    splits: Splits = Field(
        default=[0.88, 0.06, 0.06],
        description="shares of the files for training, validation and test; speech_commands has its own splits",
    )
    order: Literal["shuffled", "name"] = Field(
        default="shuffled",
        description='folder and hf_dataset: "shuffled": `splits` applies to the shuffled files of each class; "name": '
        "it applies to the files in the order of their names, training files first, as papers split music data sets",
    )
    random_shift: int | None = Field(
        default=0,
        ge=0,
        le=MAX_LENGTH,
        description="largest random shift in samples, of a short recording within its window or of the window within "
        "a long recording; 0: no shift; null: any position",
    )
    whole: bool = Field(
        default=False,
        description="folder only: each recording is one example, its beginning, as it suits single words; false: "
        "longer recordings have an example for each `length` samples",
    )
    cache_dir: Text | None = Field(default=None, description="folder for decoded audio; null: the user's cache folder")

    @model_validator(mode="after")
    def _check_kind(self) -> "DataConfig":
        for name, kinds in _KINDS.items():
            default = DataConfig.model_fields[name].default
            if getattr(self, name) != default and self.kind not in kinds:
                needed = [kind for kind in kinds if kind != "speech_commands"] or kinds
                raise UserError(
                    f"data.{name} is {short_form(getattr(self, name))}, but data.kind is {self.kind}: remove it; it "
                    f"needs data.kind={' or '.join(needed)}"
                )
        return self


def without_settings_of_replaced(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a config tree without the settings that belong to a pattern or a kind of data that was replaced.

    ``data.speakers``, ``data.where`` and ``data.holdout`` of a file name fields of its pattern. If an override replaces
    the pattern, those of them that name a field that the new pattern does not have are left out. If an override
    replaces ``data.kind``, all settings that the new kind does not have are left out, and unless it is a folder, also
    the pattern and what names its fields. Overrides themselves are never left out.

    Args:
        tree: nested dictionary in which the overrides are set, as ``apply_overrides`` returns it.
    """
    data = tree.get("data")
    if not isinstance(data, dict):
        return tree
    replaced: set[str] = set()
    if isinstance(data.get("kind"), Override):
        replaced = {key for key, kinds in _KINDS.items() if data["kind"] not in kinds}
        if data["kind"] != "folder":
            replaced |= {"pattern", *_NAMING_FIELDS}
    if "pattern" not in replaced and isinstance(data.get("pattern"), Override):
        try:
            names = field_names(read_overrides(str | None, data["pattern"], "data.pattern"))
        except UserError:  # reported with its key when the config is checked
            return tree
        replaced |= {key for key in _NAMING_FIELDS if not _fields(data.get(key)) <= set(names)}
    left_out = {key for key in replaced if not _has_override(data.get(key))}
    return tree | {"data": {key: value for key, value in data.items() if key not in left_out}}


def _fields(value: Any) -> set[str]:
    """Return the fields that a setting names: a field, or the keys of a group."""
    return {value} if isinstance(value, str) else set(value) if isinstance(value, dict) else set()


def _has_override(value: Any) -> bool:
    return isinstance(value, Override) or (isinstance(value, dict) and any(map(_has_override, value.values())))
