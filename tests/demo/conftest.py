"""A catalog with the bundled pipeline and a small autoregressive one, for the tests of the page."""

import pytest
import torch

from sashimi_diffusion.demo.catalog import Catalog
from sashimi_diffusion.demo.handlers import Handlers
from sashimi_diffusion.demo.jobs import Jobs
from sashimi_diffusion.demo.live import LiveSounds
from sashimi_diffusion.models import SashimiAutoregressive, SashimiDenoiser
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline, SashimiPipeline
from sashimi_diffusion.schedulers import DiffWaveScheduler

SMALL = {"sample_rate": 8000, "sample_size": 800, "d_model": 8, "n_layers": 1, "n_state": 4}


@pytest.fixture(scope="session")
def autoregressive(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of an autoregressive pipeline with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("autoregressive") / "pipeline"
    SashimiAutoregressivePipeline(SashimiAutoregressive(**SMALL).eval()).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a diffusion pipeline with random weights, three classes, and a space in its name."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("diffusion") / "my words"
    names = ["zero", "7", "-up, down"]
    model = SashimiDenoiser(**SMALL, waveform_std=0.1, num_classes=3, class_names=names).eval()
    SashimiPipeline(model, DiffWaveScheduler(num_train_timesteps=50), guidance_scale=1.5).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def catalog(words: str, autoregressive: str) -> Catalog:
    """Return the pipelines of the fixtures and the bundled ones."""
    return Catalog([words, autoregressive, words], torch.device("cpu"))


@pytest.fixture
def handlers(catalog: Catalog) -> Handlers:
    """Return new handlers."""
    return Handlers(catalog, Jobs(), LiveSounds())
