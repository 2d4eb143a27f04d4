"""The figure of a region of a simulated subject, as the report writes it for print."""

from dataclasses import replace
from io import BytesIO

import matplotlib.pyplot as plt

import neuroenc
from neuroenc import Captioner, data
from neuroenc.captions import GroundingChecker, load_captioner
from neuroenc.data.simulate import simulate_cortex, simulate_world
from neuroenc.report import plot_region

scenes = simulate_world(500, seed=41)
subject = simulate_cortex(
    scenes, test_ids=scenes.ids[-100:], n_voxels={"V1": 15, "FFA": 24, "EBA": 20, "PPA": 20}, own=0.0, seed=41
)[0]
train, test = data.shared_test(data.zscore(subject.responses, by="session"), scenes.ids[-100:])
Y, Y_test = data.average_repeats(train), data.average_repeats(test)
bank = neuroenc.ImageEmbedder("world").embed(scenes)
unit = bank / (bank**2).sum("feature") ** 0.5
encoder = neuroenc.RidgeEncoder().fit(data.match(unit, Y), Y)
scores = encoder.score_voxels(data.match(unit, Y_test), Y_test).to_dataset(name="r", promote_attrs=True)
text = neuroenc.TextEmbedder("world")
embed = lambda texts: text.embed(texts).values  # noqa: E731
study = Captioner(bank, load_captioner("world"), stimuli=scenes, embed_text=embed, top=1).caption(encoder, scores)
checker = GroundingChecker(encoder.to_linear()[0], study.evidence, scenes, embed, bank=bank)
study = replace(study, phrases=checker.check(study.captions).phrases)

picture = BytesIO()
plot_region(study, "FFA", stimuli=scenes).savefig(picture, format="png", dpi=200)
picture.seek(0)
image = plt.imread(picture)
figure = plt.figure(figsize=(image.shape[1] / 200, image.shape[0] / 200))
axes = figure.add_axes((0, 0, 1, 1))
axes.imshow(image)
axes.axis("off")
