"""The pipeline from which a run starts."""

from collections.abc import Mapping
from pathlib import Path

from sashimi_diffusion.arguments import as_list, short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines import is_autoregressive, resolve_pipeline
from sashimi_diffusion.terminal import printable


def initial_folder(name: str | None, autoregressive: bool) -> Path:
    """Return the folder of the pipeline that ``training.initial_pipeline`` names.

    Args:
        name: the value of the setting.
        autoregressive: whether the run trains an autoregressive model instead of a denoiser.

    Raises:
        UserError: there is no such pipeline, or it is of the other kind.
    """
    try:
        folder = resolve_pipeline(name or "")
        other = is_autoregressive(folder) != autoregressive
    except UserError as error:
        raise UserError(f"training.initial_pipeline: {error}") from error
    if other:
        kind, own = ("a diffusion", "an autoregressive") if autoregressive else ("an autoregressive", "a diffusion")
        raise UserError(
            f"training.initial_pipeline: {printable(name)} is {kind} pipeline, but this command trains {own} model: "
            f"name {own} pipeline"
        )
    return folder


def require_equal(settings: Mapping[str, tuple[object, object]]) -> None:
    """Check that no setting contradicts the initial pipeline.

    Args:
        settings: the value of the config and that of the pipeline by the name of the setting.

    Raises:
        UserError: two of them differ; the message names the first setting.
    """
    for name, (given, own) in settings.items():
        if as_list(given) != as_list(own):
            raise UserError(
                f"{name} is {short_form(given)}, but the initial pipeline has {short_form(own)}: set "
                f"{name}={'null' if own is None else own}"
            )
