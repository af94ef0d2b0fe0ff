"""Tests of distillation runs: their pipelines, their resumption, and settings that do not fit."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, FlowMatchLCMScheduler, LCMScheduler
from safetensors.torch import load_file

from sashimi_diffusion import SashimiPipeline
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines import sample_seeds
from sashimi_diffusion.schedulers import create_scheduler
from sashimi_diffusion.training.config import from_tree
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.distillation.config import DistillationConfig
from sashimi_diffusion.training.distillation.task import DistillationTask
from sashimi_diffusion.training.loop import train

WEIGHTS = Path("model/diffusion_pytorch_model.safetensors")


@pytest.fixture
def teacher(tiny: Any, tmp_path: Path) -> Path:
    own = ("training.steps=2", "sampling.num_samples=0", "sampling.guidance_scale=3")
    tree = tiny(*own, f"output_dir={tmp_path / 'teacher'}")
    return train(DiffusionTask, from_tree(DiffusionConfig, tree)) / "pipeline"


def distilled(tiny: Any, teacher: Path, *overrides: str, resume: bool = False) -> Path:
    tree = tiny(f"training.initial_pipeline={teacher}", "objective.label_dropout=0", *overrides)
    return train(DistillationTask, from_tree(DistillationConfig, tree), resume=resume)


@pytest.mark.parametrize("method", ["consistency", "distribution_matching"])
def test_the_student_is_a_pipeline_with_its_own_number_of_steps(tiny: Any, teacher: Path, method: str) -> None:
    run = distilled(tiny, teacher, f"distillation.method={method}", "training.steps=2")
    pipe = SashimiPipeline.from_pretrained(run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert isinstance(pipe.scheduler, LCMScheduler)
    pipe(2, class_labels=[0, 1], generator=torch.Generator().manual_seed(0))
    assert (pipe.num_timesteps, pipe.guidance_scale) == (4, 1.0)
    for steps in (1, 2):
        audio = pipe(1, steps, torch.Generator().manual_seed(0), class_labels=0).audios
        assert audio.shape == (1, 1, 256)
        assert pipe.num_timesteps == steps
    with pytest.raises(UserError, match="cannot sample in 50 steps: the model was distilled for at most 4"):
        pipe(num_inference_steps=50)
    with pytest.raises(UserError, match="in 0 steps: the model was distilled for at most 4, so ask for 1 to 4"):
        pipe(num_inference_steps=0)
    with pytest.raises(UserError, match="cannot sample in 5 steps: the model was distilled for at most 4"):
        pipe(timesteps=[199, 149, 99, 49, 9])
    with pytest.raises(UserError, match="the scheduler ddim does not fit a model that was distilled to 4 steps"):
        create_scheduler("ddim", pipe.scheduler.config)
    before, after = load_file(teacher / WEIGHTS), load_file(run / "pipeline" / WEIGHTS)
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[name], after[name]) for name in before) > len(before) / 2
    card = (run / "pipeline" / "README.md").read_text()
    assert "distilled to 4 sampling steps" in card
    assert "SashimiDenoiser" in card
    assert len(list((run / "samples" / "step-000002").glob("*.wav"))) == 2


SAMPLERS = {"flow": FlowMatchLCMScheduler, "edm": EDMDPMSolverMultistepScheduler, "epsilon": LCMScheduler}


@pytest.mark.parametrize("objective", SAMPLERS)
def test_a_student_of_every_objective(
    tiny: Any, tmp_path: Path, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr("diffusers.configuration_utils.logger.warning", lambda text, *_: warned.append(text))
    linear = ("schedule.beta_schedule=linear", "schedule.prediction_type=epsilon")
    own = linear if objective == "epsilon" else (f"objective.name={objective}", "sampling.scheduler=null")
    tree = tiny("training.steps=1", "sampling.num_samples=0", *own, f"output_dir={tmp_path / 'teacher'}")
    teacher = train(DiffusionTask, from_tree(DiffusionConfig, tree)) / "pipeline"
    for method in ("consistency", "distribution_matching"):
        out = f"output_dir={tmp_path / method}"
        run = distilled(tiny, teacher, *own, out, f"distillation.method={method}", "training.steps=1")
        pipe = SashimiPipeline.from_pretrained(run / "pipeline")
        assert not [text for text in warned if "not expected" in text]
        pipe.set_progress_bar_config(disable=True)
        assert type(pipe.scheduler) is SAMPLERS[objective]
        audio = pipe(2, class_labels=[0, 1], generator=torch.Generator().manual_seed(0)).audios
        assert pipe.num_timesteps == 4
        again = [
            pipe(1, class_labels=label, generator=[one]).audios[0] for label, one in zip((0, 1), seeded(2), strict=True)
        ]
        assert np.abs(audio - np.stack(again)).max() < 1e-4 * audio.std()
        pipe(1, 1, class_labels=0)
        assert pipe.num_timesteps == 1
        with pytest.raises(UserError, match="the model was distilled for at most 4"):
            pipe(num_inference_steps=5)
        other = {"flow": "flow-heun", "edm": "edm-euler", "epsilon": "ddim"}[objective]
        with pytest.raises(UserError, match=f"the scheduler {other} does not fit a model that was distilled to 4"):
            create_scheduler(other, pipe.scheduler.config)


def test_a_teacher_whose_noise_hides_the_audio_is_refused(tiny: Any, tmp_path: Path) -> None:
    own = ("schedule.beta_schedule=squaredcos_cap_v2", "schedule.prediction_type=epsilon", "sampling.num_samples=0")
    tree = tiny("training.steps=1", *own, f"output_dir={tmp_path / 'teacher'}")
    teacher = train(DiffusionTask, from_tree(DiffusionConfig, tree)) / "pipeline"
    with pytest.raises(UserError, match=r"the teacher predicts noise .* times the audio"):
        distilled(tiny, teacher, *own, f"output_dir={tmp_path / 'refused'}")
    assert not (tmp_path / "refused").exists()


def seeded(count: int) -> list[torch.Generator]:
    """Return the generators of the waveforms of a batch with the seed 0."""
    return [torch.Generator().manual_seed(seed) for seed in sample_seeds(torch.Generator().manual_seed(0), count)]


def test_the_guidance_of_the_teacher_is_its_default_or_given(tiny: Any, teacher: Path) -> None:
    for overrides, expected in (((), 3.0), (("distillation.guidance_scale=1.5",), 1.5)):
        tree = tiny(f"training.initial_pipeline={teacher}", *overrides)
        task = DistillationTask(from_tree(DistillationConfig, tree), torch.device("cpu"), False)
        assert task.teacher.guidance_scale == expected
        assert not any(parameter.requires_grad for parameter in task.teacher.model.parameters())


@pytest.mark.parametrize("method", ["consistency", "distribution_matching"])
def test_a_resumed_run_equals_an_uninterrupted_one(tiny: Any, teacher: Path, tmp_path: Path, method: str) -> None:
    own = (f"distillation.method={method}", "sampling.num_samples=0", "training.checkpoint_every=2")
    own += ("optimizer.decay=constant",)
    whole = distilled(tiny, teacher, *own, "training.steps=4", f"output_dir={tmp_path / 'whole'}")
    parts = f"output_dir={tmp_path / 'parts'}"
    distilled(tiny, teacher, *own, "training.steps=2", parts)
    resumed = distilled(tiny, teacher, *own, "training.steps=4", parts, resume=True)
    expected = load_file(whole / "pipeline" / WEIGHTS)
    for name, value in load_file(resumed / "pipeline" / WEIGHTS).items():
        assert torch.equal(value, expected[name]), name


def test_the_second_noise_does_not_depend_on_the_division_of_the_batch(tiny: Any, teacher: Path) -> None:
    config = from_tree(DistillationConfig, tiny(f"training.initial_pipeline={teacher}"))
    task = DistillationTask(config, torch.device("cpu"), False)

    def examples(positions: range) -> Any:
        return task.complete(task.batch(3, positions, 8), 3, positions, 8)

    whole, parts = examples(range(8)), [examples(range(4)), examples(range(4, 8))]
    for name in ("second_noise", "start", "waveform"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    assert sorted(whole.start.tolist()) == sorted(task.starts.tolist() * 2)


def test_a_resumed_run_needs_the_teacher_of_its_beginning(tiny: Any, teacher: Path, tmp_path: Path) -> None:
    own = ("sampling.num_samples=0", f"output_dir={tmp_path / 'student'}")
    distilled(tiny, teacher, *own, "training.steps=1")
    shutil.move(teacher, tmp_path / "moved")
    distilled(tiny, tmp_path / "moved", *own, "training.steps=2", resume=True)
    tree = tiny("seed=1", "training.steps=1", "sampling.num_samples=0", f"output_dir={tmp_path / 'other'}")
    other = train(DiffusionTask, from_tree(DiffusionConfig, tree)) / "pipeline"
    with pytest.raises(UserError, match=r"made with another teacher than training.initial_pipeline is now"):
        distilled(tiny, other, *own, "training.steps=3", resume=True)


def test_the_sampler_of_the_config_is_not_that_of_the_student(
    tiny: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """The default sampler does not fit flow matching, and two steps are too few for it."""
    own = ("training.steps=1", "objective.name=flow")
    tree = tiny(*own, "sampling.num_samples=0", f"output_dir={tmp_path / 'flow'}")
    teacher = train(DiffusionTask, from_tree(DiffusionConfig, tree)) / "pipeline"
    run = distilled(tiny, teacher, *own, "sampling.scheduler=ddim", f"output_dir={tmp_path / 'student'}")
    assert len(list((run / "samples" / "step-000001").glob("*.wav"))) == 2
    assert not [warning for warning in recwarn if "too few" in str(warning.message)]


def test_students_are_no_teachers_and_are_not_trained(tiny: Any, teacher: Path, tmp_path: Path) -> None:
    own = ("sampling.num_samples=0", "training.steps=1")
    student = distilled(tiny, teacher, *own, f"output_dir={tmp_path / 'student'}") / "pipeline"
    refused = f"output_dir={tmp_path / 'refused'}"
    with pytest.raises(UserError, match="was distilled to 4 steps, and its network denoises only in them"):
        distilled(tiny, student, *own, refused)
    tree = tiny(f"training.initial_pipeline={student}", refused)
    with pytest.raises(UserError, match="was distilled to 4 steps"):
        train(DiffusionTask, from_tree(DiffusionConfig, tree))
    assert not (tmp_path / "refused").exists()


def test_a_teacher_knows_all_speakers_and_guides_only_by_labels(tiny: Any, recordings: Path, tmp_path: Path) -> None:
    own = ("training.steps=1", "sampling.num_samples=0")
    (tmp_path / "few").mkdir()
    for file in recordings.glob("*_a_*.wav"):
        shutil.copy(file, tmp_path / "few")
    few = ("data.speakers=speaker", f"data.path={tmp_path / 'few'}")
    tree = tiny(*own, *few, f"output_dir={tmp_path / 'one'}")
    teacher = train(DiffusionTask, from_tree(DiffusionConfig, tree)) / "pipeline"
    with pytest.raises(UserError, match="the teacher does not know the speaker 'b'"):
        distilled(tiny, teacher, "data.speakers=speaker", f"output_dir={tmp_path / 'refused'}")
    tree = tiny(*own, "model.class_conditional=false", f"output_dir={tmp_path / 'plain'}")
    teacher = train(DiffusionTask, from_tree(DiffusionConfig, tree)) / "pipeline"
    options = ("model.class_conditional=false", f"output_dir={tmp_path / 'refused'}")
    with pytest.raises(UserError, match="neither classes nor speakers to guide towards, so set it to null"):
        distilled(tiny, teacher, *options, "distillation.guidance_scale=5")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.initial_pipeline=null", r"training\.initial_pipeline is null: name the teacher"),
        ("distillation.steps=50", r"distillation\.steps"),
        ("distillation.method=progressive", r"distillation\.method"),
        ("training.lora_rank=2", "a distillation trains all weights"),
        ("training.transfer=true", "a student has the labels of its teacher"),
        ("model.d_model=16", r"set model\.d_model=8"),
    ],
)
def test_settings_that_do_not_fit(tiny: Any, teacher: Path, tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        distilled(tiny, teacher, f"output_dir={tmp_path / 'refused'}", override)
    assert not (tmp_path / "refused").exists()
