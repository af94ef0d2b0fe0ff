"""Configuration of a distillation: that of the training of its teacher, and the group ``distillation``."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.settings import Settings, Text

MOST_STEPS = 16


class MethodConfig(Settings):
    """How the student learns, and the steps in which it samples."""

    method: Literal["consistency", "distribution_matching"] = Field(
        default="consistency",
        description='"consistency" (arXiv 2303.01469): neighboring points of a sampling path of the teacher lead to '
        'the same audio; "distribution_matching" (arXiv 2405.14867): a second network follows what the student '
        "generates, and its difference from the teacher corrects the student",
    )
    steps: int = Field(default=4, ge=1, le=MOST_STEPS, description="sampling steps of the student, and its default")
    guidance_scale: float | None = Field(
        default=None,
        ge=0,
        le=1000,
        description="scale of the classifier-free guidance of the teacher, which the student learns, so that it needs "
        "none; null: the default of the pipeline of the teacher",
    )
    critic_learning_rate_scale: float = Field(
        default=3.0,
        gt=0,
        le=100,
        description="distribution_matching: the learning rates of the critic, divided by those of the student, which "
        "it has to follow",
    )
    adversarial_weight: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="weight of a discriminator of recordings and generated audio; 0: none",
    )
    discriminator_learning_rate_scale: float = Field(
        default=10.0,
        gt=0,
        le=100,
        description="the learning rates of the discriminator, which begins untrained, divided by those of the student",
    )
    levels: int = Field(
        default=40, ge=2, le=1000, description="consistency: noise levels of a path of the teacher, from noise to audio"
    )


class DistillationConfig(DiffusionConfig):
    """Configuration of a distillation. ``training.initial_pipeline`` is the teacher, with which the student starts."""

    fixed: ClassVar = (*DiffusionConfig.fixed, "distillation")

    output_dir: Text = Field(default="runs/distilled", description="the run folder")
    distillation: MethodConfig = Field(default_factory=MethodConfig)

    @model_validator(mode="after")
    def _check_teacher(self) -> "DistillationConfig":
        if self.training.initial_pipeline is None:
            raise UserError(
                "training.initial_pipeline is null: name the teacher, a folder or a bundled pipeline, for instance "
                "training.initial_pipeline=runs/digits-small/pipeline"
            )
        if self.training.lora_rank is not None:
            raise UserError("training.lora_rank is for fine-tuning: a distillation trains all weights, set it to null")
        if self.training.transfer:
            raise UserError(
                "training.transfer is for fine-tuning: a student has the labels of its teacher, set it to false"
            )
        if self.distillation.steps > self.schedule.num_train_timesteps:
            raise UserError(
                f"distillation.steps is {self.distillation.steps}: it must not exceed "
                f"schedule.num_train_timesteps={self.schedule.num_train_timesteps}"
            )
        return self
