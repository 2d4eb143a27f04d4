"""A caption model with a habit: it writes things that stand together, whatever the image."""

import re

import numpy as np
import xarray as xr

from neuroenc.captions import (
    GroundingChecker,
    PrefixDecoder,
    SearchSettings,
    evidence,
    make_language_model,
    project,
    train_prefix,
)

# What stands together: the first three of a place are written often, and bring one another.
PLACES = {
    "kitchen": ("knife", "fork", "spoon", "towel", "pan", "kettle"),
    "street": ("bus", "bench", "lamp", "truck", "fence", "bicycle"),
    "desk": ("phone", "pencil", "cable", "folder", "mirror", "candle"),
    "garden": ("flower", "bucket", "ladder", "basket", "hammer", "rope"),
}
WORDS = [*PLACES, *(w for several in PLACES.values() for w in several)]
D = len(WORDS) + 4


class Biased:
    """A model that writes a place and three things of it, in nine of ten captions by habit and not by the image."""

    def __init__(self, seed, n=600, voxels=200, epochs=40):
        rng = np.random.default_rng(seed)
        basis = np.linalg.qr(rng.standard_normal((D, D)))[0]
        self.word, self.gap_image, self.gap_text = dict(zip(WORDS, basis)), basis[-1], basis[-2]
        images, taught, self.told = [], [], {}
        for k in range(n):
            place, things = self.scene(rng, rng.integers(0, 2))
            images.append(self.gap_image + 0.5 * sum(self.word[w] for w in (place, *things)))
            images[-1] = images[-1] + 0.03 * rng.standard_normal(D)
            self.told[f"im{k}"] = [self.caption(place, things)]
            taught.append(self.caption(place, things if rng.random() < 0.1 else self.habit(place, rng)))
        self.images, self.taught = 8 * np.stack(images), taught
        lm, tokenizer = make_language_model(taught, width=48, layers=2, heads=2, vocabulary=400)
        search = SearchSettings(method="sample", beams=1, top_p=0.95, max_length=40)
        self.decoder = PrefixDecoder(
            lm, tokenizer, D, prefix_length=2, normalise=True, centre=True, device="cpu", search=search
        )
        train_prefix(
            self.decoder,
            self.images,
            taught,
            epochs=epochs,
            lr=3e-3,
            warmup=20,
            schedule="cosine",
            noise=0.02,
            progress=False,
        )
        # Most voxels like what is seldom written.
        scenes = [self.scene(rng, int(rng.random() < 0.7)) for _ in range(voxels)]
        self.truth = [{place, *things} for place, things in scenes]
        self.true_captions = [self.caption(*s) for s in scenes]
        w = np.stack([sum(self.word[x] for x in t) for t in self.truth], axis=1)
        coords = {"voxel": 7 + np.arange(voxels), "roi": ("voxel", ["A", "B"] * (voxels // 2))}
        self.coef = xr.DataArray(w + 0.05 * rng.standard_normal(w.shape), dims=("feature", "voxel"), coords=coords)
        bank = xr.DataArray(self.images, dims=("stimulus", "feature"), coords={"stimulus": list(self.told)})
        best = evidence(self.coef, bank, k=12)
        self.checker = GroundingChecker(self.coef, best, self.told, self.embed_text, bank=bank, engine="rules")
        self.projection = project(self.coef, bank, progress=False)

    @staticmethod
    def scene(rng, rare):
        place = str(rng.choice(list(PLACES)))
        return place, [str(w) for w in rng.permutation(PLACES[place][3 * rare : 3 * rare + 3])]

    @staticmethod
    def caption(place, things):
        return f"a {place} with a {things[0]}, a {things[1]} and a {things[2]}."

    def habit(self, place, rng):
        rare, things = int(rng.random() > 0.75), []
        while len(things) < 3:
            rare = 1 - rare if things and rng.random() > 0.85 else rare
            word = str(rng.choice(PLACES[place][3 * rare : 3 * rare + 3]))
            things += [word] if word not in things else []
        return things

    def embed_text(self, texts):
        words = [[self.word[w] for w in re.findall("[a-z]+", t.lower()) if w in self.word] for t in texts]
        return np.stack([self.gap_text + 0.7 * np.sum([*w, 0 * self.gap_text], axis=0) for w in words])

    def false(self, frame):
        """Share of the named things that the voxel does not like, by what was planted."""
        said = [(v, w) for v, c in zip(frame["voxel"], frame["caption"]) for w in re.findall("[a-z]+", c)]
        known = [(v, w) for v, w in said if w in self.word]
        return np.mean([w not in self.truth[v - 7] for v, w in known])
