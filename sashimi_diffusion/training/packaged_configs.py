"""The configs that come with the package: their names, their files and a line about each.

A config is a YAML file. Its first comment line, after the line that names the schema, says what the config trains.
"""

import os
from pathlib import Path

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import read_text, status
from sashimi_diffusion.suggestions import did_you_mean
from sashimi_diffusion.terminal import printable
from sashimi_diffusion.training.yaml_files import MAX_BYTES

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
"""The folder of the configs of this package. It has a folder for each kind of run, and one for the JSON schemas."""


def packaged_configs(folder: Path) -> dict[str, Path]:
    """Return the configs in a folder: their names, in the order of the alphabet, and their files."""
    return {file.stem: file for file in sorted(folder.glob("*.yaml"), key=lambda file: file.stem)}


def config_file(value: str, folder: Path) -> Path:
    """Return the file that the option ``--config`` names.

    Args:
        value: the name of a packaged config, or a path. A text with a separator of folders or with the ending ``.yaml``
            or ``.yml`` is a path. Any other text is a path if it is no name of a config and there is such a file.
        folder: folder of the packaged configs.

    Raises:
        UserError: ``value`` is neither a path nor the name of a config, or is the path of a packaged config elsewhere.
    """
    configs = packaged_configs(folder)
    if _looks_like_a_path(value):
        file = Path(value)
        if file.stem in configs and status(file) is None:
            raise UserError(
                f"{printable(value)} does not exist: expected a config, which is a YAML file; the packaged config is "
                f"--config {file.stem}"
            )
        return file
    if value in configs:
        return configs[value]
    if status(value) is not None:
        return Path(value)
    others = [file.parent.name for file in CONFIGS.glob("*/*.yaml") if file.stem == value]
    if others:
        raise UserError(f"the config {printable(value)} is for another kind of run: {others[0]}")
    meant = did_you_mean(value, configs) or ":"
    raise UserError(
        f"there is no config '{printable(value)}'{meant} --list prints all names; the path of a file ends in .yaml"
    )


def description(file: Path) -> str:
    """Return the first comment line of a config, without the line that names its schema."""
    lines = read_text(file, "a config", MAX_BYTES).splitlines()
    comments = (line.removeprefix("#").strip() for line in lines if line.startswith("#") and "$schema=" not in line)
    return next(comments, "")


def overview(folder: Path) -> str:
    """Return the names of the configs in a folder, a line about each, and the folder."""
    configs = packaged_configs(folder)
    width = max(map(len, configs))
    lines = [f"{name:<{width}}  {description(file)}" for name, file in configs.items()]
    return "\n".join([*lines, f"in the folder {printable(folder)}"])


def _looks_like_a_path(text: str) -> bool:
    separators = filter(None, (os.sep, os.altsep))
    return text.endswith((".yaml", ".yml")) or any(separator in text for separator in separators)
