"""Nearest codebook entry of each latent vector, without the matrix of distances."""

from next_scale.kernels.nearest_code.op import nearest_code as nearest_code
