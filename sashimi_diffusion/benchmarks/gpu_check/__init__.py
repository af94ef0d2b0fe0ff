"""One command that tests and measures this project on a GPU: ``python -m sashimi_diffusion.benchmarks.gpu_check``."""
