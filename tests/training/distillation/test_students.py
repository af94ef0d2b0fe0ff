"""Tests of the losses of distillation, with white Gaussian data, for which the best denoiser is known.

For data x ~ N(0, 1), the expected velocity is zero at every noise level, and the sampling path of a waveform is
constant: the audio of the waveform z is z itself.
"""

import diffusers
import pytest
import torch
from torch import Tensor, nn

from sashimi_diffusion import DiffWaveScheduler, SashimiDenoiser
from sashimi_diffusion.schedulers.noise_paths import noise_path
from sashimi_diffusion.training.config import OptimizerConfig
from sashimi_diffusion.training.distillation.config import MethodConfig
from sashimi_diffusion.training.distillation.discriminator import SpectrogramDiscriminator, adversarial_gradient
from sashimi_diffusion.training.distillation.estimates import Estimator, Teacher
from sashimi_diffusion.training.distillation.students import (
    ConsistencyStudent,
    DistillationBatch,
    DistributionMatchingStudent,
)
from sashimi_diffusion.training.optimizer import parameter_groups

COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


class Velocity(nn.Module):
    """A denoiser that predicts a velocity by a formula with one trainable factor."""

    def __init__(self, formula=None) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.formula = formula or (lambda sample, timesteps: torch.zeros_like(sample))

    def forward(self, sample: Tensor, timesteps: Tensor, return_dict: bool = True, **conditioning: Tensor):
        return (self.factor * self.formula(sample, timesteps),)


def estimator_of(scheduler) -> Estimator:
    return Estimator(noise_path(scheduler).to(torch.device("cpu"), torch.float32))


@pytest.fixture
def schedule() -> Estimator:
    return estimator_of(DiffWaveScheduler(**COSINE))


# For each objective: a scheduler, and the best prediction for white noise in terms of the input and the timestep.
def flow(sample: Tensor, timesteps: Tensor) -> Tensor:
    time = (timesteps / 200)[:, None, None]
    return (2 * time - 1) / ((1 - time) ** 2 + time**2) * sample


def epsilon(sample: Tensor, timesteps: Tensor) -> Tensor:
    return (1 - DiffWaveScheduler().alphas_cumprod[timesteps])[:, None, None].sqrt() * sample


BEST = {
    "epsilon": (DiffWaveScheduler(), epsilon),
    "v": (DiffWaveScheduler(**COSINE), None),
    "flow": (diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=200), flow),
    "edm": (diffusers.EDMDPMSolverMultistepScheduler(num_train_timesteps=200, sigma_data=1.0), None),
}


@pytest.mark.parametrize("objective", BEST)
def test_the_estimate_is_the_clean_audio_for_every_objective(objective: str) -> None:
    scheduler, best = BEST[objective]
    estimator = estimator_of(scheduler)
    clean, noise = torch.randn(2, 4, 1, 16)
    timesteps = estimator.path.timesteps[[0, 50, 150, 199]]
    signal, deviation = estimator.factors(timesteps)
    torch.testing.assert_close(signal.square() + deviation.square(), torch.ones(4, 1, 1))
    assert (deviation.flatten().diff() > 0).all()
    noisy = estimator.noisy(clean, noise, timesteps)
    found = estimator.predict(Velocity(best), noisy, timesteps, {})
    torch.testing.assert_close(found, signal * noisy, atol=1e-4, rtol=1e-4)

    level = estimator.path.level(timesteps)[:, None, None]  # the target of the training stands for the recording
    if objective in ("epsilon", "v"):
        given, target = estimator.path.example(clean, noise, timesteps)
    else:
        given, target = estimator.path.example(clean, noise, timesteps.float())
    torch.testing.assert_close(estimator.path.model_input(noisy, level), given, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(estimator.path.clean(target, noisy, level), clean, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("objective", BEST)
def test_almost_without_noise_every_network_estimates_the_given_audio(objective: str) -> None:
    estimator = estimator_of(BEST[objective][0])
    level = torch.full((3, 1, 1), 1e-4)
    clean, output = torch.randn(2, 3, 1, 16)
    torch.testing.assert_close(estimator.path.clean(output, clean, level), clean, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("objective", ["flow", "edm"])
def test_students_of_other_objectives_learn_the_path(objective: str) -> None:
    """White noise: the solution x = z of the path has a smaller loss of consistency than the best denoiser."""
    scheduler, best = BEST[objective]
    estimator = estimator_of(scheduler)
    teacher = Teacher(Velocity(best), estimator, 1.0)
    examples = batch()
    examples.timesteps = estimator.path.timesteps[torch.arange(8) * 25].float()
    examples.start = estimator.path.timesteps[[199, 149, 99, 49] * 2].float()

    class Solution(Velocity):
        def forward(self, sample, timesteps, **_):
            level = estimator.path.level(timesteps)[:, None, None]
            ones = torch.ones_like(sample)
            z = sample / estimator.path.model_input(ones, level)
            none, one = (estimator.path.clean(output, z, level) for output in (0 * ones, ones))
            return (self.factor * (z - none) / (one - none),)

    consistent = ConsistencyStudent(Solution(), estimator, MethodConfig(levels=100))(examples, teacher)
    assert consistent < ConsistencyStudent(Velocity(best), estimator, MethodConfig(levels=100))(examples, teacher) / 4
    matched = DistributionMatchingStudent(small(), estimator, MethodConfig())
    loss = matched(examples, Teacher(small(), estimator, 1.0))
    loss.backward()
    assert loss.isfinite()
    assert all(own.grad.isfinite().all() for own in matched.parameters() if own.grad is not None)


def batch(count: int = 8, length: int = 64) -> DistillationBatch:
    random = torch.Generator().manual_seed(0)
    clean, noise, second = (torch.randn(count, 1, length, generator=random) for _ in range(3))
    return DistillationBatch(
        waveform=clean, noise=noise, timesteps=torch.arange(count) * 200 // count, labels=None, mel=None,
        start=torch.tensor([199, 149, 99, 49]).repeat(count // 4), second_noise=second,
    )  # fmt: skip


def test_neighboring_levels(schedule: Estimator) -> None:
    student = ConsistencyStudent(Velocity(), schedule, MethodConfig(levels=4))
    upper, lower, last = student.pairs(torch.tensor([0, 49, 50, 199]))
    assert upper.tolist() == [49, 49, 99, 199]
    assert lower.tolist() == [0, 0, 49, 149]
    assert last.tolist() == [True, True, False, False]


@pytest.mark.parametrize(("levels", "largest"), [(40, 3e-3), (200, 2e-4)])
def test_the_solution_of_the_path_is_consistent(schedule: Estimator, levels: int, largest: float) -> None:
    def solution(sample: Tensor, timesteps: Tensor) -> Tensor:  # x = z
        signal, deviation = schedule.factors(timesteps)
        return -(1 - signal) / deviation * sample

    teacher = Teacher(Velocity(), schedule, 1.0)
    consistent = ConsistencyStudent(Velocity(solution), schedule, MethodConfig(levels=levels))(batch(), teacher)
    mean_of_all = ConsistencyStudent(Velocity(), schedule, MethodConfig(levels=levels))(batch(), teacher)
    assert consistent < largest
    assert consistent < mean_of_all / 4


def test_the_consistency_loss_has_the_gradient_of_the_upper_level_only(schedule: Estimator) -> None:
    calls = []

    class Recorded(Velocity):
        def forward(self, *arguments, **keywords):
            calls.append(torch.is_grad_enabled())
            return super().forward(*arguments, **keywords)

    student = ConsistencyStudent(Recorded(lambda sample, _: 0.1 * sample), schedule, MethodConfig(levels=10))
    student(batch(), Teacher(Velocity(), schedule, 1.0)).backward()
    assert calls == [False, True]
    assert student.student.factor.grad is not None


def small(**changes) -> SashimiDenoiser:
    torch.manual_seed(0)
    arguments = {"d_model": 8, "n_layers": [0, 1], "pool": [4], "n_state": 4, "embedding_sines": 8}
    model = SashimiDenoiser(embedding_hidden=16, embedding_dim=16, sample_size=64, **arguments | changes)
    nn.init.normal_(model.output[-1].weight, std=0.1)
    return model


def test_student_and_critic_receive_only_their_own_gradients(schedule: Estimator) -> None:
    model = small()
    student = DistributionMatchingStudent(model, schedule, MethodConfig())
    teacher = Teacher(small().requires_grad_(False), schedule, 1.0)
    examples = batch()
    student(examples, teacher).backward()
    gradients = [parameter.grad.clone() for parameter in student.critic.parameters()]
    # The critic is trained as a denoiser of what the student has generated.
    student.zero_grad()
    generated = schedule.predict(
        student.student, schedule.noisy(examples.waveform, examples.noise, examples.start), examples.start, {}
    ).detach()
    times = examples.timesteps.clamp(4, 196)
    noisy = schedule.noisy(generated, examples.second_noise, times)
    target = DiffWaveScheduler(**COSINE).get_velocity(generated, examples.second_noise, times)
    (student.critic(noisy, times).sample - target).square().mean().backward()
    for expected, parameter in zip(gradients, student.critic.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected, atol=1e-5, rtol=1e-3)
    assert all(parameter.grad is None for parameter in teacher.model.parameters())


def test_matching_moves_the_audio_from_critic_to_teacher(schedule: Estimator) -> None:
    """The generated audio is too loud. Its gradient, which training subtracts, points away from zero."""
    examples = batch()

    class Loud(Velocity):  # audio of deviation 2, whatever it is given
        def forward(self, sample, timesteps, **_):
            signal, deviation = schedule.factors(timesteps)
            self.audio = (2 * self.factor * examples.waveform).requires_grad_()
            self.audio.retain_grad()
            return ((signal * sample - self.audio) / deviation,)

    def best_velocity(variance: float):
        def formula(sample: Tensor, timesteps: Tensor) -> Tensor:
            signal, deviation = schedule.factors(timesteps)
            clean = signal * variance / (signal**2 * variance + deviation**2) * sample
            return (signal * sample - clean) / deviation

        return formula

    student = DistributionMatchingStudent.__new__(DistributionMatchingStudent)
    nn.Module.__init__(student)
    student.student, student.critic = Loud(), Velocity(best_velocity(4.0)).requires_grad_(False)
    student.estimator, student.discriminator = schedule, None
    student(examples, Teacher(Velocity(best_velocity(1.0)), schedule, 1.0)).backward()
    audio = student.student.audio
    assert (audio.grad * audio.detach()).sum() > 0
    assert student.student.factor.grad > 0


@pytest.mark.parametrize("method", [ConsistencyStudent, DistributionMatchingStudent])
def test_the_discriminator_trains_itself_and_the_student(schedule: Estimator, method: type) -> None:
    torch.manual_seed(0)
    examples, teacher = batch(length=256), Teacher(Velocity(), schedule, 1.0)
    gradients = {}
    for weight in (0.0, 0.5):
        student = method(small(), schedule, MethodConfig(adversarial_weight=weight))
        student(examples, teacher).backward()
        gradients[weight] = {name: parameter.grad for name, parameter in student.named_parameters()}
    with_it, without = gradients[0.5], gradients[0.0]
    assert {name.split(".")[0] for name in with_it} - {name.split(".")[0] for name in without} == {"discriminator"}
    assert all(gradient.abs().max() > 0 for name, gradient in with_it.items() if name.startswith("discriminator"))
    assert any(not torch.equal(with_it[name], own) for name, own in without.items() if name.startswith("student"))
    assert all(torch.equal(with_it[name], own) for name, own in without.items() if name.startswith("critic"))


@pytest.mark.parametrize("channels", [1, 2])
def test_audio_that_follows_the_gradient_resembles_recordings(channels: int) -> None:
    torch.manual_seed(0)
    discriminator = SpectrogramDiscriminator(channels, 8000)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3)
    tone = torch.sin(torch.arange(2048) * 0.4).expand(4, channels, 2048)
    noise = torch.randn(4, channels, 2048)
    losses = []
    for _ in range(12):
        loss, gradient = adversarial_gradient(discriminator, tone, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():  # there is a gradient nevertheless
        _, gradient = adversarial_gradient(discriminator, tone, noise)
        moved = noise - 0.1 * gradient / gradient.std()
        before, after = (sum(logits.mean() for logits in discriminator(audio)) for audio in (noise, moved))
    assert gradient.shape == noise.shape
    assert after > before


def test_critic_and_discriminator_have_learning_rates_of_their_own(schedule: Estimator) -> None:
    student = DistributionMatchingStudent(
        small(), schedule, MethodConfig(critic_learning_rate_scale=4.0, adversarial_weight=0.5)
    )
    rates = {
        id(parameter): group["peak_lr"]
        for group in parameter_groups(student, OptimizerConfig(lr=1e-3, ssm_lr=1e-4))
        for parameter in group["params"]
    }
    found = {(name.split(".")[0], rates[id(parameter)]) for name, parameter in student.named_parameters()}
    assert found == {
        ("student", 1e-3), ("student", 1e-4), ("critic", 4e-3), ("critic", 4e-4), ("discriminator", 1e-2)
    }  # fmt: skip


def test_guidance_of_the_teacher(schedule: Estimator) -> None:
    model = small(num_classes=3)
    nn.init.normal_(model.class_embedding.weight)
    noisy, timesteps = torch.randn(2, 1, 64), torch.tensor([20, 120])
    labels, none = torch.tensor([0, 2]), torch.tensor([3, 3])
    with_labels, without = (
        schedule.predict(model, noisy, timesteps, {"class_labels": own, "mel": None}) for own in (labels, none)
    )
    teacher = Teacher(model, schedule, 3.0)
    found = teacher.predict(noisy, timesteps, {"class_labels": labels, "mel": None, "speaker_labels": None})
    torch.testing.assert_close(found, without + 3 * (with_labels - without), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(with_labels, without)


def test_a_teacher_without_labels_needs_no_guidance(schedule: Estimator) -> None:
    model = small()
    noisy, timesteps = torch.randn(2, 1, 64), torch.tensor([20, 120])
    conditioning = {"class_labels": None, "mel": None, "speaker_labels": None}
    found = Teacher(model, schedule, 3.0).predict(noisy, timesteps, conditioning)
    torch.testing.assert_close(found, schedule.predict(model, noisy, timesteps, conditioning))


def test_students_have_the_config_of_their_network(schedule: Estimator) -> None:
    student = ConsistencyStudent(small(), schedule, MethodConfig())
    assert student.config.d_model == 8
    assert student.device == torch.device("cpu")
