"""Tests of the controls of the page, without a browser."""

from pathlib import Path

import pytest
import torch

from sashimi_diffusion.demo.catalog import Catalog
from sashimi_diffusion.demo.handlers import Handlers
from sashimi_diffusion.demo.jobs import Jobs
from sashimi_diffusion.demo.live import LiveSounds
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline


@pytest.mark.parametrize("own", [(0.96, 1.0), (0.0, 0.5), (3.0, 0.01)])
def test_the_sliders_begin_at_the_defaults_of_the_pipeline_and_reach_them(
    autoregressive: str, tmp_path: Path, own: tuple[float, float]
) -> None:
    gradio = pytest.importorskip("gradio", reason="the page needs gradio: pip install gradio")
    from sashimi_diffusion.demo.page import build_page

    model = SashimiAutoregressivePipeline.from_pretrained(autoregressive).model
    SashimiAutoregressivePipeline(model, *own).save_pretrained(tmp_path / "own")
    catalog = Catalog([str(tmp_path / "own")], torch.device("cpu"))
    page = build_page(Handlers(catalog, Jobs(), LiveSounds()))
    sliders = {block.label: block for block in page.blocks.values() if isinstance(block, gradio.Slider)}
    for label, value in zip(("Temperature", "Top-p"), own, strict=True):
        slider = sliders[label]
        assert slider.value == value
        assert slider.minimum <= value <= slider.maximum
        steps = (value - slider.minimum) / slider.step
        assert steps == pytest.approx(round(steps), abs=1e-6)
