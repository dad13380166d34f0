"""From logits to a token: guidance, temperature, top-k, top-p and the draw, in one step and without a sort."""

from next_scale.kernels.guided_sample.op import guided_sample as guided_sample
