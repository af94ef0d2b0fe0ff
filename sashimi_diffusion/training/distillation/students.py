"""The networks that a distillation trains, and their losses.

A student estimates the clean audio in a noisy waveform in one step, at the timesteps of its sampler. Its estimates must
look like audio at every noise level. Those of a denoiser are the mean of all possible clean waveforms instead, so its
first steps are blurred.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sashimi_diffusion.training.diffusion.batches import Batch
from sashimi_diffusion.training.distillation.config import MethodConfig
from sashimi_diffusion.training.distillation.discriminator import SpectrogramDiscriminator, adversarial_gradient
from sashimi_diffusion.training.distillation.estimates import Conditioning, Estimator, Teacher

_LOWEST, _HIGHEST = 0.02, 0.98  # part of the noise levels for distribution matching, as in arXiv 2311.18828
_SMALLEST_SCALE = 1e-3


@dataclass(kw_only=True)
class DistillationBatch(Batch):
    """Examples of a distillation.

    Args:
        start: timestep at which the student begins, one of its sampler's, (B,).
        second_noise: noise for the audio that the student has generated, (B, C, L), float32.
    """

    start: Tensor
    second_noise: Tensor

    @property
    def conditioning(self) -> Conditioning:
        """The conditions of the denoisers."""
        return {"class_labels": self.labels, "mel": self.mel, "speaker_labels": self.speakers}


class Student(nn.Module):
    """Base class: a module that contains the student and computes its loss.

    Args:
        student: a denoiser with the weights of the teacher.
        estimator: noisy waveforms, and the clean audio in them.
        method: the settings of the method.
    """

    def __init__(self, student: Any, estimator: Estimator, method: MethodConfig) -> None:
        super().__init__()
        self.student, self.estimator = student, estimator
        self.adversarial_weight = method.adversarial_weight
        self.discriminator: SpectrogramDiscriminator | None = None
        if self.adversarial_weight:
            self.discriminator = SpectrogramDiscriminator(
                self.config.in_channels, self.config.sample_rate, method.discriminator_learning_rate_scale
            ).to(student.device)

    @property
    def config(self) -> Any:
        """The config of the student."""
        return self.student.config

    @property
    def device(self) -> torch.device:
        """The device of the student."""
        return self.student.device

    def forward(self, batch: DistillationBatch, teacher: Teacher) -> Tensor:
        """Return the mean loss of a batch, ()."""
        raise NotImplementedError

    def with_discriminator(self, loss: Tensor, generated: Tensor, recordings: Tensor, gradient: Tensor) -> Tensor:
        """Return a loss, plus that of the discriminator and what the student loses to it; the loss itself without one.

        The teacher cannot correct what it has not learned, recordings can (arXiv 2405.14867, section 4.3, and
        2310.02279).

        Args:
            loss: the loss of the student, ().
            generated: audio that the student has estimated, (B, C, L).
            recordings: recordings (B, C, L).
            gradient: gradient of ``loss`` in each sample, (B, C, L); its mean size times ``adversarial_weight`` is that
                of the gradient of the discriminator.
        """
        if self.discriminator is None:
            return loss
        own_loss, adversarial = adversarial_gradient(self.discriminator, recordings, generated)
        size = gradient.detach().abs().mean() / adversarial.abs().mean().clamp(min=torch.finfo(torch.float32).tiny)
        return loss + own_loss + (self.adversarial_weight * size * adversarial * generated).mean()


class ConsistencyStudent(Student):
    """A student that estimates the same audio at two neighboring points of a path (arXiv 2303.01469, algorithm 2).

    The teacher takes one DDIM step from z_t to z_s, with t and s neighbors among the ``levels``. The estimate at z_t
    learns to equal the present estimate at z_s, without a gradient; at the end of the path, it is that of the teacher.
    """

    def __init__(self, student: Any, estimator: Estimator, method: MethodConfig) -> None:
        super().__init__(student, estimator, method)
        self.levels = method.levels

    def forward(self, batch: DistillationBatch, teacher: Teacher) -> Tensor:
        estimator, conditioning = self.estimator, batch.conditioning
        upper, lower, last = self.pairs(batch.timesteps)
        noisy = estimator.noisy(batch.waveform, batch.noise, upper)  # (B, C, L)
        with torch.no_grad():
            clean = teacher.predict(noisy, upper, conditioning)
            signal, deviation = estimator.factors(upper)
            next_noisy = estimator.noisy(clean, (noisy - signal * clean) / deviation, lower)
            estimate = estimator.predict(self.student, next_noisy, lower, conditioning)
            target = torch.where(last[:, None, None], clean, estimate)
        generated = estimator.predict(self.student, noisy, upper, conditioning)
        # Divided by the deviation of the noise, they are errors of the velocity, whose scale is the same at all levels.
        errors = (generated - target) / deviation
        return self.with_discriminator(errors.square().mean(), generated, batch.waveform, errors)

    def pairs(self, timesteps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return neighboring levels for timesteps (B,) of the training.

        Returns:
            the timesteps of the upper and of the lower levels, and whether the lower one is the clean audio, (B,) each;
            its timestep is then that of the smallest level.
        """
        ladder = self.estimator.path.timesteps
        total = len(ladder)
        count = min(self.levels, total)
        index = torch.searchsorted(ladder, timesteps.to(ladder.dtype)).clamp(max=total - 1)
        place = torch.div(index * count, total, rounding_mode="floor")
        upper, lower = (torch.div(level * total, count, rounding_mode="floor") - 1 for level in (place + 1, place))
        return ladder[upper], ladder[lower.clamp(min=0)], lower < 0


class DistributionMatchingStudent(Student):
    """A student whose audio the teacher cannot tell from its own (DMD, arXiv 2311.18828, equation 7, and 2405.14867).

    The critic is a denoiser that is trained on the audio of the student. Where the noised audio of the student is more
    probable among the student's than among the teacher's, the estimates of critic and teacher differ. Their difference
    is the gradient that the student receives.
    """

    def __init__(self, student: Any, estimator: Estimator, method: MethodConfig) -> None:
        super().__init__(student, estimator, method)
        self.critic: Any = type(student).from_config(student.config).to(student.device)
        self.critic.load_state_dict(student.state_dict())
        # The gradient of the student is only right if the critic knows what the student generates now.
        self.critic.learning_rate_scale = method.critic_learning_rate_scale

    def forward(self, batch: DistillationBatch, teacher: Teacher) -> Tensor:
        estimator, conditioning = self.estimator, batch.conditioning
        first = estimator.noisy(batch.waveform, batch.noise, batch.start)
        generated = estimator.predict(self.student, first, batch.start, conditioning)  # (B, C, L)

        ladder = estimator.path.timesteps
        times = batch.timesteps.clamp(*(ladder[int(share * len(ladder))] for share in (_LOWEST, _HIGHEST)))
        given = generated.detach()
        noisy = estimator.noisy(given, batch.second_noise, times)
        by_critic = estimator.predict(self.critic, noisy, times, conditioning)
        by_teacher = teacher.predict(noisy, times, conditioning)
        scale = (given - by_teacher).abs().mean(dim=(1, 2), keepdim=True).clamp(min=_SMALLEST_SCALE)
        direction = (by_critic.detach() - by_teacher) / scale
        _, deviation = estimator.factors(times)
        # The gradient of this term with respect to the audio is the direction, divided by the number of samples.
        matching = 0.5 * (generated - (given - direction)).square().mean()
        loss = matching + ((by_critic - given) / deviation).square().mean()
        return self.with_discriminator(loss, generated, batch.waveform, direction)


STUDENTS = {"consistency": ConsistencyStudent, "distribution_matching": DistributionMatchingStudent}
"""The class of the student of each method."""
