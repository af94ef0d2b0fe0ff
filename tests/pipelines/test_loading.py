"""Tests of saving and loading pipelines, also with diffusers alone, and of damaged folders."""

import json
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import DenoiserOutput, SashimiDenoiser, WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline, hash_pipeline, loading, resolve_pipeline
from sashimi_diffusion.schedulers import DiffWaveScheduler, LinearMultistepScheduler, create_scheduler

EMBEDDING = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8}
AUDIO = {"sample_rate": 100, "sample_size": 64, "waveform_std": 0.25}
WEIGHTS = "model/diffusion_pytorch_model.safetensors"


def make_model(sashimi: bool = False, **options: object) -> ModelMixin:
    torch.manual_seed(0)
    if sashimi:
        model = SashimiDenoiser(d_model=8, n_layers=1, n_state=8, **EMBEDDING, **AUDIO, **options)
    else:
        model = WaveNetDenoiser(residual_channels=4, skip_channels=4, n_layers=2, **EMBEDDING, **AUDIO, **options)
    torch.nn.init.normal_(model.output[-1].weight, std=0.3)
    return model.eval()


def audio(pipe: diffusers.DiffusionPipeline) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    return pipe(batch_size=2, generator=torch.Generator().manual_seed(0)).audios


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    SashimiPipeline(make_model(), DiffWaveScheduler(5, beta_end=0.3)).save_pretrained(tmp_path / "pipe")
    return tmp_path / "pipe"


@pytest.mark.parametrize("sashimi", [False, True])
@pytest.mark.parametrize("name", ["diffwave", "ddim", "ipndm"])
def test_a_saved_pipeline_generates_the_same_audio(sashimi: bool, name: str, tmp_path: Path) -> None:
    scheduler = create_scheduler(name, DiffWaveScheduler(5, beta_end=0.3).config)
    pipe = SashimiPipeline(make_model(sashimi), scheduler)
    pipe.save_pretrained(tmp_path / "one")
    loaded = SashimiPipeline.from_pretrained(tmp_path / "one")
    assert type(loaded.scheduler) is type(scheduler)
    assert not loaded.model.training
    np.testing.assert_allclose(audio(loaded), audio(pipe), atol=1e-6)
    loaded.save_pretrained(tmp_path / "two")
    assert hash_pipeline(tmp_path / "one") == hash_pipeline(tmp_path / "two")


def test_loading_in_bfloat16_keeps_state_space_parameters(tmp_path: Path) -> None:
    SashimiPipeline(make_model(sashimi=True), DiffWaveScheduler(5)).save_pretrained(tmp_path)
    for option in ("torch_dtype", "dtype"):
        loaded = SashimiPipeline.from_pretrained(tmp_path, **{option: torch.bfloat16})
        dtypes = {name: parameter.dtype for name, parameter in loaded.model.named_parameters()}
        assert torch.bfloat16 in dtypes.values()
        assert all(dtype == torch.float32 for name, dtype in dtypes.items() if ".ssm." in name)
        assert np.isfinite(audio(loaded)).all()


def test_plain_diffusers_loads_the_folder(tmp_path: Path) -> None:
    """Load the folder in a process that does not import this package explicitly."""
    pipe = SashimiPipeline(make_model(sashimi=True), DiffWaveScheduler(5, beta_end=0.3), guidance_scale=2.0)
    pipe.save_pretrained(tmp_path / "pipe")
    code = f"""
import numpy, torch
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(tmp_path / "pipe")!r}, trust_remote_code=True)
audios = pipe(batch_size=2, generator=torch.Generator().manual_seed(0)).audios
assert pipe.config.guidance_scale == 2
numpy.save({str(tmp_path / "audio.npy")!r}, audios)
pipe.save_pretrained({str(tmp_path / "again")!r})
"""
    environment = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "audio.npy"), audio(pipe), atol=1e-6)
    assert hash_pipeline(tmp_path / "again") == hash_pipeline(tmp_path / "pipe")


def test_plain_diffusers_requires_trust_remote_code(folder: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        diffusers.DiffusionPipeline.from_pretrained(folder)


def test_files_contain_neither_pickles_nor_local_paths(folder: Path) -> None:
    SashimiPipeline.from_pretrained(folder).save_pretrained(folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".py", ".safetensors"}
    assert not any(str(folder) in path.read_text() for path in files if path.suffix != ".safetensors")
    with pytest.raises(UserError, match="safetensors only"):
        SashimiPipeline.from_pretrained(folder).save_pretrained(folder, safe_serialization=False)


class OwnDenoiser(ModelMixin, ConfigMixin):
    """A model of another package."""

    length_multiple = 1

    @register_to_config
    def __init__(
        self, in_channels: int = 1, sample_rate: int = 8, sample_size: int = 8, waveform_std: float = 1.0
    ) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, sample, timestep, class_labels=None, mel=None):
        return DenoiserOutput(sample=self.scale * sample)


def test_a_model_of_another_package_is_passed_as_an_argument(tmp_path: Path) -> None:
    pipe = SashimiPipeline(OwnDenoiser(), DiffWaveScheduler(5))
    pipe.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"OwnDenoiser.*give it as model="):
        SashimiPipeline.from_pretrained(tmp_path)
    model = OwnDenoiser.from_pretrained(tmp_path, subfolder="model")
    np.testing.assert_allclose(audio(SashimiPipeline.from_pretrained(tmp_path, model=model)), audio(pipe))
    with pytest.raises(UserError, match="has no speakers"):
        pipe(speaker_labels=0)


def test_components_can_be_replaced(folder: Path) -> None:
    scheduler = LinearMultistepScheduler(5, beta_end=0.3)
    assert SashimiPipeline.from_pretrained(folder, scheduler=scheduler).scheduler is scheduler


def test_bundled_pipelines_are_found_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "BUNDLED", folder.parent)
    assert resolve_pipeline("pipe") == folder
    with pytest.raises(UserError, match=r"'pip'.*bundled pipeline \(pipe\)"):
        resolve_pipeline("pip")


@pytest.mark.parametrize("name", ["nothing-here", "/no/such/folder", "./no/such", "a/b/c", "../x", "~/x"])
def test_unknown_names_are_refused_without_network_access(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "snapshot_download", lambda *_, **__: pytest.fail("accessed the hub"))
    with pytest.raises(UserError, match="expected a folder"):
        resolve_pipeline(name)


def test_hub_ids_are_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = {}

    def download(name: str, **options: object) -> str:
        request.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(loading, "snapshot_download", download)
    loaded = SashimiPipeline.from_pretrained("somebody/sounds", revision="v1", local_files_only=True)
    assert audio(loaded).shape == (2, 1, 64)
    assert (request["name"], request["revision"], request["local_files_only"]) == ("somebody/sounds", "v1", True)
    assert "*.py" not in str(request["allow_patterns"])


def test_an_unreachable_hub_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder 'somebody/sounds', and the hub") as caught:
        SashimiPipeline.from_pretrained("somebody/sounds", local_files_only=True, cache_dir=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["model_index.json", "model/config.json", "scheduler/scheduler_config.json", WEIGHTS])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "garbage"])
def test_a_damaged_file_is_named(name: str, damage: str, folder: Path) -> None:
    path = folder / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "garbage": b"\x93garbage" * 50}[damage])
    with pytest.raises(UserError) as caught:
        SashimiPipeline.from_pretrained(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("model_index.json", "model", None),
        ("model_index.json", "model", ["sashimi_model", "Path"]),
        ("model_index.json", "scheduler", ["diffusers", "UNet1DModel"]),
        ("model/config.json", "residual_channels", 8),
        ("model/config.json", "n_layers", 3),
        ("model/config.json", "n_layers", "many"),
        ("scheduler/scheduler_config.json", "prediction_type", "sample"),
        ("scheduler/scheduler_config.json", "beta_end", "high"),
    ],
)
def test_an_edited_file_is_named(name: str, key: str, value: object, folder: Path) -> None:
    config = json.loads((folder / name).read_text())
    config[key] = value
    (folder / name).write_text(json.dumps(config))
    with pytest.raises(UserError) as caught:
        SashimiPipeline.from_pretrained(folder)
    assert name.split("/")[0] in str(caught.value)


def test_weights_with_a_missing_or_foreign_tensor_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    first = sorted(weights)[0]
    save_file({name: tensor for name, tensor in weights.items() if name != first}, folder / WEIGHTS)
    with pytest.raises(UserError, match=f"1 missing keys .{first}"):
        SashimiPipeline.from_pretrained(folder)
    save_file({**weights, "foreign": torch.zeros(2)}, folder / WEIGHTS)
    with pytest.raises(UserError, match=r"1 unexpected keys .foreign"):
        SashimiPipeline.from_pretrained(folder)


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / WEIGHTS)
    weights[sorted(weights)[0]].view(-1)[0] = float("nan")
    save_file(weights, folder / WEIGHTS)
    with pytest.raises(UserError, match=rf"{WEIGHTS}: the weights .* are not finite \(NaN or infinity\)"):
        SashimiPipeline.from_pretrained(folder)


def test_a_file_that_may_not_be_read_is_called_neither_corrupt_nor_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.open

    def forbidden(path: Path, *arguments: object, **options: object) -> object:
        if path.name == Path(WEIGHTS).name:  # the superuser may read every file
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(UserError, match=rf"^cannot read .*{WEIGHTS}: Permission denied$"):
        SashimiPipeline.from_pretrained(folder)


def test_names_that_are_no_path(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in {"x" * 300: "File name too long", tmp_path / "loop": "Too many levels"}.items():
        with pytest.raises(UserError, match=f"cannot use .*{reason}"):
            resolve_pipeline(name)


def test_the_folder_inside_of_a_run_is_suggested(folder: Path, tmp_path: Path) -> None:
    folder.rename(tmp_path / "pipeline")
    with pytest.raises(UserError, match=f"{tmp_path} is not a pipeline, but {tmp_path / 'pipeline'} is one"):
        SashimiPipeline.from_pretrained(tmp_path)


def test_a_pickle_is_not_read(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "model" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors does not exist: expected a file of a saved model"):
        SashimiPipeline.from_pretrained(folder)


def test_the_hash_depends_on_every_file(folder: Path) -> None:
    before = hash_pipeline(folder)
    assert before == hash_pipeline(folder)
    with (folder / "scheduler" / "scheduler_config.json").open("a") as file:
        file.write(" ")
    assert hash_pipeline(folder) != before
