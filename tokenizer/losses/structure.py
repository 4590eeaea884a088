"""Structural dissimilarity as a loss: a blurred edge costs what it hides of the structure around it, not only its
pixels' error.

Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity"; as a loss: Zhao et al.
2017, https://arxiv.org/abs/1511.08861.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from codegrid.errors import require

_SIDE, _SIGMA = 11, 1.5  # of the Gaussian window, in pixels
_STRIDE = 2  # pixels from window to window; a step of 1 costs twice as much
_LUMINANCE, _CONTRAST = 0.01**2, 0.03**2  # C1 and C2 of the paper, for intensities in [0, 1]


def dssim_loss(images: Tensor, reconstruction: Tensor) -> Tensor:
    """(1 - SSIM) / 2, a scalar in [0, 1]: images and reconstructions [B, C, H, W] in [-1, 1], float32.

    SSIM has the window and the constants of the paper, and is the mean over the windows at every second place that lie
    within the image. (The score, `tokenizer.metrics.ssim`, has a window at every place and a mirrored border.) With
    means m, variances v and the covariance under a window it is l * cs: l = (2 m_x m_y + C1) / (m_x^2 + m_y^2 + C1)
    and cs = (2 cov + C2) / (v_x + v_y + C2). Intensities are those in [0, 1]; values outside are not clamped, so that
    they keep a gradient.

    Raises:
        CodegridError: the images are smaller than the window.
    """
    side = min(images.shape[-2:])
    require(
        side >= _SIDE,
        f"The pictures have a side of {side}, and dssim's window one of {_SIDE} pixels.",
        "Set objective.dssim_weight to 0, or train on larger pictures.",
    )
    x, y = (images + 1) / 2, (reconstruction + 1) / 2
    mean_x = _blurred(x)  # apart, because no gradient passes it
    # v_x + v_y needs the sum of the squares alone.
    mean_y, squares, product = _blurred(torch.cat([y, x * x + y * y, x * y], dim=1)).chunk(3, dim=1)
    means, mean_squares = mean_x * mean_y, mean_x**2 + mean_y**2
    luminance = (2 * means + _LUMINANCE) / (mean_squares + _LUMINANCE)
    structure = (2 * (product - means) + _CONTRAST) / (squares - mean_squares + _CONTRAST)
    return (1 - (luminance * structure).mean()) / 2


def _blurred(maps: Tensor) -> Tensor:
    """The Gaussian means of the windows: [B, C, H, W] -> [B, C, (H - 11) // 2 + 1, (W - 11) // 2 + 1]."""
    channels = maps.shape[1]
    places = torch.arange(_SIDE, device=maps.device) - _SIDE // 2
    rows = torch.softmax(-(places**2) / (2 * _SIGMA**2), dim=0).expand(channels, 1, 1, -1)  # [C, 1, 1, 11]
    # A convolution for each channel, which TF32 does not round: the variances are small differences of large numbers.
    maps = maps.contiguous(memory_format=torch.channels_last)  # faster by half for larger pictures on a CPU
    along = F.conv2d(maps, rows, stride=(1, _STRIDE), groups=channels)
    return F.conv2d(along, rows.mT, stride=(_STRIDE, 1), groups=channels)
