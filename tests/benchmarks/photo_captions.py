"""Captions of 111 held-out COCO photographs beside retrieval, captions of other photographs, and people.

    python tests/benchmarks/photo_captions.py [--decoder NAME=FOLDER ...] [--captions FILE.csv]

Needs NEUROENC_MIRROR, the extra `offline`, and for a folder that was trained with `--lm smollm2` SmolLM2's weights. The
first run embeds 24,575 captions (minutes on one core), later ones find them in the cache.

Measured once for the weights that ship (95 % intervals over photographs; against four of five human captions):

| captions | bleu4 | chrf | cider | cider_d | similarity |
|---|---|---|---|---|---|
| photo | 13.6 [10.0, 16.9] | 29.4 [27.2, 31.8] | 0.54 [0.42, 0.66] | 0.48 [0.37, 0.59] | 0.34 [0.30, 0.38] |
| retrieval | 7.2 [4.6, 9.3] | 27.2 [25.5, 29.2] | 0.39 [0.32, 0.46] | 0.34 [0.27, 0.40] | 0.42 [0.38, 0.45] |
| shuffled | 4.2 [1.9, 6.3] | 19.2 [17.9, 20.7] | 0.09 [0.05, 0.16] | 0.09 [0.05, 0.14] | 0.10 [0.08, 0.13] |
| human | 18.8 [16.5, 21.1] | 41.5 [40.0, 43.1] | 1.04 [0.94, 1.15] | 0.92 [0.83, 1.01] | 0.61 [0.59, 0.63] |

Retrieval is nearer in MiniLM's space, which is what it searches in; written captions are nearer in words.
Of the 72 photographs whose first annotator names no person, 39 get a caption with one (ConSE is blind to people).
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
