"""Run every notebook top to bottom, in a folder of its own; any error fails.

python tests/notebooks.py [NAME ...]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def main() -> None:
    """Run the notebooks named on the command line, or all."""
    os.environ.setdefault("NEUROENC_PROGRESS", "0")
    names = sys.argv[1:] or sorted(p.name for p in FOLDER.glob("*.ipynb"))
    for name in names:
        start = time.perf_counter()
        notebook = nbformat.read(FOLDER / name, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["NEUROENC_CACHE"] = str(Path(folder) / "cache")
            NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
        cells = sum(c.cell_type == "code" for c in notebook.cells)
        print(f"{name}: {cells} cells, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
