"""Published vectors and weights: text vectors of concepts, and ridge weights of real voxels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import xarray as xr

from neuroenc._core.checks import check_whole
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import read_npy
from neuroenc._core.tables import read_table
from neuroenc.data._build import make_features
from neuroenc.data._stimuli import EncodingData, Stimuli
from neuroenc.data.datasets._registry import Dataset, Source


class ClipTextConcepts(Dataset):
    """Text vectors of CLIP ViT-B/32 for 2,068 concept names, made of "a NAME".

    No responses and no images. ``stimuli``: ids are source and name ("lvis:dog"; a source that has a name twice, in
    different senses, has "lvis:bow" and "lvis:bow:2"), one caption each, "a NAME"; ``table`` with ``name,
    concept_source, synset`` (WordNet, of LVIS). ``extra``:

    ``vectors`` : DataArray float32 (stimulus 2068, feature 512), not normalised.

    References
    ----------
    Zhou et al. (2022). Detecting twenty-thousand classes using image-level supervision. ECCV.
    """

    name, title = "clip-text-concepts", "CLIP text vectors of concepts"

    def read(self, source: Source) -> EncodingData:
        root = source.folder()
        table = read_table(root / "names.csv", ["name", "source", "synset"], what="names")
        values = np.asarray(read_npy(root / "vectors.npy", "vectors"), np.float32)
        if values.shape != (len(table), 512):
            raise DataError(f"{root}: vectors have shape {values.shape} for {len(table)} names of 512 features.")
        number = table.groupby(["source", "name"]).cumcount() + 1
        ids = [f"{s}:{n}{f':{k}' if k > 1 else ''}" for s, n, k in zip(table["source"], table["name"], number)]
        frame = pd.DataFrame(
            {"name": table["name"].to_numpy(), "concept_source": table["source"].to_numpy()}, index=ids
        ).assign(synset=table["synset"].to_numpy())
        captions = [[f"a {name}"] for name in table["name"]]
        stimuli = Stimuli(ids, None, captions, frame, source.manifest.name, source.manifest.licence)  # type: ignore[arg-type]
        vectors = make_features(values, stimulus=ids, backbone="CLIP ViT-B/32 text", weights="openai")
        return EncodingData(None, stimuli, extra={"vectors": vectors})


class Bold5000Weights(Dataset):
    """Ridge weights of one person's voxels on 512 averaged features of ResNet-18's last block.

    No responses and no stimuli: priors over weights, and maps of real voxels. ``extra``:

    ``weights`` : Dataset over ``feature`` (512) and ``voxel``: ``coef`` (feature, voxel) and ``intercept`` (voxel), in
    the authors' response units; coordinates ``i, j, k`` of the person's own grid, ``x, y, z`` in MNI millimetres
    (approximate, by one affine a person), ``roi`` and ``hemi``.

    Options: ``subject``, 1 to 3.

    References
    ----------
    Bennett & Baldassano (2023). img2fmri. Aperture Neuro, 3. Chang et al. (2019). BOLD5000. Scientific Data, 6, 49.
    """

    name, title = "bold5000-weights", "BOLD5000 ridge weights"

    def read(self, source: Source, *, subject: int = 1) -> EncodingData:
        if check_whole("subject", subject) > 3:
            raise ConfigError(f"subject={subject} is not legal; bold5000-weights has subjects 1 to 3.")
        file = f"sub-CSI{subject}.npz"
        with np.load(source.folder(file) / file, allow_pickle=False) as found:
            parts = {name: found[name] for name in found.files}
        places = dict(zip("ijkxyz", [*parts["ijk"].T, *parts["mni"].T]))
        coords = {**places, "roi": parts["roi"].astype(str), "hemi": parts["hemi"].astype(str)}
        weights = xr.Dataset(
            {"coef": (("feature", "voxel"), parts["coef"]), "intercept": ("voxel", parts["intercept"])},
            coords={k: ("voxel", v) for k, v in coords.items()},
            attrs={"subject": f"CSI{subject}", "backbone": "ResNet-18, average of the last block"},
        )
        return EncodingData(None, None, extra={"weights": weights})
