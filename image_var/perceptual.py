"""How alike two images look to a trained classifier: differences of VGG16's feature maps."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from next_scale.errors import UserError

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB in 0 .. 1
TAPS = (3, 8, 15, 22, 29)  # the last ReLU of each of VGG16's five resolutions
_HELP = "give a state dict of torchvision's VGG16, such as vgg16-397923af.pth of torchvision.models.VGG16_Weights"


class PerceptualLoss(nn.Module):
    """Mean squared distance of VGG16's features, normalised to unit length at every place (LPIPS, arXiv 1801.03924,
    equation 1, with equal weights for all channels), summed over the five resolutions.

    The network is fixed and kept out of the module's parameters and state: optimizers, averages and checkpoints do not
    see it.

    Args:
        weights: file with a state dict of torchvision's VGG16: .pth, or .safetensors. What is not of ``features`` is
            not used.

    Raises:
        UserError: the file is missing, damaged, or holds something else.

    Shape notation: B batch, C channels (1 gray, 3 RGB), H W image.
    """

    def __init__(self, weights: str | os.PathLike):
        super().__init__()
        self._network = [_vgg16(Path(weights))]  # in a list, so that it is no submodule
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Both (B, C, H, W) in [-1, 1] -> scalar; gradients flow to `made` only."""
        with torch.no_grad():
            wanted = self._features(real)
        found = self._features(made)
        return sum((f - w).square().sum(1).mean() for f, w in zip(found, wanted, strict=True))

    def _features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of unit length at every place."""
        network = self._network[0].to(x.device)
        x = ((x + 1) / 2 - self.mean) / self.deviation  # (B, 1 or 3, H, W) -> (B, 3, H, W)
        maps = []
        for i, layer in enumerate(network):
            x = layer(x)
            if i in TAPS:
                maps.append(F.normalize(x, dim=1, eps=1e-10))
        return maps


def _vgg16(path: Path) -> nn.Sequential:
    """VGG16's convolutions up to the last tap, with the weights in a file."""
    from torchvision.models import vgg16

    if not path.is_file():
        raise UserError(f"there are no weights at {path}: {_HELP}; or set the perceptual weight to 0")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each kind of damage has its own exception
        reason = "it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise UserError(f"{path} cannot be read ({reason}): {_HELP}") from error
    with torch.device("meta"):  # no memory or time for the weights that the file brings
        network = vgg16(weights=None, init_weights=False).features[: TAPS[-1] + 1]
    state = state if isinstance(state, dict) else {}
    own = {name: state.get(f"features.{name}") for name in network.state_dict()}
    for name, tensor in network.state_dict().items():
        if not isinstance(own[name], Tensor) or own[name].shape != tensor.shape:
            raise UserError(f"{path} is not of VGG16 (features.{name} is missing or of another size): {_HELP}")
    network.load_state_dict({name: tensor.float() for name, tensor in own.items()}, assign=True)
    # not in place: the maps of the taps are kept
    for i, layer in enumerate(network):
        if isinstance(layer, nn.ReLU):
            network[i] = nn.ReLU()
    return network.requires_grad_(False).eval()
