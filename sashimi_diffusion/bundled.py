"""The trained models that are part of the packages: found by name, like folders, wherever something is loaded."""

import os
from pathlib import Path
from typing import Any, ClassVar

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import is_file, is_folder
from sashimi_diffusion.terminal import printable

BUNDLED = Path(__file__).resolve().parent / "pretrained"
"""Folder of the pipelines that are part of the package."""

_INDEX = "model_index.json"


def bundled_folders(bundled: Path = BUNDLED) -> dict[str, Path]:
    """Return the folders in ``bundled`` by name."""
    return {path.parent.name: path.parent for path in sorted(bundled.glob("*/*.json"))}


def local_folder(name: str | os.PathLike[str], bundled: Path = BUNDLED) -> Path | None:
    """Return the folder that a name means on this computer; None if there is none.

    Args:
        name: a folder, or the name of a folder in ``bundled``. A folder in the working directory comes first.
        bundled: folder of the bundled models.

    Raises:
        UserError: the path cannot be examined.
    """
    return Path(name) if is_folder(name) else bundled_folders(bundled).get(os.fspath(name))


class BundledByName:
    """Mixin of models and schedulers of diffusers, whose ``from_pretrained`` then takes names of bundled folders."""

    bundled: ClassVar[Path] = BUNDLED
    config_name: Any

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], subfolder: str | None = None, **options: Any
    ) -> Any:
        """Load the component from a folder, the name of a bundled folder, or a repository on the Hugging Face hub.

        Args:
            pretrained_model_name_or_path: for example ``"sashimi-digits"``.
            subfolder: folder of the component in that of a pipeline, ``"model"`` or ``"scheduler"``.
            **options: the other arguments of diffusers.

        Raises:
            UserError: the folder contains a pipeline, and ``subfolder`` is missing.
        """
        folder = local_folder(pretrained_model_name_or_path, cls.bundled)
        if folder is not None and not subfolder and is_file(folder / _INDEX) and not is_file(folder / cls.config_name):
            parts = [path.parent.name for path in sorted(folder.glob(f"*/{cls.config_name}"))]
            raise UserError(
                f"{printable(pretrained_model_name_or_path)} is a pipeline: name the part of it, for example "
                f"subfolder={(parts or ['model'])[0]!r}"
            )
        base: Any = super()
        return base.from_pretrained(folder or pretrained_model_name_or_path, subfolder=subfolder, **options)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | os.PathLike[str], *arguments: Any, **options: Any) -> Any:
        """Return the config of a component as a dict; see :meth:`from_pretrained`."""
        folder = local_folder(pretrained_model_name_or_path, cls.bundled)
        base: Any = super()
        return base.load_config(folder or pretrained_model_name_or_path, *arguments, **options)
