"""Images to a bank of embeddings on disk: resumable, without duplicates, every row with its file and licence."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from neuroenc._core import tables
from neuroenc._core.arrays import unit_rows
from neuroenc._core.checks import check_fraction, check_whole, one_of
from neuroenc._core.device import exact_arithmetic, resolve_device
from neuroenc._core.errors import ConfigError, DataError, nearest_names
from neuroenc._core.files import (
    check_readable_file,
    hash_array,
    output_folder,
    read_json,
    read_sealed_json,
    remove_leftovers,
    sha256_file,
    write_sealed_json,
)
from neuroenc._core.progress import progress as progress_bar
from neuroenc._core.provenance import provenance as provenance_of
from neuroenc.data import READER, list_pictures, picture_endings, read_picture
from neuroenc.embedding import Backbone, image_backbone
from neuroenc.retrieval import _shards
from neuroenc.retrieval._shards import StoredBank

_COLUMNS = ("id", "file", "licence", "licence_url", "source")
_UNKNOWN = "unknown"

# Names that columns have elsewhere (COCO, Flickr, Open Images); the first that is filled counts.
_NAMES = {
    "id": ("id", "image_id", "ImageID", "stimulus"),
    "file": ("file", "path", "file_name", "filename", "image"),
    "licence": ("licence", "license", "License"),
    "licence_url": ("licence_url", "license_url"),
    "source": ("source", "flickr_url", "OriginalLandingURL", "coco_url", "url", "OriginalURL"),
}
_LEFT_OUT = ("id", "file", "reason", "of", "sha256")
_LARGEST_FILE = 2**30


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value).strip()


def _entry(row: dict[str, Any], number: int, manifest: Path) -> dict[str, str]:
    out = {}
    for name, others in _NAMES.items():
        value = next((row[x] for x in others if x in row and row[x] not in (None, "", [])), "")
        if name == "licence" and isinstance(value, (list, tuple)):
            # As in COCO's own annotations and in data sets made of them: a name and its address.
            parts = [_text(x) for x in value]
            value, row = parts[0], {**row, "licence_url": parts[1] if len(parts) > 1 else ""}
        out[name] = _text(value)
    if not out["file"]:
        close = nearest_names("file", row)
        hint = f"; did you mean {close[0]!r} to be 'file'?" if close else "."
        raise DataError(
            f"entry {number} of {manifest.name} names no file (it has {', '.join(map(str, row)) or 'nothing'}){hint} "
            f"Legal names: {', '.join(_NAMES['file'])}."
        )
    out["id"] = out["id"] or out["file"]
    return out


def _manifest_rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix.lower() != ".json":
        rows: list[Any] = tables.read_table(path, what="manifest").to_dict("records")
        return rows
    found = read_json(path)
    if isinstance(found, dict):
        lists = [v for v in found.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        found = found["images"] if "images" in found else (lists[0] if len(lists) == 1 else found)
    if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
        raise DataError(f"{path.name} is not a list of images. Legal: [{{'id': ..., 'file': ..., ...}}, ...].")
    return found


def _read_images(source: str | os.PathLike[str]) -> tuple[pd.DataFrame, Path]:
    """Images of a folder or a manifest, in order, and the folder that their paths start from.

    Parameters
    ----------
    source : path
        A folder (all images below it, in the order of their names; ids are relative paths), or a manifest: JSON (a
        list of objects) or CSV with ``file`` and, where known, ``id, licence, licence_url, source``, paths being
        relative to the manifest. A licence may be a pair (name, url); ``license``, ``flickr_url``, ``coco_url`` and
        the like are understood.

    Returns
    -------
    DataFrame
        Columns ``id, file, licence, licence_url, source``; licence "unknown" where none is given.
    Path
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise DataError(f"{path} does not exist. Next step: give a folder of images, or a manifest (.json, .csv).")
    if not path.is_dir() and path.suffix.lower() not in (".json", ".csv"):
        raise DataError(f"{path.name} is neither a folder nor a manifest. Legal endings: .json, .csv.")
    if path.is_dir():
        root, entries = path, [{**dict.fromkeys(_COLUMNS, ""), "id": f, "file": f} for f in list_pictures(path)]
    else:
        root, entries = path.parent, [_entry(row, n, path) for n, row in enumerate(_manifest_rows(path))]
    for cell in (cell for entry in entries for cell in entry.values()):
        # Linux has file names that are no text.
        if "\0" in cell or cell != cell.encode("utf-8", "replace").decode():
            raise DataError(f"{path}: {cell!r} is not UTF-8 text, which tables of a bank are. Next step: rename it.")
    table = pd.DataFrame(entries, columns=list(_COLUMNS))
    if len(table) == 0:
        legal = ", ".join(sorted(picture_endings()))
        raise DataError(f"{path} holds no images. Next step: check the path; these endings count: {legal}.")
    twice = table["id"][table["id"].duplicated()]
    if len(twice):
        raise DataError(f"{len(twice)} ids of {path.name} are not unique; the first is {twice.iloc[0]!r}.")
    table["licence"] = table["licence"].replace("", _UNKNOWN)
    return table, root.resolve()


class _Encoder:
    """The backbone, loaded when there is something to embed, on batches of decoded images."""

    def __init__(self, backbone: Backbone, device: str, batch_size: int) -> None:
        self.backbone, self.device, self.batch_size = backbone, device, batch_size

    @cached_property
    def _model(self) -> Any:
        return self.backbone.load(self.device)

    def __call__(self, images: list[Image.Image], pool: ThreadPoolExecutor) -> np.ndarray:
        import torch

        parts = []
        for a in range(0, len(images), self.batch_size):
            tensors = list(pool.map(self._model.preprocess, images[a : a + self.batch_size]))
            with exact_arithmetic():
                found = self._model.encode(torch.stack(tensors).to(self.device), None)
                values = getattr(found, "values", found)
                parts.append(np.ascontiguousarray(values.float().cpu().numpy()))
        return np.concatenate(parts)


class _Builder:
    """One block after another; what a block needs of those before it is read from them, so that runs can stop."""

    def __init__(self, out: Path, root: Path, encode: _Encoder, dtype: str, near: float | None) -> None:
        self.out, self.root, self.encode, self.dtype, self.near = out, root, encode, np.dtype(dtype), near
        self.seen: dict[str, str] = {}  # content -> id
        self.rebuilt = False

    def check(self, number: int, part: pd.DataFrame, record: dict[str, Any] | None) -> tuple[bool, str]:
        """Whether a block on disk is what would be written now, and the first file that is another than it was.

        Every file is hashed again: sizes and times of files can stay as they were while the content changes.
        """
        if record is None:
            return False, ""
        folder = _shards.shard_folder(self.out, number)
        table = _shards.read_table(folder / "table.csv", ["id", "sha256"])
        left = _shards.read_table(folder / "left_out.csv")
        before = dict(zip([*table["id"], *left["id"]], [*table["sha256"], *left["sha256"]], strict=True))
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            now = dict(zip(part["id"], pool.map(self._hash, part["file"]), strict=True))
        for name, file in zip(part["id"], part["file"], strict=True):
            if before.get(name) != now[name]:
                return False, str(file)
        kinds = dict(zip(left["id"], left["reason"], strict=True))
        twins = {name: of for name, of in zip(left["id"], left["of"]) if kinds[name] == "duplicate"}
        seen: dict[str, str] = {}
        for name in part["id"]:
            if kinds.get(name, "").startswith("unreadable"):
                continue
            known = seen.get(now[name], self.seen.get(now[name]))
            # Which images are copies, and of what, depends on the blocks before this one.
            if known != twins.get(name):
                return False, ""
            if known is None:
                seen[now[name]] = name
        if self.rebuilt and self.near is not None:
            return False, ""
        kept = set(table["id"])
        self.seen.update({digest: name for digest, name in seen.items() if name in kept})
        return True, ""

    def _hash(self, file: str) -> str:
        """SHA-256 of a file; empty where it cannot be read."""
        try:
            return sha256_file(check_readable_file(self.root / file))
        except (OSError, DataError):
            return ""

    def _read(self, file: str) -> tuple[str, Image.Image | None, str, tuple[str, ...]]:
        """Hash, RGB image or None, why not, and what was changed."""
        digest = ""
        try:
            path = check_readable_file(self.root / file)
            if path.stat().st_size > _LARGEST_FILE:
                return self._hash(file), None, "unreadable: the file is larger than a picture", ()
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            image, changes = read_picture(content)
            return digest, image, "", changes
        except (OSError, DataError) as error:
            why = getattr(error, "strerror", None) or str(error).split(". Next step")[0]
            return digest, None, "unreadable: " + " ".join(why.replace(str(self.root / file), "it").split())[:200], ()

    def block(self, number: int, table: pd.DataFrame, bar: Any) -> dict[str, Any]:
        """Embed the images of a block and write it."""
        kept: list[dict[str, str]] = []
        changed = Counter[str]()
        left: list[dict[str, str]] = []
        rows: list[np.ndarray] = []
        step = self.encode.batch_size
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for a in range(0, len(table), step):
                batch = [{str(k): str(v) for k, v in r.items()} for r in table.iloc[a : a + step].to_dict("records")]
                entries: list[dict[str, str]] = []
                images: list[Image.Image] = []
                read = pool.map(self._read, (r["file"] for r in batch))
                for entry, (digest, image, why, changes) in zip(batch, read, strict=True):
                    named = {"id": entry["id"], "file": entry["file"], "sha256": digest}
                    if image is None:
                        left.append({**named, "reason": why, "of": ""})
                    elif digest in self.seen:
                        left.append({**named, "reason": "duplicate", "of": self.seen[digest]})
                    else:
                        self.seen[digest] = entry["id"]
                        entries.append({**entry, "sha256": digest})
                        images.append(image)
                        changed.update(changes)
                if images:
                    rows.append(self._stored(self.encode(images, pool), entries))
                    kept += entries
                bar.update(len(batch))
        values = np.concatenate(rows) if rows else np.empty((0, 0), self.dtype)
        if self.near is not None and len(values):
            values, kept, near = self._without_near(number, values, kept)
            left += near
            # As a run that goes on from here will know it: by what is in the bank.
            gone = {entry["id"] for entry in near}
            self.seen = {k: v for k, v in self.seen.items() if v not in gone} if gone else self.seen
        self.rebuilt = True
        done, out = pd.DataFrame(kept, columns=list(_shards.TABLE_COLUMNS)), pd.DataFrame(left, columns=list(_LEFT_OUT))
        return _shards.write_shard(self.out, number, values, done, out, changed=dict(changed))

    def _stored(self, values: np.ndarray, entries: list[dict[str, str]]) -> np.ndarray:
        with np.errstate(over="ignore"):
            found = values.astype(self.dtype)
        bad = ~np.isfinite(found).all(axis=1) | ~found.any(axis=1)
        if bad.any():
            largest = float(np.abs(values[np.isfinite(values)]).max(initial=0.0))
            raise DataError(
                f"{int(bad.sum())} of {len(bad)} embeddings are not finite or all zero in {self.dtype} (largest value "
                f"{largest:.3g}); the first is of {entries[int(np.flatnonzero(bad)[0])]['file']!r}. Next step: "
                "dtype='float32', or look at that image."
            )
        return found

    def _without_near(
        self, number: int, values: np.ndarray, kept: list[dict[str, str]]
    ) -> tuple[np.ndarray, list[dict[str, str]], list[dict[str, str]]]:
        """Drop images whose cosine with an earlier kept one is over the threshold; that one is named."""
        assert self.near is not None
        unit = unit_rows(values.astype(np.float32))
        best, of = np.full(len(unit), -np.inf, np.float32), np.full(len(unit), "", dtype=object)
        for earlier in range(number):
            folder = _shards.shard_folder(self.out, earlier)
            other = np.load(folder / "embeddings.npy", allow_pickle=False).astype(np.float32)
            if len(other) == 0:
                continue
            cosine = unit @ unit_rows(other).T
            at = cosine.argmax(axis=1)
            top = cosine[np.arange(len(unit)), at]
            better = np.flatnonzero((top > best) & (top > self.near))
            if len(better):
                names = _shards.read_table(folder / "table.csv", ["id"])["id"].to_numpy()
                best[better], of[better] = top[better], names[at[better]]
        inner = unit @ unit.T
        stay: list[int] = []
        for n in range(len(unit)):
            if best[n] <= self.near and stay:
                at = int(inner[n, stay].argmax())
                if inner[n, stay[at]] > self.near:
                    best[n], of[n] = inner[n, stay[at]], kept[stay[at]]["id"]
            if best[n] <= self.near:
                stay.append(n)
        gone = sorted(set(range(len(unit))) - set(stay))
        named = [{k: kept[n][k] for k in ("id", "file", "sha256")} for n in gone]
        left = [{**d, "reason": f"near duplicate ({best[n]:.4f})", "of": of[n]} for n, d in zip(gone, named)]
        return values[stay], [kept[n] for n in stay], left


def build_bank(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str = "world",
    pretrained: str | None = None,
    dtype: str = "float16",
    shard_rows: int = 4096,
    batch_size: int = 64,
    near_duplicates: float | None = None,
    device: str = "auto",
    progress: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> StoredBank:
    """Embed images into a bank on disk that projections and evidence read.

    Images are taken in blocks; a block is on disk whole or not at all, and a build that was stopped goes on
    after the last one, to the same bank. Files with equal content are embedded once. Embeddings keep their norms.
    A build that is run again hashes every file (a small part of the time of embedding them), and embeds blocks anew
    whose files are others than they were. Pictures are read as `neuroenc.data.read_picture` says.

    Parameters
    ----------
    source : path
        A folder of images, or a manifest (.json, .csv) with ``id, file, licence, licence_url, source``.
    out : path
        Folder of the bank.
    model, pretrained
        As of :class:`neuroenc.embedding.ImageEmbedder`.
    dtype : "float16" or "float32"
    shard_rows : int
        Images of a block; rounded up to whole batches.
    batch_size : int
    near_duplicates : float, optional
        Leave out an image whose cosine with an earlier kept one is above this (such as 0.98). Every pair is looked
        at, so time grows with the square of the images; at 100,000 images of 512 features it is minutes.
    device : str
    progress : bool
    say : callable, optional
        Takes lines of text.

    Returns
    -------
    StoredBank
        ``left_out()`` lists duplicates and images that could not be read.

    Raises
    ------
    ConfigError
        Illegal settings, or ``out`` was begun with others.
    DataError
        No image, none that can be read, or embeddings that do not fit ``dtype``.

    Examples
    --------
    >>> from neuroenc.data import simulate_world
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for n in range(3):
    ...     simulate_world(3).image(n).save(folder / f"{n}.png")
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     bank = build_bank(folder, folder / "bank", progress=False)
    >>> bank.ids.tolist(), bank.info["dtype"], bank.table()["licence"].tolist()
    (['0.png', '1.png', '2.png'], 'float16', ['unknown', 'unknown', 'unknown'])
    """
    folder, batch = output_folder(out), check_whole("batch_size", batch_size)
    one_of("dtype", dtype, ("float16", "float32"))
    shard_rows = check_whole("shard_rows", shard_rows)
    check_fraction("near_duplicates", 0.5 if near_duplicates is None else near_duplicates, also=", or None")
    rows = batch * -(-shard_rows // batch)
    table, root = _read_images(source)
    unknown = int((table["licence"] == _UNKNOWN).sum())
    if unknown:
        warnings.warn(
            f"{unknown} of {len(table)} images have no licence; it is kept as 'unknown'. Next step: give a manifest "
            "with a column 'licence'.",
            stacklevel=2,
        )
    backbone = image_backbone(model, pretrained, 0, None)
    settings: dict[str, Any] = {
        "images": hash_array(*(table[c].to_numpy(dtype=str) for c in table.columns)),
        "n_images": len(table),
        "model": backbone.name,
        "weights": backbone.weights,
        "weights_hash": backbone.weights_hash(),
        "preprocessing": backbone.preprocessing,
        "reader": READER,
        "dtype": dtype,
        "shard_rows": rows,
        "batch_size": batch,
        "near_duplicates": near_duplicates,
        "blocks": -(-len(table) // rows),
    }
    if not (folder / "build.json").is_file():
        # Another process may be writing the same file at this moment, under a name that begins with a dot.
        strangers = [p.name for p in folder.iterdir() if not p.name.startswith(".")] if folder.is_dir() else []
        if strangers and "build.json" not in strangers:
            raise ConfigError(f"{folder} is not empty and holds no bank. Next step: another --out.")
        if not strangers:
            write_sealed_json(folder / "build.json", settings)
    before = read_sealed_json(folder / "build.json")
    differ = [f"{k} was {before.get(k)!r}, is {v!r}" for k, v in settings.items() if before.get(k) != v]
    if differ:
        raise ConfigError(
            f"{folder} was begun with other images or settings: {', '.join(differ)}. "
            "Next step: another --out, or remove the folder."
        )
    place = resolve_device(device)
    work = _Builder(folder, root, _Encoder(backbone, place, batch), dtype, near_duplicates)
    records: list[dict[str, Any]] = []
    with progress_bar(desc="bank", total=len(table), show=progress, unit="image") as bar:
        for number in range(settings["blocks"]):
            part = table.iloc[number * rows : (number + 1) * rows]
            record = _shards.read_shard_record(folder, number)
            same, other = work.check(number, part, record)
            if same and record is not None:
                bar.update(len(part))
            else:
                if other:
                    say(f"{folder}: {other} changed since it was embedded; its block is embedded again")
                # A bank is finished when all of it is: nobody shall read old and new blocks together.
                (folder / "bank.json").unlink(missing_ok=True)
                record = work.block(number, part, bar)
            records.append(record)
    if not work.rebuilt and (folder / "bank.json").is_file():
        found = _shards.load_bank(folder)
        say(f"{folder}: finished before, {found.n} images")
        return found
    return _finish(folder, records, settings, place, say)


def _finish(
    folder: Path, records: list[dict[str, Any]], settings: dict[str, Any], device: str, say: Callable[[str], None]
) -> StoredBank:
    left = pd.concat(
        [_shards.read_table(_shards.shard_folder(folder, n) / "left_out.csv") for n in range(len(records))],
        ignore_index=True,
    )
    kind = left["reason"].str.split(r"[:(]", n=1, regex=True).str[0].str.strip()
    n = sum(r["rows"] for r in records)
    bad = left[kind == "unreadable"]
    if n == 0:
        raise DataError(
            f"none of {settings['n_images']} images can be read; the first is {bad['file'].iloc[0]!r} "
            f"({bad['reason'].iloc[0]}). Next step: check the paths of the manifest."
        )
    remove_leftovers(folder)
    counts = {
        "images": settings["n_images"],
        "embedded": n,
        "unreadable": len(bad),
        "duplicates": int((kind == "duplicate").sum()),
        "near_duplicates": int((kind == "near duplicate").sum()),
    }
    licences, changed = Counter[str](), Counter[str]()
    for number, record in enumerate(records):
        changed.update(record["changed"])
        if record["rows"]:
            licences.update(
                _shards.read_table(_shards.shard_folder(folder, number) / "table.csv", ["licence"])["licence"].tolist()
            )
    kept = {k: v for k, v in settings.items() if k not in ("blocks", "near_duplicates", "dtype")}
    # Which device is not part of what the bank is; it is told for the last digits.
    made = provenance_of(step="build bank", device=device, **settings)
    near = settings["near_duplicates"]
    info: dict[str, Any] = {**kept, "counts": counts, "near_duplicates_above": near, "provenance": made}
    info |= {"changed": dict(sorted(changed.items())), "licences": dict(sorted(licences.items()))}
    _shards.finish_bank(folder, records, info)
    shown = "; ".join(f"{r.file} ({r.reason})" for r in bad.head(5).itertuples())
    if len(bad):
        warnings.warn(
            f"{len(bad)} of {settings['n_images']} images cannot be read and are left out: {shown}"
            + ("; ..." if len(bad) > 5 else "")
            + ". See left_out().",
            stacklevel=3,
        )
    for change, count in info["changed"].items():
        warnings.warn(f"{count} of {n} pictures: {change}.", stacklevel=3)
    say(
        f"{folder}: {n} of {counts['images']} images ({counts['duplicates']} duplicates, "
        f"{counts['near_duplicates']} near duplicates, {counts['unreadable']} unreadable)"
    )
    return _shards.load_bank(folder)
