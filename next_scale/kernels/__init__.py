"""CUDA kernels for what next-scale models spend their time on, each with its definition in PyTorch beside it.

A folder an op: ``reference.py`` is the definition, ``kernel.cu`` the kernel, ``op.py`` the operator that callers use.
Kernels are compiled at first use by NVRTC, which PyTorch's CUDA build installs: no toolkit and no build step.
"""
