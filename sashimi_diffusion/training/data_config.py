"""The part of a config that says which recordings to train on."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from sashimi_diffusion.data.names import field_names
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


Pattern = Annotated[Text, AfterValidator(_checked_pattern)]
"""Pattern of file names with at least one field, see :mod:`sashimi_diffusion.data.names`."""
Splits = Annotated[list[float], AfterValidator(_checked_splits)]
"""Shares of the training, validation and test files."""


_NAMING_FIELDS = ("speakers", "where", "holdout")
"""Settings that name fields of the pattern."""


class DataConfig(Settings):
    """The recordings to train on."""

    kind: Literal["speech_commands", "folder"] = Field(
        default="folder",
        description='"speech_commands" (ten digits of Speech Commands, official split) or "folder" (any recordings)',
    )
    path: Text | None = Field(default=None, description="folder of the recordings")
    download: bool = Field(
        default=False, description="speech_commands only: download the data set into `path` if it is not there"
    )
    sample_rate: int = Field(
        default=16000, ge=1, le=MAX_RATE, description="in Hz; recordings of another rate are resampled"
    )
    length: int = Field(default=16000, ge=1, le=MAX_LENGTH, description="length of a training example in samples")
    pattern: Pattern | None = Field(
        default=None,
        description='folder only: fields in the file names, for instance "{label}_{speaker}_{index}"; null: the names '
        "of the sub-folders are the labels, if the recordings are in at least two sub-folders",
    )
    where: dict[str, Values] = Field(
        default={},
        description="folder only: use only files whose field has one of these values, for instance {speaker: [theo]}",
    )
    holdout: dict[str, Values] | None = Field(
        default=None,
        description="folder only: use files whose field has one of these values for validation, for instance "
        "{index: [0, 1]}; null: `splits` selects them",
    )
    splits: Splits = Field(
        default=[0.88, 0.06, 0.06], description="folder only: shares of the files for training, validation and test"
    )
    order: Literal["shuffled", "name"] = Field(
        default="shuffled",
        description='folder only: "shuffled": `splits` applies to the shuffled files of each class; "name": it applies '
        "to the files in the order of their names, training files first, as papers split music data sets",
    )
    random_shift: int | None = Field(
        default=0,
        ge=0,
        le=MAX_LENGTH,
        description="largest random shift in samples, of a short recording within its window or of the window within "
        "a long recording; 0: no shift; null: any position",
    )
    cache_dir: Text | None = Field(default=None, description="folder for decoded audio; null: the user's cache folder")


def without_settings_of_replaced(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a config tree without the settings that belong to a pattern or a kind of data that was replaced.

    ``data.speakers``, ``data.where`` and ``data.holdout`` of a file name fields of its pattern. If an override replaces
    the pattern, those of them that name a field that the new pattern does not have are left out. If an override
    replaces ``data.kind``, they are left out with the pattern. Overrides themselves are never left out.

    Args:
        tree: nested dictionary in which the overrides are set, as ``apply_overrides`` returns it.
    """
    data = tree.get("data")
    if not isinstance(data, dict):
        return tree
    if isinstance(data.get("kind"), Override) and data["kind"] != "folder":
        names: list[str] = []
        left_out = [key for key in ("pattern", *_NAMING_FIELDS) if not _has_override(data.get(key))]
    elif isinstance(data.get("pattern"), Override):
        try:
            names = field_names(read_overrides(str | None, data["pattern"], "data.pattern"))
        except UserError:  # reported with its key when the config is checked
            return tree
        left_out = [
            key
            for key in _NAMING_FIELDS
            if not _has_override(data.get(key)) and not _fields(data.get(key)) <= set(names)
        ]
    else:
        return tree
    return tree | {"data": {key: value for key, value in data.items() if key not in left_out}}


def _fields(value: Any) -> set[str]:
    """Return the fields that a setting names: a field, or the keys of a group."""
    return {value} if isinstance(value, str) else set(value) if isinstance(value, dict) else set()


def _has_override(value: Any) -> bool:
    return isinstance(value, Override) or (isinstance(value, dict) and any(map(_has_override, value.values())))
