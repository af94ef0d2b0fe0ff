"""The pipeline from which a run starts."""

from pathlib import Path

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
