"""Captions of 111 held-out COCO photographs beside retrieval, captions of other photographs, and people.

    python tests/benchmarks/photo_captions.py [--decoder NAME=FOLDER ...] [--captions FILE.csv]

Needs NEUROENC_MIRROR, the extra `offline`, and for a folder that was trained with `--lm smollm2` SmolLM2's weights. The
first run embeds 24,575 captions (minutes on one core), later ones find them in the cache.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decoder", action="append", default=[], help="NAME=FOLDER beside the one that ships")
    parser.add_argument("--captions", type=Path, default=None, help="file for the captions")
    parser.add_argument("--without-shipped", action="store_true")
    parser.add_argument("--bootstraps", type=int, default=1000)
    found = parser.parse_args()

    from neuroenc.captions import PrefixDecoder, load_captioner
    from neuroenc.captions.decoding._photo_evaluation import evaluate_photographs

    decoders = {} if found.without_shipped else {"photo": load_captioner("photo", device="cpu")}
    for pair in found.decoder:
        name, folder = pair.split("=", 1)
        lm = None
        if json.loads((Path(folder) / "decoder.json").read_text())["lm"] is None:
            from neuroenc.captions.decoding._photo_smollm2 import load_smollm2

            lm = load_smollm2()[0]
        decoders[name] = PrefixDecoder.load(folder, lm=lm, device="cpu")
    result = evaluate_photographs(decoders, n_bootstraps=found.bootstraps)
    table = result.table()
    print("| captions | " + " | ".join(table.columns) + " |")
    print("|---" * (len(table.columns) + 1) + "|")
    for name, row in table.iterrows():
        print(f"| {name} | " + " | ".join(row) + " |")
    print()
    print(result.differences.round(2).to_string(index=False))
    print()
    print(result.captions.head(12).to_string(index=False))
    if found.captions is not None:
        result.captions.to_csv(found.captions, index=False)


if __name__ == "__main__":
    main()
