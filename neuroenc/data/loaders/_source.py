"""What a loader is given: the manifest, and verified files on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from neuroenc.data._fetch import resolve
from neuroenc.data._manifest import Manifest

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """Access to one data set's files; nothing is fetched before a loader asks for it."""

    manifest: Manifest
    root: str | os.PathLike[str] | None = None
    mirror: str | os.PathLike[str] | None = None
    progress: bool = True

    def folder(self, files: Iterable[str] | str | None = None) -> Path:
        """Folder in which the asked files (paths or globs; default all) lie and are verified."""
        return resolve(self.manifest, root=self.root, mirror=self.mirror, files=files, progress=self.progress)

    def checksums(self, files: Iterable[str] | str | None = None) -> dict[str, str]:
        """SHA-256 of the asked files, for provenance."""
        return {f.path: f.sha256 for f in self.manifest.select(files)}
