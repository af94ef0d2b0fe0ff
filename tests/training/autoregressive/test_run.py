"""Tests of autoregressive training: runs, bits per sample, states carried between chunks."""

import json
import math
import tarfile

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SampleRNN
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline
from sashimi_diffusion.training.autoregressive import task as autoregressive_task
from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.autoregressive.task import AutoregressiveTask, bits_per_sample
from sashimi_diffusion.training.config import from_tree, load_config
from sashimi_diffusion.training.loop import Trainer, train
from sashimi_diffusion.training.packaged_configs import CONFIGS
from sashimi_diffusion.training.yaml_files import apply_overrides

MODELS = {
    "sashimi": {"d_model": 8, "n_layers": 1, "pool": [4], "n_state": 4},
    "wavenet": {"residual_channels": 4, "dilation_channels": 4, "skip_channels": 8, "end_channels": 8, "n_cycles": 1},
    "samplernn": {"dim": 8, "embedding_dim": 4},
}


@pytest.fixture
def ar_config(recordings, tmp_path):
    """Return a function that returns the config of the tiny network called ``name``."""

    def make(name: str = "sashimi", overrides=(), **data) -> AutoregressiveConfig:
        tree = {
            "output_dir": str(tmp_path / "run"),
            "model": {"name": name, **MODELS[name]},
            "data": {"path": str(recordings), "sample_rate": 8000, "length": 256, "splits": [0.6, 0.2, 0.2], **data},
            "optimizer": {"lr": 4e-3},
            "training": {"steps": 4, "batch_size": 2, "checkpoint_every": 2, "validate_every": 2, "log_every": 1}
            | {"mixed_precision": "fp32", "cpu_threads": 1, "trackers": []},
            "sampling": {"num_samples": 1, "seconds": 0.05, "engine": "eager"},
        }
        tree["data"]["cache_dir"] = str(recordings.parent / "cache")
        return from_tree(AutoregressiveConfig, apply_overrides(tree, overrides))

    return make


def lines(run) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("carry_chunks", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_folder(ar_config, name, carry_chunks):
    run = train(AutoregressiveTask, ar_config(name, carry_chunks=carry_chunks))
    last = lines(run)[-1]
    assert 4 < last["test_bits"] < 12
    assert 4 < last["test_bits_chunks"] < 12
    validations = [line for line in lines(run) if "validation_bits" in line]
    assert [line["step"] for line in validations] == [2, 4]
    assert validations[0]["validation_loss"] == pytest.approx(validations[0]["validation_bits"] * math.log(2))
    assert sorted(path.name for path in (run / "samples/step-000004").iterdir()) == ["00.wav", "contact_sheet.png"]
    pipeline = SashimiAutoregressivePipeline.from_pretrained(run / "pipeline")
    assert pipeline(audio_length_in_s=0.01, engine="eager").audios.shape == (1, 1, 80)


@pytest.mark.parametrize("carry_chunks", [1, 2])
def test_a_resumed_run_is_the_same_run(ar_config, tmp_path, carry_chunks):
    whole = ar_config(overrides=[f"output_dir={tmp_path / 'whole'}"], carry_chunks=carry_chunks)
    expected = train(AutoregressiveTask, whole)
    first = Trainer(AutoregressiveTask, ar_config(carry_chunks=carry_chunks), False, None, False)
    original = first._step
    first._step = lambda progress: (
        original(progress) if first.counters.step < 3 else (_ for _ in ()).throw(InterruptedError)
    )
    with pytest.raises(InterruptedError):
        first.run()
    resumed = train(AutoregressiveTask, ar_config(carry_chunks=carry_chunks), resume=True)
    for name in ("model.safetensors", "ema.safetensors"):
        path = f"checkpoints/step-000004/{name}"
        assert (resumed / path).read_bytes() == (expected / path).read_bytes()


def test_bits_of_whole_recordings_do_not_depend_on_the_chunks(ar_config):
    trainer = Trainer(AutoregressiveTask, ar_config(), False, None, False)
    torch.manual_seed(0)
    model = SampleRNN(dim=8, embedding_dim=4).eval()
    examples = [torch.randint(256, (length,)) for length in (40, 97, 64)]
    expected = -sum(model.score(example[None]).sum().item() for example in examples) / (201 * math.log(2))
    for batch_size, chunk in [(1, 200), (2, 32), (3, 13)]:
        bits = bits_per_sample(trainer.accelerator, model, examples, batch_size, chunk)
        assert bits == pytest.approx(expected, rel=1e-5)


def test_a_run_with_tar_files(ar_config, recordings, tmp_path):
    """It stops and resumes, and equals the uninterrupted run; the test split is in the same files."""
    files = sorted(recordings.glob("*.wav"))
    for number in range(2):
        with tarfile.open(tmp_path / f"part-{number}.tar", "w") as archive:
            for file in files[number::2]:
                archive.add(file, file.name)
    data = {"kind": "webdataset", "path": f"{tmp_path}/part-{{0,1}}.tar", "splits": [0.5, 0.3, 0.2]}
    settings = ["optimizer.decay=constant", "sampling.num_samples=0"]
    for steps in (2, 4):
        run = train(AutoregressiveTask, ar_config(overrides=[*settings, f"training.steps={steps}"], **data), steps > 2)
    whole = train(AutoregressiveTask, ar_config(overrides=[*settings, f"output_dir={tmp_path / 'whole'}"], **data))
    last = "checkpoints/step-000004/model.safetensors"
    assert (run / last).read_bytes() == (whole / last).read_bytes()
    assert lines(run)[-1]["test_bits"] == lines(whole)[-1]["test_bits"] > 4
    with pytest.raises(UserError, match=r"data\.carry_chunks is 2: with data\.kind=webdataset it can only be 1"):
        ar_config(carry_chunks=2, **data)


def test_recordings_of_a_hugging_face_data_set_and_of_two_channels(ar_config, tmp_path):
    """The sub-folders of audio files are its splits; the channels are mixed, and the first line of the run says so."""
    pytest.importorskip("datasets", reason="needs the package datasets")
    random = np.random.default_rng(0)
    for number in range(6):
        folder = tmp_path / "audio" / ("test" if number == 5 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{number}.wav", random.uniform(-0.5, 0.5, (300, 2)), 8000)
    config = ar_config(kind="hf_dataset", path=str(tmp_path / "audio"), splits=[0.7, 0.2, 0.1])
    task = AutoregressiveTask(config, torch.device("cpu"), False)
    assert task.description == (
        "4 training, 1 validation and 1 test examples; 6 of 6 recordings are stereo and are mixed to one channel; "
        "15% of the audio is not used: 4 of 4 recordings go on after their last example of 0.03 s, by 0.01 s "
        "on average"
    )
    assert task.test.dataset.files[0].parent.name == "test"


def test_checkpoints_within_an_example_are_refused(ar_config):
    with pytest.raises(UserError, match=r"checkpoint_every is 2: .* multiple of data\.carry_chunks=4"):
        ar_config(carry_chunks=4)


@pytest.mark.parametrize("file", sorted((CONFIGS / "autoregressive").glob("*.yaml")), ids=lambda path: path.stem)
def test_published_configs_load_and_have_the_published_size(file):
    config = load_config(AutoregressiveConfig, file, ["data.path=x"])
    assert config.output_dir == f"runs/{file.stem}"
    model = config.model.network_class(**config.model.arguments)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if "official code" in file.read_text():
        assert parameters == (6_820_512 if "unet" in file.stem else 4_751_072)
        assert f"{parameters:,}" in file.read_text()
    assert config.data.length % model.length_multiple == 0


def test_recordings_that_end_early_leave_later_chunks_without_a_loss(ar_config):
    config = ar_config(carry_chunks=2, length=512)  # the longest of the recordings has 620 samples
    task = AutoregressiveTask(config, torch.device("cpu"), False)
    window = next(window for window in range(20) if task.source.training_lengths(window, 1)[0] <= 512)
    first, second = (task.loss(task.module, task.batch(2 * window + chunk, range(1), 1)) for chunk in (0, 1))
    assert first > 1
    assert second == 0


@pytest.mark.parametrize("random_shift", [None, 30])
def test_lengths_of_examples_are_known_without_their_audio(ar_config, random_shift):
    task = AutoregressiveTask(ar_config(length=256, random_shift=random_shift), torch.device("cpu"), False)
    expected = [len(example) for window in (0, 1, 2) for example in task.source.training_examples(window, range(5), 5)]
    assert [samples for window in (0, 1, 2) for samples in task.source.training_lengths(window, 5)] == expected
    assert len(set(expected)) > 1


def losses_and_gradient(config: AutoregressiveConfig) -> tuple[list[float], torch.Tensor]:
    """Return the losses of four steps from the same parameters and the sum of the gradients."""
    trainer = Trainer(AutoregressiveTask, config, False, None, False)
    trainer.optimizer.step = trainer.optimizer.zero_grad = lambda **_: None
    losses = []
    for step in range(4):
        trainer.counters.step = step
        trainer._step(progress=0.5)
        losses.append(trainer.step.read()[0][0])
    gradients = [parameter.grad.flatten() for parameter in trainer.network.parameters() if parameter.grad is not None]
    return losses, torch.cat(gradients)


@pytest.mark.parametrize("carry_chunks", [1, 2])
def test_samples_have_equal_weight_for_every_division_of_the_batch(ar_config, tmp_path, carry_chunks):
    """Recordings have different lengths: with two chunks, some recordings end before the second."""
    results = []
    for batch_size in (4, 2, 1):
        overrides = [f"output_dir={tmp_path / f'by-{batch_size}'}", "optimizer.gradient_clip=null"]
        overrides += [f"training.batch_size={batch_size}", f"training.gradient_accumulation={4 // batch_size}"]
        config = ar_config(overrides=overrides, carry_chunks=carry_chunks)
        results.append(losses_and_gradient(config))
    (losses, gradient), *others = results
    for other_losses, other_gradient in others:
        assert other_losses == pytest.approx(losses, rel=1e-5)
        torch.testing.assert_close(other_gradient, gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item())


def test_the_loss_is_the_mean_over_the_samples_of_the_batch(ar_config):
    task = AutoregressiveTask(ar_config(), torch.device("cpu"), False)
    examples = task.source.training_examples(0, range(4), 4)
    assert len(set(map(len, examples))) > 1
    expected = -sum(task.network.score(example[None]).sum() for example in examples) / sum(map(len, examples))
    torch.testing.assert_close(task.loss(task.module, task.batch(0, range(4), 4)).detach(), expected)


def test_batches_for_a_gpu_have_equal_shapes_and_the_same_loss(ar_config):
    config = ar_config(length=512, random_shift=None)
    task, other = (AutoregressiveTask(config, torch.device(device), False) for device in ("cpu", "cuda"))
    shapes = set()
    for step in range(4):
        batch, padded = task.batch(step, range(2), 2), other.batch(step, range(2), 2)
        shapes.add(batch.inputs.shape)
        assert padded.inputs.shape == padded.targets.shape == (2, 512)
        torch.testing.assert_close(task.loss(task.module, padded), task.loss(task.module, batch))
    assert len(shapes) > 1


def test_chunks_prepared_ahead_are_those_of_their_steps(ar_config):
    """A step of a later global batch may be prepared before this one is finished."""
    tasks = [AutoregressiveTask(ar_config(carry_chunks=2), torch.device("cpu"), False) for _ in range(2)]
    assert tasks[0].against_graph
    expected = [tasks[0].batch(step, range(2), 2) for step in range(8)]
    for step in (2, 0, 3, 1, 5, 4, 7, 6):
        batch = tasks[1].batch(step, range(2), 2)
        assert torch.equal(batch.inputs, expected[step].inputs)
        assert torch.equal(batch.targets, expected[step].targets)
        assert (batch.samples, batch.state) == (expected[step].samples, (step // 2, 0))


@pytest.mark.parametrize(("length", "times"), [(640, 1), (256, 2)])  # the longest of the recordings has 620 samples
def test_recordings_of_one_chunk_are_evaluated_once(ar_config, monkeypatch, length, times):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return bits_per_sample(*arguments)

    monkeypatch.setattr(autoregressive_task, "bits_per_sample", counted)
    trainer = Trainer(
        AutoregressiveTask, ar_config(length=length, order="name", splits=[0.4, 0.1, 0.5]), False, None, False
    )
    metrics = trainer.task.conclude(trainer.accelerator, trainer.network)
    assert len(calls) == times
    assert (metrics["test_bits_chunks"] == metrics["test_bits"]) == (times == 1)


def test_recordings_too_short_to_carry_a_state_are_refused_before_training(ar_config, tmp_path):
    with pytest.raises(UserError, match=r"the longest recording has \d+ samples, too few for this number"):
        train(AutoregressiveTask, ar_config(carry_chunks=2, length=1024))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("device", "engine", "reason"),
    [
        ("cpu", "cuda-graph", "the model is on cpu, not on a CUDA device"),
        ("cpu", "triton", "the model is on cpu, not on a CUDA device"),
        ("cuda", "numba", "the model is on cuda, not on the CPU"),
    ],
)
def test_an_engine_that_cannot_run_is_refused_before_training(ar_config, monkeypatch, device, engine, reason):
    """The network is still on the CPU when the task is created."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    settings = f"sampling.engine={engine}"
    with pytest.raises(UserError, match=rf"engine '{engine}' cannot run: {reason}"):
        AutoregressiveTask(ar_config(overrides=[settings]), torch.device(device), False)
    AutoregressiveTask(ar_config(overrides=[settings, "sampling.num_samples=0"]), torch.device(device), False)


def test_a_run_starts_from_a_pipeline(ar_config, tmp_path):
    base = train(AutoregressiveTask, ar_config()) / "pipeline"
    settings = [f"training.initial_pipeline={base}", f"output_dir={tmp_path / 'tuned'}", "sampling.top_p=0.9"]
    tuned = ar_config(overrides=settings, length=512, carry_chunks=2)
    network = Trainer(AutoregressiveTask, tuned, resume=False, resume_from=None, skip_bad_files=False).network
    before = SashimiAutoregressivePipeline.from_pretrained(base).model
    assert all(map(torch.equal, network.parameters(), before.parameters()))
    after = SashimiAutoregressivePipeline.from_pretrained(train(AutoregressiveTask, tuned, resume=True) / "pipeline")
    assert not all(map(torch.equal, after.model.parameters(), before.parameters()))
    assert after.model.config.sample_size == 512
    assert after.config.top_p == 0.9


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("sashimi", "model.d_model=16", "model.d_model is 16, but the initial pipeline has 8: set model.d_model=8"),
        ("sashimi", "model.n_ssm=2", "model.n_ssm is 2, but the initial pipeline has None: set model.n_ssm=null"),
        ("sashimi", "data.sample_rate=4000", "data.sample_rate is 4000, but the initial pipeline has 8000"),
        ("sashimi", "data.length=102", "this network needs multiples of 4"),
        (
            "sashimi",
            "training.initial_pipeline=sashimi-digits",
            "training.initial_pipeline: sashimi-digits is a diffusion pipeline, .* name an autoregressive pipeline",
        ),
        ("wavenet", "seed=0", "model.name is wavenet, .* but the initial pipeline has SashimiAutoregressive"),
    ],
)
def test_settings_that_contradict_the_initial_pipeline_are_named(ar_config, tmp_path, name, override, message):
    base = train(AutoregressiveTask, ar_config()) / "pipeline"
    settings = [f"training.initial_pipeline={base}", f"output_dir={tmp_path / 'tuned'}", override]
    with pytest.raises(UserError, match=message):
        AutoregressiveTask(ar_config(name, settings), torch.device("cpu"), skip_bad_files=False)


def test_a_resumed_run_is_told_where_its_initial_pipeline_is_or_that_it_needs_none(ar_config, tmp_path):
    base = train(AutoregressiveTask, ar_config()) / "pipeline"
    out = f"output_dir={tmp_path / 'tuned'}"
    run = train(AutoregressiveTask, ar_config(overrides=[f"training.initial_pipeline={base}", out]))
    trained = SashimiAutoregressivePipeline.from_pretrained(run / "pipeline").model.state_dict()
    moved = base.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"training\.initial_pipeline: no pipeline '.*/run/pipeline'"):
        train(AutoregressiveTask, ar_config(overrides=[f"training.initial_pipeline={base}", out]), resume=True)
    for given in (moved, "null"):
        config = ar_config(overrides=[f"training.initial_pipeline={given}", out])
        train(AutoregressiveTask, config, resume=True)
        resumed = SashimiAutoregressivePipeline.from_pretrained(run / "pipeline").model.state_dict()
        assert all(map(torch.equal, resumed.values(), trained.values()))
