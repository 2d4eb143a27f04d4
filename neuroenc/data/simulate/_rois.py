"""Regions and voxels of the simulated cortex: where they lie, what they prefer, and their noiseless responses."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
from PIL import Image
from scipy import fft

from neuroenc._core.errors import DataError
from neuroenc._core.optional import require
from neuroenc.data._stimuli import Stimuli
from neuroenc.data.simulate._lexicon import MEMBERS, WORLD

#: Voxel indices to millimetres: 2 mm isotropic, wide enough for the whole surface.
AFFINE = np.array([[2.0, 0, 0, -90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
VOLUME_SHAPE = (91, 109, 91)

Centre = tuple[float, float, float]


@dataclass(frozen=True)
class Roi:
    """One region: approximate centres (mm; x is the distance from the midline), size, and what drives it.

    ``count`` is the number of voxels of both hemispheres together. ``parts`` gives the visual quarter of
    each centre: "upper", "lower" or "" for the whole hemifield. ``rf`` are the intercept and slope of
    receptive-field size over eccentricity, and the exponent of the compressive nonlinearity.
    """

    name: str
    count: int
    centres: tuple[Centre, ...]
    hemispheres: str = "LR"
    parts: tuple[str, ...] = ("",)
    rf: tuple[float, float, float] | None = None
    family: str = ""
    second: str = ""
    clusters: tuple[tuple[str, ...], ...] = ()


#: The simulated regions: four retinotopic areas, then nine regions selective for a family of objects.
ROIS: dict[str, Roi] = {name: Roi(name, **region) for name, region in WORLD["regions"].items()}


@lru_cache(maxsize=1)
def fsaverage5() -> dict[str, tuple[np.ndarray, tuple[np.ndarray, ...]]]:
    """Per hemisphere, vertex coordinates (10242, 3) in mm midway between white and pial, and neighbours."""
    require("nilearn", "brain")
    from nilearn.datasets import fetch_surf_fsaverage
    from nilearn.surface import load_surf_mesh

    files = fetch_surf_fsaverage("fsaverage5")
    found = {}
    for hemi, side in (("L", "left"), ("R", "right")):
        white, pial = (load_surf_mesh(files[f"{kind}_{side}"]) for kind in ("white", "pial"))
        faces = np.asarray(white.faces)
        pairs = np.unique(np.concatenate([faces[:, [a, b]] for a in range(3) for b in range(3) if a != b]), axis=0)
        starts = np.searchsorted(pairs[:, 0], np.arange(1, len(white.coordinates)))
        middle = (np.asarray(white.coordinates) + np.asarray(pial.coordinates)) / 2
        found[hemi] = (middle.astype(np.float64), tuple(np.split(pairs[:, 1], starts)))
    return found


def grow(hemi: str, centres: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    """Disjoint patches of vertices around centres, grown together along the surface.

    Patches are contiguous while there is room between them.

    Parameters
    ----------
    hemi : {"L", "R"}
    centres : array (patch, 3), mm
    counts : int array (patch,)
        Vertices wanted in each.

    Returns
    -------
    list of int arrays
        Vertices of each patch, nearest to its centre first.
    """
    xyz, neighbours = fsaverage5()[hemi]
    if counts.sum() > len(xyz):
        raise DataError(
            f"{int(counts.sum())} vertices asked for in hemisphere {hemi}; fsaverage5 has {len(xyz)}. "
            "Next step: ask for fewer voxels (n_voxels)."
        )
    free = np.ones(len(xyz), dtype=bool)
    patches: list[list[int]] = [[] for _ in counts]
    # Distances are divided by each patch's radius, so that small and large patches meet fairly.
    radius = np.sqrt(np.maximum(counts, 1))
    heap: list[tuple[float, int, int]] = []

    def push(k: int, vertex: int, distance: float) -> None:
        steps = np.linalg.norm(xyz[neighbours[vertex]] - xyz[vertex], axis=1) / radius[k]
        for other, step in zip(neighbours[vertex], steps):
            heapq.heappush(heap, (distance + float(step), k, int(other)))

    short = list(range(len(counts)))
    while short:
        for k in short:
            seed = int(np.argmin(np.where(free, ((xyz - centres[k]) ** 2).sum(axis=1), np.inf)))
            free[seed] = False
            patches[k].append(seed)
            push(k, seed, 0.0)
        while heap:
            distance, k, vertex = heapq.heappop(heap)
            if free[vertex] and len(patches[k]) < counts[k]:
                free[vertex] = False
                patches[k].append(vertex)
                push(k, vertex, distance)
        # A patch that others have walled in goes on at the nearest free place.
        short = [k for k in short if len(patches[k]) < counts[k]]
    return [np.array(p, dtype=np.int64) for p in patches]


def volume_indices(xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A volume element of its own for each point, at most 2 mm from it.

    Parameters
    ----------
    xyz : array (point, 3), mm

    Returns
    -------
    ijk : int64 array (point, 3)
    kept : bool array (point,)
        False for a point whose neighbourhood was already taken (its ``ijk`` means nothing).
    """
    exact = (xyz - AFFINE[:3, 3]) / 2.0
    offsets = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    nearest = np.rint(exact).astype(np.int64)
    ijk, kept = nearest.copy(), np.ones(len(xyz), dtype=bool)
    taken: set[tuple[int, int, int]] = set()
    for n in range(len(xyz)):
        candidates = nearest[n] + offsets
        distance = 2.0 * np.linalg.norm(candidates - exact[n], axis=1)
        for c in np.argsort(distance, kind="stable"):
            i, j, k = (int(v) for v in candidates[c])
            if distance[c] > 2.0:
                kept[n] = False
                break
            if (i, j, k) not in taken:
                taken.add((i, j, k))
                ijk[n] = candidates[c]
                break
    return ijk, kept


@dataclass
class Voxels:
    """Planted properties; every array has one entry per voxel."""

    roi: np.ndarray
    hemi: np.ndarray
    vertex: np.ndarray
    ijk: np.ndarray
    part: np.ndarray
    place: np.ndarray
    cluster: np.ndarray
    family: np.ndarray
    second_family: np.ndarray
    rf_x: np.ndarray
    rf_y: np.ndarray
    rf_size: np.ndarray


def make_voxels(counts: Mapping[str, int], mixed_share: float, individual: float, rng: np.random.Generator) -> Voxels:
    """Lay out the regions of one subject and draw what each voxel prefers."""
    pieces: list[pd.DataFrame] = []
    for hemi in "LR":
        sign = -1 if hemi == "L" else 1
        keys: list[tuple[Roi, int]] = []
        centres, wanted = [], []
        for name, count in counts.items():
            roi = ROIS[name]
            size = count * np.exp(individual * rng.normal(0, 0.12))
            jitter = individual * rng.normal(0, 2.0, size=(len(roi.centres), 3))
            if hemi not in roi.hemispheres or count == 0:
                continue
            share = size / len(roi.hemispheres) / len(roi.centres)
            for part, centre in enumerate(roi.centres):
                keys.append((roi, part))
                centres.append(np.array([sign * centre[0], *centre[1:]]) + jitter[part])
                wanted.append(max(2, round(share)))
        if not keys:
            continue
        for (roi, part), vertices in zip(keys, grow(hemi, np.array(centres), np.array(wanted))):
            pieces.append(_patch(roi, part, hemi, vertices, mixed_share, individual, rng))
    order = {name: k for k, name in enumerate(ROIS)}
    table = pd.concat(pieces, ignore_index=True)
    table = table.iloc[np.argsort(table["roi"].map(order).to_numpy(), kind="stable")]
    xyz = np.stack([fsaverage5()[h][0][v] for h, v in zip(table["hemi"], table["vertex"])])
    ijk, kept = volume_indices(xyz)
    columns = {c: table[c].to_numpy()[kept] for c in table.columns}
    for c in ("roi", "hemi", "family", "second_family"):
        columns[c] = columns[c].astype(str)
    return Voxels(ijk=ijk[kept], **columns)


def _rank(values: np.ndarray) -> np.ndarray:
    return (np.argsort(np.argsort(values, kind="stable"), kind="stable") + 0.5) / len(values)


def _patch(
    roi: Roi, part: int, hemi: str, vertex: np.ndarray, mixed_share: float, individual: float, rng: np.random.Generator
) -> pd.DataFrame:
    n, xyz = len(vertex), fsaverage5()[hemi][0][vertex]
    side = 1.0 if hemi == "L" else -1.0
    place = _rank(xyz[:, 1])
    table = pd.DataFrame({"roi": roi.name, "hemi": hemi, "vertex": vertex, "part": part, "place": place})
    # The draws are the same for every kind of region, so that one region's size does not move another's.
    noise = rng.normal(size=(n, 3))
    mixed = rng.random(n) < mixed_share
    table["rf_x"] = table["rf_y"] = table["rf_size"] = np.nan
    table["cluster"], table["family"], table["second_family"] = -1, roi.family, ""
    if roi.rf is not None:
        # Foveal at the occipital pole, upper field on the lower bank, contralateral throughout.
        eccentricity = np.clip(0.03 + 0.47 * place**1.3 + 0.02 * noise[:, 0], 0.01, 0.55)
        low, high = {"": (-78.0, 78.0), "upper": (5.0, 80.0), "lower": (-80.0, -5.0)}[roi.parts[part]]
        turn = individual * rng.normal(0, 3.0)
        angle = high - (high - low) * _rank(xyz[:, 2]) + 5.0 * noise[:, 1] + turn
        angle = np.deg2rad(np.clip(angle, -88, 88))
        table["rf_x"] = np.clip(side * eccentricity * np.cos(angle), -0.47, 0.47)
        table["rf_y"] = np.clip(eccentricity * np.sin(angle), -0.47, 0.47)
        table["rf_size"] = (roi.rf[0] + roi.rf[1] * eccentricity) * np.exp(0.15 * noise[:, 2])
    else:
        k = len(roi.clusters)
        edges = np.clip(np.arange(1, k) / k + individual * rng.normal(0, 0.06, size=k - 1), 0.1, 0.9)
        table["cluster"] = np.searchsorted(np.sort(edges), place)
        table["second_family"] = np.where(mixed, roi.second, "")
    return table


def _fields(voxels: Voxels, rows: np.ndarray) -> np.ndarray:
    """Receptive fields (place, voxel) on the grid of the energy maps, each of sum 1."""
    centre = (np.arange(GRID) + 0.5) / GRID - 0.5
    y, x = np.meshgrid(-centre, centre, indexing="ij")
    d2 = (x.ravel()[:, None] - voxels.rf_x[rows]) ** 2 + (y.ravel()[:, None] - voxels.rf_y[rows]) ** 2
    field = np.exp(-d2 / (2 * voxels.rf_size[rows] ** 2))
    return np.asarray((field / field.sum(axis=0)).astype(np.float32))


def _retinotopic(voxels: Voxels, rows: np.ndarray, maps: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    n, field = len(rows), _fields(voxels, rows)
    weights = np.zeros((len(CHANNELS), n), dtype=np.float32)
    preferred, fine = rng.uniform(0, np.pi, n), rng.random(n)
    for s in range(len(SCALES)):
        for o, angle in enumerate(np.deg2rad(ORIENTATIONS)):
            tuned = np.exp(0.8 * np.cos(2 * (angle - preferred)) - 0.8)
            weights[s * len(ORIENTATIONS) + o] = tuned * (fine if s else 1 - fine)
    weights[-3] = rng.uniform(0.2, 0.8, n)
    depth = np.array([list(ROIS).index(r) for r in voxels.roi[rows]])
    weights[-2:] = rng.gamma(1.5, 0.15 + 0.08 * depth, size=(2, n))
    drive = np.zeros((maps.shape[1], n), dtype=np.float32)
    for c in range(len(CHANNELS)):
        drive += weights[c] * (maps[c] @ field)
    exponent = np.array([ROIS[r].rf[2] for r in voxels.roi[rows]], dtype=np.float32)  # type: ignore[index]
    return drive**exponent


def _family_drive(
    family: str, weights: np.ndarray, size: np.ndarray, side: np.ndarray, table: pd.DataFrame
) -> np.ndarray:
    """Response to one family: member weights, changed moderately by the object's size and position."""
    members = table[[f"member_{m}" for m in MEMBERS[family]]].to_numpy(np.float32) > 0
    strength = table[family].to_numpy(np.float32)
    x = np.nan_to_num(table[f"{family}_x"].to_numpy(np.float32))
    modulation = 1.0 + np.outer(strength - 0.75, size) + np.outer(x, side)
    return (members.astype(np.float32) @ weights.astype(np.float32)) * modulation.astype(np.float32)


def _selective(
    voxels: Voxels,
    rows: np.ndarray,
    table: pd.DataFrame,
    visual: np.ndarray,
    individual: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    n = len(rows)
    drive = np.zeros((len(table), n), dtype=np.float32)
    preferred = np.full(n, "", dtype=object)
    side = np.where(voxels.hemi[rows] == "L", 1.0, -1.0)
    size, position = rng.uniform(0.1, 0.5, n), side * rng.uniform(0.05, 0.45, n)
    second_gain, visual_gain = rng.uniform(0.55, 0.95, n), rng.uniform(0.02, 0.1, n)
    shape = max(len(m) for m in MEMBERS.values())
    own = np.exp(individual * rng.normal(0, 0.12, size=(2, shape, n)))
    for family, members in MEMBERS.items():
        here = np.flatnonzero(voxels.family[rows] == family)
        if here.size:
            weights = np.full((len(members), here.size), 0.6)
            for col, v in enumerate(here):
                liked = ROIS[str(voxels.roi[rows[v]])].clusters[voxels.cluster[rows[v]]]
                weights[[members.index(m) for m in liked], col] = 1.0
                preferred[v] = ";".join(liked)
            weights *= own[0, : len(members), here].T
            drive[:, here] += _family_drive(family, weights, size[here], position[here], table)
        also = np.flatnonzero(voxels.second_family[rows] == family)
        if also.size:
            weights = second_gain[also] * own[1, : len(members), also].T
            drive[:, also] += _family_drive(family, weights, size[also], position[also], table)
    return drive + np.outer(visual, visual_gain).astype(np.float32), preferred.astype(str)


def _own_directions(
    voxels: Voxels, table: pd.DataFrame, maps: np.ndarray | None, rng: np.random.Generator
) -> np.ndarray:
    """Responses (stimulus, voxel), z-scored, along a direction that each voxel draws for itself.

    Retinotopic voxels weigh the energy maps inside their own field; others the objects' kinds and sides.
    """
    columns = [*(f"member_{m}" for members in MEMBERS.values() for m in members), *(f"{f}_x" for f in MEMBERS)]
    objects = np.nan_to_num(table[columns].to_numpy(np.float64))
    known = _standardised(objects)
    found = known @ rng.standard_normal((known.shape[1], len(voxels.roi)))
    weights = rng.standard_normal((len(CHANNELS), len(voxels.roi)))
    rows = np.flatnonzero(voxels.family == "")
    if rows.size and maps is not None:
        field = _fields(voxels, rows)
        found[:, rows] = 0.0
        for c, channel in enumerate(maps):
            found[:, rows] += weights[c, rows] * _standardised(channel @ field)
    return _standardised(found)


def _standardised(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(axis=0, dtype=np.float64)
    spread = centred.std(axis=0)
    return np.asarray(centred / np.where(spread > 0, spread, 1.0))


def noiseless(
    voxels: Voxels,
    table: pd.DataFrame,
    maps: np.ndarray | None,
    individual: float,
    rng: np.random.Generator,
    own: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Noiseless responses (stimulus, voxel), z-scored over stimuli, and each voxel's preferred members.

    ``own`` is the share of their variance that lies along a direction that each voxel draws for itself.
    """
    signal = np.empty((len(table), len(voxels.roi)), dtype=np.float32)
    members = np.full(len(voxels.roi), "", dtype=object)
    spatial, conceptual, directions = rng.spawn(3)
    retinotopic = np.flatnonzero(voxels.family == "")
    if retinotopic.size and maps is not None:
        signal[:, retinotopic] = _retinotopic(voxels, retinotopic, maps, spatial)
    selective = np.flatnonzero(voxels.family != "")
    if selective.size:
        visual = np.zeros(len(table)) if maps is None else maps[: len(CHANNELS) - 2].mean(axis=(0, 2), dtype=np.float64)
        visual = (visual - visual.mean()) / max(float(visual.std()), 1e-9)
        signal[:, selective], members[selective] = _selective(voxels, selective, table, visual, individual, conceptual)
    signal -= signal.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = signal.std(axis=0, dtype=np.float64)
    signal /= np.where(spread > 0, spread, 1.0).astype(np.float32)
    if own:
        both = np.sqrt(1 - own) * signal + np.sqrt(own) * _own_directions(voxels, table, maps, directions)
        signal = _standardised(both).astype(np.float32)
    return signal, members.astype(str)


ORIENTATIONS = (0.0, 45.0, 90.0, 135.0)
SCALES = (6.0, 13.0)
GRID = 32
_PX, _PAD = 64, 8

#: Names of the maps: Gabor energy (direction of the grating's normal, cycles per picture), contrast, colour.
CHANNELS: tuple[str, ...] = (
    *(f"gabor {o:.0f} deg {s:.0f} cpp" for s in SCALES for o in ORIENTATIONS),
    "contrast",
    "red-green",
    "blue-yellow",
)


def _filters() -> list[tuple[np.ndarray, np.ndarray]]:
    """Per Gabor channel, the part of the spectrum that it passes (indices) and its gain there.

    A band is cut out around its centre frequency and brought back to pixels alone, on the coarse grid: the
    modulus, which is the energy, does not see the shift in frequency.
    """
    n = _PX + 2 * _PAD
    half = n * GRID // _PX // 2
    unit = _PX / n
    bank = []
    for scale in SCALES:
        for angle in np.deg2rad(ORIENTATIONS):
            centre = np.rint(np.array([np.sin(angle), np.cos(angle)]) * scale / unit).astype(int)
            ky, kx = (c + np.arange(-half, half) for c in centre)
            fy, fx = np.meshgrid(ky * unit, kx * unit, indexing="ij")
            along = fx * np.cos(angle) + fy * np.sin(angle) - scale
            across = -fx * np.sin(angle) + fy * np.cos(angle)
            gain = np.exp(-((along / (0.42 * scale)) ** 2 + (across / (0.38 * scale)) ** 2) / 2)
            bank.append(((ky % n)[:, None] * n + (kx % n), gain.astype(np.float32)))
    return bank


def energy_maps(stimuli: Stimuli, *, batch_size: int = 128) -> np.ndarray:
    """Energy of every channel at every place, each channel divided by its standard deviation.

    Parameters
    ----------
    stimuli : Stimuli
        Pictures of any size; they are brought to 64 x 64 pixels.
    batch_size : int
        Pictures filtered at once; the result does not depend on it.

    Returns
    -------
    float32 array (channel, stimulus, 1024)
        On a 32 x 32 grid, row by row from the top left; channels as in :data:`CHANNELS`.
    """
    bank = _filters()
    n, step = len(stimuli), _PX // GRID
    maps = np.empty((len(CHANNELS), n, GRID * GRID), dtype=np.float32)
    start = 0
    for images in stimuli.iter_images(batch_size):
        rgb = np.stack(
            [np.asarray(im if im.size == (_PX, _PX) else im.resize((_PX, _PX), Image.Resampling.BOX)) for im in images]
        ).astype(np.float32)
        rgb /= 255.0
        here = slice(start, start + len(rgb))
        start += len(rgb)
        luminance = rgb @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
        # Mirrored margins keep the frame from looking like an edge.
        padded = np.pad(luminance, ((0, 0), (_PAD, _PAD), (_PAD, _PAD)), mode="symmetric")
        spectrum = fft.fft2(padded - padded.mean(axis=(1, 2), keepdims=True))
        spectrum = spectrum.reshape(len(rgb), -1)
        margin = _PAD // step
        for c, (where, gain) in enumerate(bank):
            energy = np.abs(fft.ifft2(spectrum[:, where] * gain))[:, margin:-margin, margin:-margin]
            maps[c, here] = energy.reshape(len(rgb), -1)
        local = luminance.reshape(len(rgb), GRID, step, GRID, step)
        contrast = np.abs(luminance - luminance.mean(axis=(1, 2), keepdims=True))
        maps[-3, here] = _pool(contrast, step) + local.std(axis=(2, 4)).reshape(len(rgb), -1)
        maps[-2, here] = _pool(np.abs(rgb[..., 0] - rgb[..., 1]), step)
        maps[-1, here] = _pool(np.abs(rgb[..., 2] - rgb[..., :2].mean(axis=-1)), step)
    for c in range(len(maps)):
        maps[c] /= max(float(maps[c].std(dtype=np.float64)), 1e-6)
    return maps


def _pool(picture: np.ndarray, step: int) -> np.ndarray:
    n = len(picture)
    return picture.reshape(n, GRID, step, GRID, step).mean(axis=(2, 4)).reshape(n, GRID * GRID)
