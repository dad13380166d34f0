"""The step between scales: codes up to the full grid, smoothed, added to the latent, and down to the next scale."""

from next_scale.kernels.pyramid_step.op import pyramid_inputs as pyramid_inputs
from next_scale.kernels.pyramid_step.op import pyramid_step as pyramid_step
from next_scale.kernels.pyramid_step.op import pyramid_tokens as pyramid_tokens
