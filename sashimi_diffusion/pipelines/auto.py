"""Load a pipeline of either kind."""

import os
from typing import Any

from sashimi_diffusion.pipelines.autoregressive import SashimiAutoregressivePipeline
from sashimi_diffusion.pipelines.loading import is_autoregressive, resolve_pipeline
from sashimi_diffusion.pipelines.options import hub_options
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline


class AutoPipeline:
    """Loader of pipelines that selects the class.

    Example:
        >>> pipe = AutoPipeline.from_pretrained("sashimi-digits")
        >>> type(pipe).__name__
        'SashimiPipeline'
    """

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any
    ) -> SashimiPipeline | SashimiAutoregressivePipeline:
        """Load a diffusion pipeline or an autoregressive one.

        Args:
            pretrained_model_name_or_path: a folder, the name of a bundled pipeline, or the id of a repository on the
                Hugging Face hub.
            **options: arguments of ``from_pretrained`` of the class.

        Raises:
            UserError: an error of :meth:`SashimiPipeline.from_pretrained`.
        """
        folder = resolve_pipeline(pretrained_model_name_or_path, **hub_options(options))
        if is_autoregressive(folder):
            return SashimiAutoregressivePipeline.from_pretrained(folder, **options)
        return SashimiPipeline.from_pretrained(folder, **options)
