"""The part of a config that selects the network and its arguments, checked against the network's constructor."""

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Literal

from diffusers.models.modeling_utils import ModelMixin
from pydantic import ConfigDict, Field, GetJsonSchemaHandler, ValidationError, create_model, model_validator
from pydantic_core import CoreSchema

from sashimi_diffusion.arguments import check_arguments
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.settings import Settings, first_problem, read_overrides


class ModelConfig(Settings):
    """Name of a network and arguments of its constructor; in YAML all of them are keys under ``model``.

    A subclass sets ``networks`` and the type of ``name``. Its other fields are settings that are not arguments
    of the constructor. The ranges of the arguments are those of the network.
    """

    model_config = ConfigDict(extra="allow")

    networks: ClassVar[Mapping[str, type[ModelMixin]]] = {}
    """Network classes by name, with the ranges of their arguments in the attribute ``ranges``."""
    from_data: ClassVar[tuple[str, ...]] = ("sample_rate", "sample_size")
    """Arguments that the data determine; a config must not give them."""
    measured: ClassVar[tuple[str, ...]] = ()
    """Arguments that may be null: a run then measures them on its training data."""

    name: str

    @model_validator(mode="after")
    def _check_arguments(self) -> "ModelConfig":
        tree, settings = self.model_dump(), self._settings_of(self.name)
        try:
            settings.model_validate(tree)
        except ValidationError as error:
            raise first_problem(error, settings, tree, "model.") from None
        given = {key: value for key, value in self.arguments.items() if value is not None or key not in self.measured}
        try:
            check_arguments(self.network_class.__init__, given, self.network_class.ranges)
        except UserError as error:
            raise UserError(f"model.{error}") from None
        return self

    @classmethod
    def types_of(cls, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the type of every key of the network that ``group`` names."""
        name = read_overrides(str, group.get("name", cls.model_fields["name"].default))
        known = isinstance(name, str) and name in cls.networks
        return cls._settings_of(name).types_of(group) if known else super().types_of(group)

    @property
    def network_class(self) -> type[Any]:
        """The class of the network called ``name``."""
        return self.networks[self.name]

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of the network's constructor that the config contains."""
        return dict(self.model_extra or {})

    def argument(self, name: str) -> Any:
        """Return an argument of the network's constructor, or its default if the config does not contain it."""
        return self.arguments.get(name, inspect.signature(self.network_class).parameters[name].default)

    @classmethod
    @cache
    def _settings_of(cls, name: str) -> type[Settings]:
        """Return a settings class for one network: the fields of this class and the arguments of the constructor.

        It is built from the signature of the constructor. Therefore the checks of keys and types and the JSON schema
        agree with the network.
        """
        fields: dict[str, Any] = {key: (field.annotation, field) for key, field in cls.model_fields.items()}
        default = cls.model_fields["name"].default
        fields["name"] = (Literal[name], Field(default=name if name == default else ..., description="the network"))
        for key, parameter in inspect.signature(cls.networks[name]).parameters.items():
            if key not in cls.from_data:
                annotation = Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation
                if key in cls.measured:
                    annotation = annotation | None
                fields[key] = (annotation, ... if parameter.default is inspect.Parameter.empty else parameter.default)
        return create_model(cls.networks[name].__name__, __base__=Settings, **fields)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Return a schema with one alternative per network."""
        schemas = [cls._settings_of(name).model_json_schema() for name in cls.networks]
        return {"description": inspect.getdoc(cls), "anyOf": schemas}
