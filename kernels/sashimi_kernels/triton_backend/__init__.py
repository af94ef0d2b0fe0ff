"""The operations as Triton kernels, for CUDA and ROCm devices (and CPU tensors in Triton's interpreter)."""
