"""ncsnr as estimated and as planted; a perfect model at the noise ceiling."""

import matplotlib.pyplot as plt
import numpy as np

from neuroenc import stats

rng = np.random.default_rng(0)
planted = np.linspace(0, 1.5, 200)
stimulus = np.tile(np.arange(500), 3)
signal = planted * rng.standard_normal((500, 200))
betas = signal[stimulus] + rng.standard_normal((1500, 200))
betas = (betas - betas.mean(0)) / betas.std(0)
ncsnr = stats.ncsnr(betas, stimulus)
ceiling = stats.noise_ceiling(ncsnr, 3, unit="r")
with np.errstate(invalid="ignore"):
    r = stats.pearson_r(betas.reshape(3, 500, 200).mean(0)[:, 1:], signal[:, 1:])

figure, axes = plt.subplots(1, 2, figsize=(7, 3.2))
axes[0].plot(planted, ncsnr, ".", ms=4)
axes[0].set(xlabel="planted ncsnr", ylabel="estimated ncsnr")
axes[1].plot(ceiling[1:], r, ".", ms=4)
axes[1].set(xlabel="noise ceiling (r)", ylabel="r of the true signal")
for axis in axes:
    axis.axline((0, 0), slope=1, color="grey", lw=0.8)
    axis.set_aspect("equal")
