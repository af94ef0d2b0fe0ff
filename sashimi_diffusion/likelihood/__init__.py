"""Likelihoods: bits per sample of recordings under diffusion and autoregressive pipelines.

from sashimi_diffusion import likelihood

likelihood.bits_per_sample(pipe, audio, method="rk45", hutchinson=4, class_labels=3, speaker_labels="theo").bits
"""

from sashimi_diffusion.likelihood.autoregressive import quantization_of, token_bits_per_sample
from sashimi_diffusion.likelihood.dequantization import Quantization
from sashimi_diffusion.likelihood.diffusion import bits_per_sample, variational_bound
from sashimi_diffusion.likelihood.estimate import BitsPerSample
from sashimi_diffusion.likelihood.flow_ode import Integrator

__all__ = [
    "BitsPerSample",
    "Integrator",
    "Quantization",
    "bits_per_sample",
    "quantization_of",
    "token_bits_per_sample",
    "variational_bound",
]
