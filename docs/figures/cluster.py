"""Eight subjects and ten feature spaces: one number for each job."""

import matplotlib.pyplot as plt
import numpy as np

from neuroenc.encoders import RidgeEncoder

rng = np.random.default_rng(0)
early, late = rng.standard_normal((2, 300, 30))
layers = [np.cos(d) * early + np.sin(d) * late for d in np.linspace(0, np.pi / 2, 10)]
table = np.zeros((8, 10))
for subject in range(8):
    depth = rng.uniform(0.6, 1.2)
    weights = rng.standard_normal((30, 40)) / np.sqrt(30)
    signal = (np.cos(depth) * early + np.sin(depth) * late) @ weights
    Y = signal + rng.uniform(0.8, 1.8) * rng.standard_normal(signal.shape)
    for k, X in enumerate(layers):
        encoder = RidgeEncoder(cv=3).fit(X[:220], Y[:220])
        table[subject, k] = np.median(encoder.score_voxels(X[220:], Y[220:]))

figure, axis = plt.subplots(figsize=(6.4, 3))
image = axis.imshow(table, cmap="viridis", aspect="auto")
axis.set_xticks(range(10), [str(k) for k in range(10)])
axis.set_yticks(range(8), [f"subject {s}" for s in range(1, 9)])
axis.set(xlabel="layer")
figure.colorbar(image, label="median r")
