"""Run every notebook top to bottom, in a folder of its own; any error fails.

python tests/notebooks.py [--save] [NAME ...]; with --save outputs are kept in the notebooks, for the gallery.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"


def main() -> None:
    """Run the notebooks named on the command line, or all."""
    os.environ.setdefault("NEUROENC_PROGRESS", "0")
    save = "--save" in sys.argv
    names = [Path(name).name for name in sys.argv[1:] if name != "--save"]
    names = names or sorted(path.name for path in FOLDER.glob("*.ipynb"))
    for name in names:
        start = time.perf_counter()
        notebook = nbformat.read(FOLDER / name, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            os.environ["NEUROENC_CACHE"] = str(Path(folder) / "cache")
            NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": folder}}).execute()
        cells = [c for c in notebook.cells if c.cell_type == "code"]
        if save:
            for cell in cells:
                tidy(cell)
            nbformat.write(notebook, FOLDER / name)
        print(f"{name}: {len(cells)} cells, {time.perf_counter() - start:.0f} s")


def tidy(cell: nbformat.NotebookNode) -> None:
    """Keep of a cell's outputs what a reader sees and what is the same in the next run; pictures with 256 colours."""
    cell.metadata.pop("execution", None)
    cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    for output in cell.outputs:
        data = output.get("data", {})
        if "image/png" in data:
            picture = Image.open(io.BytesIO(base64.b64decode(data["image/png"]))).convert("RGB")
            buffer = io.BytesIO()
            picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
            data["image/png"] = base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    main()
