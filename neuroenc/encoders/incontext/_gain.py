"""What a network reads of the closed form's fit, to tell how a voxel's gain stands after the last trial."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from neuroenc.encoders.incontext._empirical_bayes import EmpiricalBayesRidge

#: Numbers of a trial and of a voxel; see `read_fit`. The largest logarithm of a gain.
TRIAL, VOXEL, LARGEST = 10, 6, 1.5
_FAR = 6.0


class FitTokens(NamedTuple):
    """Of each voxel (voxel, trial, ``TRIAL``) and (voxel, ``VOXEL``), without units."""

    trials: Tensor
    voxels: Tensor


def read_fit(closed: EmpiricalBayesRidge) -> FitTokens:
    """Tokens of the trials, in the order of time, and of the voxels of a fitted closed form.

    Of a trial: the response, what the closed form fits, what it fits without the trial, the residual, the time from -1
    to 1, how alike the stimulus is to the one before, the trial's precision, its leverage, and how the response goes
    with either fit as time goes on. Of a voxel: signal over noise, the number of trials, the mean leverage, the slope
    of responses over fits without the trial, the drift that the closed form found, and how much voxels drift. Nothing
    depends on the features, so that a network serves any feature space.
    """
    y, (f, variance, noise, precision) = closed.responses_, closed.fitted_trials()
    seen = ~np.isnan(y)
    # A missing response says nothing: the voxel's mean, without weight.
    f = np.where(seen, f, np.nanmean(f, axis=0))
    variance = np.where(seen, variance, 0.0)
    weight = np.where(seen, precision, 0.0)
    total = np.maximum(weight.sum(axis=0), 1e-12)
    sd = np.sqrt(noise)
    y = np.where(seen, y, f)
    mean_y, mean_f = ((weight * values).sum(axis=0) / total for values in (y, f))
    leverage = np.clip(variance * precision / noise, 0.0, 0.95)
    without = y - (y - f) / (1 - leverage) - mean_y
    fitted = f - mean_f
    spread = np.maximum(np.sqrt((weight * fitted**2).sum(axis=0) / total), 1e-3)
    centred = y - mean_y
    n = len(y)
    time = np.linspace(-1, 1, n)[:, None] * np.ones_like(y)
    shown = closed.support_ - closed.support_.mean(axis=0)
    shown = shown / np.maximum(np.linalg.norm(shown, axis=1, keepdims=True), 1e-12)
    alike = np.append(0.0, (shown[1:] * shown[:-1]).sum(axis=1))[:, None] * np.ones_like(y)
    trials = [
        centred / sd,
        fitted / sd,
        without / sd,
        (y - f) / sd,
        time,
        alike,
        np.log(np.maximum(weight, 1e-3)),
        leverage,
        np.clip(centred * fitted / spread / sd, -_FAR, _FAR) * time,
        np.clip(centred * without / spread / sd, -_FAR, _FAR) * time,
    ]
    slope = (weight * centred * without).sum(axis=0) / ((weight * without**2).sum(axis=0) + 0.1)
    voxels = [
        np.log(spread / sd),
        np.full(y.shape[1], np.log(n) / 4),
        leverage.mean(axis=0),
        np.clip(slope, -_FAR, _FAR),
        closed.gain_drift_ / 2,
        np.full(y.shape[1], closed.gain_drift_sd_),
    ]
    stacked = np.clip(np.stack(trials, axis=-1), -_FAR, _FAR).transpose(1, 0, 2)
    return FitTokens(
        torch.as_tensor(stacked.astype(np.float32)), torch.as_tensor(np.stack(voxels, axis=-1).astype(np.float32))
    )
