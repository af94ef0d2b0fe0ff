"""Settings of what a run reports to others: the names in trackers, and the card of its pipeline."""

import re

from pydantic import Field, field_validator

from sashimi_diffusion.training.settings import Settings, Text

_IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_DATA_SET = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


class TrackingConfig(Settings):
    """The names of a run in the trackers of `training.trackers`."""

    project: Text = Field(default="sashimi-diffusion", description="project of the trackers that have projects")
    run: Text | None = Field(default=None, description="name of the run; null: the name of the run folder")


class CardConfig(Settings):
    """What only the user knows about the model, for the card pipeline/README.md and its metadata."""

    title: Text | None = Field(default=None, description="name of the model; null: the name of the run folder")
    license: Text | None = Field(
        default=None,
        description="license of the weights as an identifier of the Hugging Face hub, for instance cc-by-4.0; null: "
        "not decided yet, `unknown` in the metadata",
    )
    datasets: list[Text] = Field(
        default=[], description="data sets of the Hugging Face hub that the recordings are from, as owner/name"
    )
    language: list[Text] = Field(default=[], description="languages spoken in the recordings, for instance [en]")
    text: Text | None = Field(default=None, description="description of the recordings and the model, in Markdown")

    @field_validator("license")
    @classmethod
    def _check_license(cls, value: str | None) -> str | None:
        if value is not None and not _IDENTIFIER.fullmatch(value):
            raise ValueError("it must be an identifier such as cc-by-4.0, apache-2.0 or other")
        return value

    @field_validator("datasets")
    @classmethod
    def _check_datasets(cls, value: list[str]) -> list[str]:
        if not all(_DATA_SET.fullmatch(name) for name in value):
            raise ValueError("each must be a name of the hub, such as owner/name")
        return value

    @field_validator("language")
    @classmethod
    def _check_language(cls, value: list[str]) -> list[str]:
        if not all(_IDENTIFIER.fullmatch(name) for name in value):
            raise ValueError("each must be a code such as en, de or zh")
        return value
