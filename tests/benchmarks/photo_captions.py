"""Captions of 111 held-out COCO photographs beside retrieval, captions of other photographs, and people.

    python tests/benchmarks/photo_captions.py [--decoder NAME=FOLDER ...] [--captions FILE.csv]

Needs NEUROENC_MIRROR, the extra `offline`, and for a folder that was trained with `--lm smollm2` SmolLM2's weights. The
first run embeds 24,575 captions (minutes on one core), later ones find them in the cache.

The figures for the weights that ship stand in README.md beside this file (95 % intervals over photographs; against four
of five human captions). It was the second look at these photographs: the first was at an earlier training (1,329
steps); length of training and weight of reranking were chosen on the 250 photographs of the validation.

Written captions are nearer to people's in words (plain CIDEr +.16 [.07, .25]); in MiniLM's space, in which retrieval
searches, retrieval is level or a little nearer (-.03 [-.06, .00]). SmolLM2 (2,158 steps of 32, stopped after 72 minutes
on one core) captions as well as the small model that ships, at 25 times its parameters: the small one ships.
Of the 62 photographs in whose first caption nobody is named (by the lexicon), 28 get a caption with somebody (ConSE is
blind to people), none with ``without``; kept to pairs of tokens of captions without people as well, they stay English.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decoder", action="append", default=[], help="NAME=FOLDER beside the one that ships")
    parser.add_argument("--captions", type=Path, default=None, help="file for the captions")
    parser.add_argument("--without-shipped", action="store_true")
    parser.add_argument("--bootstraps", type=int, default=1000)
    found = parser.parse_args()

    from neuroenc.captions import CorpusConstraint, PrefixDecoder, load_captioner, load_lexicon
    from neuroenc.captions.text._words import word_pattern

    sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
    from photo_evaluation import evaluate_photographs
    from photo_texts import photo_texts

    shipped = load_captioner("photo", device="cpu")
    people = load_lexicon()["person"]
    named = word_pattern(people)
    bare_texts = [c for c in photo_texts(device="cpu").captions if not named.search(c)]
    corpus = CorpusConstraint.from_captions(
        bare_texts, shipped.encode, stop=shipped.stop, vocabulary=shipped.vocabulary, n=2
    )
    decoders = (
        {}
        if found.without_shipped
        else {
            "photo": shipped,
            "photo, not reranked": shipped.with_options(beams=5, rerank=0.0),
            "photo, without people": shipped.with_options(without=people),
            "photo, words without people": shipped.with_options(constraint=corpus, without=people),
        }
    )
    for pair in found.decoder:
        name, folder = pair.split("=", 1)
        lm = None
        if json.loads((Path(folder) / "decoder.json").read_text())["lm"] is None:
            from smollm2 import load_smollm2

            lm = load_smollm2()[0]
        # Searched as the one that ships.
        like = {"embed_text": shipped.embed_text, "search": shipped.search, "rerank": shipped.rerank}
        decoders[name] = PrefixDecoder.load(folder, lm=lm, device="cpu", **like)
    result = evaluate_photographs(decoders, n_bootstraps=found.bootstraps)
    table = result.table()
    print("| captions | " + " | ".join(table.columns) + " |")
    print("|---" * (len(table.columns) + 1) + "|")
    for name, row in table.iterrows():
        print(f"| {name} | " + " | ".join(row) + " |")
    print()
    print(result.differences.round(2).to_string(index=False))
    print()
    bare = ~result.captions["human"].map(lambda t: bool(named.search(t)))
    print(f"{int(bare.sum())} photographs in whose first caption nobody is named; with somebody in the caption:")
    for name in decoders:
        print(f"  {name}: {int(result.captions.loc[bare, name].map(lambda t: bool(named.search(t))).sum())}")
    print()
    print(result.captions.head(12).to_string(index=False))
    if found.captions is not None:
        result.captions.to_csv(found.captions, index=False)


if __name__ == "__main__":
    main()
