"""Tests of the arguments of ``from_pretrained`` and ``from_pipe``, of variants, bundled names and ``AutoPipeline``."""

import json
import os
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import sashimi_diffusion
from sashimi_diffusion import AutoPipeline, SashimiAutoregressivePipeline, SashimiPipeline
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SashimiAutoregressive, SashimiDenoiser, WaveNetDenoiser
from sashimi_diffusion.pipelines import hash_pipeline, loading
from sashimi_diffusion.schedulers import DiffWaveScheduler, LinearMultistepScheduler, create_scheduler
from sashimi_evaluation.classifiers import SmallClassifier, SpeechEmbedding, load_classifier, load_speech_embedding

EMBEDDING = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8}
AUDIO = {"sample_rate": 100, "sample_size": 64, "waveform_std": 0.25}
LABELS = {"num_classes": 3}
WEIGHTS = "diffusion_pytorch_model"


def make_pipeline(guidance_scale: float = 2.5) -> SashimiPipeline:
    torch.manual_seed(0)
    model = SashimiDenoiser(d_model=8, n_layers=1, n_state=8, **EMBEDDING, **AUDIO, **LABELS).eval()
    torch.nn.init.normal_(model.output[-1].weight, std=0.3)
    torch.nn.init.normal_(model.class_embedding.weight)
    return SashimiPipeline(model, DiffWaveScheduler(5, beta_end=0.3), guidance_scale)


def make_autoregressive() -> SashimiAutoregressivePipeline:
    torch.manual_seed(0)
    return SashimiAutoregressivePipeline(
        SashimiAutoregressive(sample_rate=100, sample_size=40, d_model=8, n_layers=1, n_state=4, pool=[4]).eval()
    )


def audio(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    own = {"engine": "eager"} if isinstance(pipe, SashimiAutoregressivePipeline) else {"class_labels": 1}
    return pipe(generator=torch.Generator().manual_seed(0), **own).audios


@pytest.fixture
def pipe() -> SashimiPipeline:
    return make_pipeline()


@pytest.fixture
def folder(pipe: SashimiPipeline, tmp_path: Path) -> Path:
    pipe.save_pretrained(tmp_path / "diffusion")
    return tmp_path / "diffusion"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Path]:
    """Return a folder that no test changes, by class of the pipeline."""
    folder = tmp_path_factory.mktemp("saved")
    make_pipeline().save_pretrained(folder / "diffusion")
    make_autoregressive().save_pretrained(folder / "autoregressive")
    folders = {SashimiPipeline: folder / "diffusion", SashimiAutoregressivePipeline: folder / "autoregressive"}
    return {**folders, AutoPipeline: folder / "diffusion"}


def test_from_pipe_shares_the_components_and_keeps_the_guidance(folder: Path) -> None:
    pipe = SashimiPipeline.from_pretrained(folder)
    expected = audio(pipe)
    for same in (SashimiPipeline.from_pipe(pipe), SashimiPipeline(**pipe.components)):
        assert same.model is pipe.model
        assert same.scheduler is pipe.scheduler
        assert same.config.guidance_scale == same.guidance_scale == 2.5
        np.testing.assert_array_equal(audio(same), expected)
    assert SashimiPipeline.from_pipe(pipe).config._name_or_path == str(folder)


def test_from_pipe_replaces_what_is_given(pipe: SashimiPipeline) -> None:
    scheduler = create_scheduler("ddim", pipe.scheduler.config)
    other = SashimiPipeline.from_pipe(pipe, scheduler=scheduler, guidance_scale=1)
    assert (other.scheduler, other.model, other.config.guidance_scale) == (scheduler, pipe.model, 1.0)
    assert pipe.config.guidance_scale == 2.5
    assert SashimiPipeline.from_pipe(pipe, torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert SashimiPipeline.from_pipe(pipe).dtype == torch.bfloat16  # the weights are shared and keep their dtype


def test_from_pipe_of_an_autoregressive_pipeline() -> None:
    pipe = make_autoregressive()
    for same in (SashimiAutoregressivePipeline.from_pipe(pipe), SashimiAutoregressivePipeline(**pipe.components)):
        assert same.model is pipe.model
        np.testing.assert_array_equal(audio(same), audio(pipe))


def test_from_pipe_names_what_is_missing(pipe: SashimiPipeline) -> None:
    message = (
        "SashimiPipeline needs scheduler, which this SashimiAutoregressivePipeline does not have "
        r"\(it has model, temperature, top_p\)"
    )
    with pytest.raises(UserError, match=message):
        SashimiPipeline.from_pipe(make_autoregressive())
    foreign = diffusers.DanceDiffusionPipeline(unet=torch.nn.Linear(1, 1), scheduler=pipe.scheduler)
    with pytest.raises(UserError, match="SashimiPipeline needs model, which this DanceDiffusionPipeline does not have"):
        SashimiPipeline.from_pipe(foreign)
    assert SashimiPipeline.from_pipe(foreign, model=pipe.model).scheduler.config == pipe.scheduler.config
    with pytest.raises(UserError, match="from_pipe has no argument 'guidance', did you mean 'guidance_scale'"):
        SashimiPipeline.from_pipe(pipe, guidance=2)


@pytest.mark.parametrize("scale", ["much", None, True, [2], float("inf"), 1e7])
def test_a_default_guidance_that_is_no_number_is_refused(scale: object, pipe: SashimiPipeline) -> None:
    with pytest.raises(UserError, match=r"guidance_scale is .*, expected a number from -1e\+06 to 1e\+06"):
        SashimiPipeline(pipe.model, pipe.scheduler, scale)


KINDS = pytest.mark.parametrize("kind", [SashimiPipeline, SashimiAutoregressivePipeline, AutoPipeline])


@KINDS
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device_map": "cuda"}, r"cannot use device_map='cuda': load the pipeline and call \.to\(device\)"),
        ({"quantization_config": 8}, "cannot use quantization_config=8: choose a smaller dtype"),
        ({"custom_pipeline": "mine"}, "cannot use custom_pipeline='mine': code of a folder is not run"),
        ({"use_safetensors": False}, "cannot use use_safetensors=False: pickles are not read"),
        ({"max_memory": {0: "1GB"}}, "cannot use max_memory="),
        ({"proxies": {}}, "cannot use proxies="),
        ({"torch_dtpye": torch.float32}, "has no argument 'torch_dtpye', did you mean 'torch_dtype'"),
        ({"revison": "v1"}, "has no argument 'revison', did you mean 'revision'"),
        ({"safety_checker": None}, r"has no argument 'safety_checker'.* \(it takes model, "),
        ({"torch_dtype": "bfloat16"}, r"torch_dtype is 'bfloat16': expected a dtype such as torch\.bfloat16"),
        ({"dtype": torch.int64}, r"dtype is torch\.int64: expected a dtype"),
        ({"dtype": {"modle": torch.float16}}, "dtype has the key 'modle': expected model or default"),
        ({"dtype": torch.float32, "torch_dtype": torch.bfloat16}, "give one of the two"),
    ],
)
def test_arguments_that_cannot_be_honored_are_refused_by_name(
    arguments: dict, message: str, kind: Any, saved: dict[Any, Path]
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        kind.from_pretrained(saved[kind], **arguments)
    assert "\n" not in str(caught.value)


@KINDS
def test_arguments_that_say_what_happens_anyway_are_accepted(kind: Any, saved: dict[Any, Path]) -> None:
    usual = {"use_safetensors": True, "trust_remote_code": True, "low_cpu_mem_usage": True, "device_map": None}
    hub = {"revision": "main", "cache_dir": None, "token": None, "force_download": False, "local_files_only": True}
    loaded = kind.from_pretrained(saved[kind], **usual, **hub)
    np.testing.assert_array_equal(audio(loaded), audio(kind.from_pretrained(saved[kind])))


def test_the_guidance_of_a_stored_pipeline_is_replaced(saved: dict[Any, Path]) -> None:
    assert SashimiPipeline.from_pretrained(saved[SashimiPipeline]).guidance_scale == 2.5
    assert SashimiPipeline.from_pretrained(saved[SashimiPipeline], guidance_scale=0).guidance_scale == 0


def test_dtypes_by_component(saved: dict[Any, Path]) -> None:
    for dtype in ({"model": torch.bfloat16}, {"default": torch.bfloat16}):
        assert SashimiPipeline.from_pretrained(saved[SashimiPipeline], torch_dtype=dtype).dtype == torch.bfloat16
    assert (
        SashimiPipeline.from_pretrained(saved[SashimiPipeline], torch_dtype={"scheduler": torch.bfloat16}).dtype
        == torch.float32
    )


@pytest.mark.parametrize("kind", ["diffusion", "autoregressive"])
def test_variants_are_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    pipe: Any = make_pipeline() if kind == "diffusion" else make_autoregressive()
    expected = audio(pipe)
    pipe.save_pretrained(tmp_path)
    hashed = hash_pipeline(tmp_path)
    pipe.to(torch.bfloat16)
    rounded = audio(pipe)
    pipe.save_pretrained(tmp_path, variant="bf16")
    names = sorted(path.name for path in (tmp_path / "model").glob("*.safetensors"))
    assert names == [f"{WEIGHTS}.bf16.safetensors", f"{WEIGHTS}.safetensors"]
    assert hash_pipeline(tmp_path) == hashed

    loaded = type(pipe).from_pretrained(tmp_path)
    np.testing.assert_array_equal(audio(loaded), expected)
    small = type(pipe).from_pretrained(tmp_path, variant="bf16", torch_dtype=torch.bfloat16)
    np.testing.assert_array_equal(audio(small), rounded)
    assert all(torch.equal(own, small.model.state_dict()[name]) for name, own in pipe.model.state_dict().items())
    wide = AutoPipeline.from_pretrained(tmp_path, variant="bf16")  # the default dtype is float32
    assert wide.dtype == torch.float32
    name = next(name for name, own in pipe.model.state_dict().items() if own.dtype == torch.bfloat16)
    assert torch.equal(wide.model.state_dict()[name], pipe.model.state_dict()[name].float())
    assert not torch.equal(wide.model.state_dict()[name], loaded.model.state_dict()[name])


def test_plain_diffusers_loads_a_variant(pipe: SashimiPipeline, tmp_path: Path) -> None:
    pipe.to(torch.float16).save_pretrained(tmp_path, variant="fp16")
    options = {"variant": "fp16", "torch_dtype": torch.float16, "trust_remote_code": True}
    plain = diffusers.DiffusionPipeline.from_pretrained(tmp_path, **options)
    np.testing.assert_array_equal(audio(plain), audio(pipe))


def test_a_variant_in_several_files(pipe: SashimiPipeline, folder: Path) -> None:
    pipe.save_pretrained(folder, variant="fp16", max_shard_size=2000)
    assert len(list((folder / "model").glob(f"{WEIGHTS}.fp16-0*.safetensors"))) > 1
    (folder / "model" / f"{WEIGHTS}.safetensors").unlink()
    loaded = SashimiPipeline.from_pretrained(folder, variant="fp16")
    np.testing.assert_array_equal(audio(loaded), audio(pipe))


def test_a_variant_that_is_not_there_lists_what_is_there(pipe: SashimiPipeline, folder: Path) -> None:
    with pytest.raises(UserError, match=r"model has no variant 'fp16': there are weights without a variant$"):
        SashimiPipeline.from_pretrained(folder, variant="fp16")
    pipe.save_pretrained(folder, variant="bf16")
    message = r"has no variant 'fp16': there are weights without a variant and the variants 'bf16'$"
    with pytest.raises(UserError, match=message):
        SashimiPipeline.from_pretrained(folder, variant="fp16")
    (folder / "model" / f"{WEIGHTS}.safetensors").unlink()
    for load in (SashimiPipeline.from_pretrained, hash_pipeline):
        with pytest.raises(UserError, match=r"model has only weights of a variant \('bf16'\): load it with variant="):
            load(folder)


@pytest.mark.parametrize("given", [{}, {"model": WaveNetDenoiser(n_layers=1, **EMBEDDING, **AUDIO)}])
def test_each_class_names_the_right_one(given: dict, saved: dict[Any, Path]) -> None:
    folder, autoregressive_folder = saved[SashimiPipeline], saved[SashimiAutoregressivePipeline]
    with pytest.raises(UserError, match=r"an autoregressive pipeline: load it with SashimiAutoregressivePipeline$"):
        SashimiPipeline.from_pretrained(autoregressive_folder, **given)
    with pytest.raises(UserError, match=r"a diffusion pipeline: load it with SashimiPipeline$"):
        SashimiAutoregressivePipeline.from_pretrained(folder, **given)


def test_the_class_is_selected(saved: dict[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, autoregressive_folder = saved[SashimiPipeline], saved[SashimiAutoregressivePipeline]
    assert sashimi_diffusion.AutoPipeline is AutoPipeline
    for path, kind in {folder: SashimiPipeline, autoregressive_folder: SashimiAutoregressivePipeline}.items():
        loaded = AutoPipeline.from_pretrained(path)
        assert type(loaded) is kind
        np.testing.assert_array_equal(audio(loaded), audio(kind.from_pretrained(path)))
    assert type(AutoPipeline.from_pretrained("sashimi-digits")) is SashimiPipeline
    scheduler = DiffWaveScheduler(5)
    assert AutoPipeline.from_pretrained(folder, scheduler=scheduler).scheduler is scheduler
    with pytest.raises(UserError, match="has no argument 'scheduler'"):
        AutoPipeline.from_pretrained(autoregressive_folder, scheduler=scheduler)
    with pytest.raises(UserError, match="no pipeline 'sashimi-digit'"):
        AutoPipeline.from_pretrained("sashimi-digit")
    requests = []

    def download(name: str, **options: object) -> str:
        requests.append((name, options["revision"]))
        return str(autoregressive_folder)

    monkeypatch.setattr(loading, "snapshot_download", download)
    loaded = AutoPipeline.from_pretrained("somebody/sounds", revision="v1", torch_dtype=torch.float32)
    assert type(loaded) is SashimiAutoregressivePipeline
    assert requests == [("somebody/sounds", "v1")]


def test_bundled_names_work_for_components(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pipe = SashimiPipeline.from_pretrained("sashimi-digits")
    model = SashimiDenoiser.from_pretrained("sashimi-digits", subfolder="model")
    assert all(torch.equal(own, pipe.model.state_dict()[name]) for name, own in model.state_dict().items())
    assert SashimiDenoiser.load_config("sashimi-digits", subfolder="model")["class_names"] == list("0123456789")
    scheduler = DiffWaveScheduler.from_pretrained("sashimi-digits", subfolder="scheduler")
    assert {**scheduler.config, "_name_or_path": None} == {**pipe.scheduler.config, "_name_or_path": None}
    assert DiffWaveScheduler.from_pretrained("sashimi-digits", "scheduler").config == scheduler.config
    linear = LinearMultistepScheduler.from_pretrained("sashimi-digits", subfolder="scheduler")
    torch.testing.assert_close(linear.alphas_cumprod, scheduler.alphas_cumprod)
    for component, part in ((SashimiDenoiser, "model"), (DiffWaveScheduler, "scheduler")):
        with pytest.raises(UserError, match=f"sashimi-digits is a pipeline: name the part .* subfolder='{part}'"):
            component.from_pretrained("sashimi-digits")


def test_bundled_names_work_for_networks_of_the_evaluation() -> None:
    for network, loaded in {
        "digits-small": (SmallClassifier, load_classifier().model),
        "speech-embedding": (SpeechEmbedding, load_speech_embedding()),
    }.items():
        weights = loaded[0].from_pretrained(network).state_dict()
        assert all(torch.equal(own, weights[name]) for name, own in loaded[1].state_dict().items())


def test_a_folder_of_the_same_name_comes_first(
    pipe: SashimiPipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pipe.save_pretrained(tmp_path / "sashimi-digits")
    monkeypatch.chdir(tmp_path)
    assert SashimiDenoiser.from_pretrained("sashimi-digits", subfolder="model").config.d_model == 8
    assert DiffWaveScheduler.from_pretrained("sashimi-digits", subfolder="scheduler").config.num_train_timesteps == 5
    assert SashimiPipeline.from_pretrained("sashimi-digits").model.config.d_model == 8


def test_components_of_a_hub_repository_are_still_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"local_files_only": True, "cache_dir": tmp_path}
    for component in (SashimiDenoiser, DiffWaveScheduler):
        with pytest.raises(OSError, match="somebody/sounds"):
            component.from_pretrained("somebody/sounds", subfolder="model", **options)


def test_a_model_saved_alone_can_be_read_by_others(pipe: SashimiPipeline, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    umask = os.umask(0o022)
    try:
        pipe.model.save_pretrained(tmp_path, variant="fp16", max_shard_size=2000)
    finally:
        os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes.pop("secret") == 0o600
    assert len(modes) > 3
    assert set(modes.values()) == {0o644}
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "SashimiDenoiser"
    np.testing.assert_array_equal(
        audio(SashimiPipeline(SashimiDenoiser.from_pretrained(tmp_path, variant="fp16"), pipe.scheduler, 2.5)),
        audio(pipe),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda folder, pipe: SashimiPipeline.from_pretrained(folder, scheduler="ddim"),
            "scheduler is 'ddim': expected",
        ),
        (lambda folder, pipe: SashimiPipeline.from_pretrained(folder, model="x"), "model is 'x': expected a denoiser"),
        (lambda folder, pipe: SashimiPipeline.from_pipe(pipe, scheduler=5), "scheduler is 5: expected a scheduler"),
        (lambda folder, pipe: SashimiPipeline.from_pipe(pipe, model=torch.nn.Linear(1, 1)), "expected a denoiser such"),
        (lambda folder, pipe: SashimiPipeline.from_pipe("x"), "from_pipe got 'x': expected a pipeline"),
        (lambda folder, pipe: SashimiPipeline.from_pipe(None), "from_pipe got None: expected a pipeline"),
        (lambda folder, pipe: SashimiAutoregressivePipeline(pipe.model), "expected one such as SashimiAutoregressive"),
        (lambda folder, pipe: AutoPipeline.from_pretrained(None), "no pipeline None: expected a folder"),
        (lambda folder, pipe: AutoPipeline.from_pretrained(5), "no pipeline 5: expected a folder"),
        (lambda folder, pipe: AutoPipeline.from_pretrained(b"x"), "no pipeline b'x': expected a folder"),
        (lambda folder, pipe: pipe.save_pretrained("/dev/null"), "save_directory /dev/null is a device"),
        (lambda folder, pipe: pipe.save_pretrained(""), "save_directory is '': expected the path of a folder"),
        (lambda folder, pipe: pipe.save_pretrained(5), "save_directory is 5: expected the path of a folder"),
        (
            lambda folder, pipe: pipe.save_pretrained(folder / "model_index.json"),
            "model_index.json is a file: expected",
        ),
        (
            lambda folder, pipe: pipe.save_pretrained(folder / "model_index.json/x"),
            "cannot write .*/x: Not a directory",
        ),
        (
            lambda folder, pipe: pipe.save_pretrained(folder, variant="../../x"),
            "variant is '../../x': expected letters",
        ),
        (lambda folder, pipe: pipe.save_pretrained(folder, True, ""), "variant is '': expected letters and digits"),
        (lambda folder, pipe: pipe.save_pretrained(folder, foo=1), "save_pretrained has no argument 'foo'"),
    ],
)
def test_wrong_objects_are_one_line(saved: dict[Any, Path], pipe: SashimiPipeline, call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(saved[SashimiPipeline], pipe)
