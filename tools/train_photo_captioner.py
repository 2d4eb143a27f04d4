"""Train the captioner of photographs: ``python tools/train_photo_captioner.py --out DIR``.

From captions alone: no pixel is read. The language model writes on from a prefix made of a vector of the ConSE space
(:class:`neuroenc.embedding.ImageEmbedder` ``"conse"``). In training that vector is what ConSE could have said of a
photograph of which the *other* annotators said what they said (:func:`text_to_conse`), or, with ``--inputs text``,
the mean vector of their captions with Gaussian noise (CapDec). Captions are those of COCO 2017 validation; photographs
of ``coco-permissive`` are left out by their COCO id, so that captions of them can be measured
(``tests/benchmarks/photo_captions.py``).
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from neuroenc._core.arrays import unit_rows
from neuroenc._core.errors import ConfigError, unknown_name
from neuroenc._core.files import write_json, write_text
from neuroenc._core.provenance import provenance
from neuroenc.embedding import prepare
from photo_inputs import conse_classes, leave_one_out, text_to_conse
from photo_texts import PhotoTexts, photo_texts

__all__ = ["ATTRIBUTION", "main", "train_photo_captioner"]

ATTRIBUTION = (
    "Trained on the captions of COCO 2017 validation (COCO Consortium, https://cocodataset.org; Lin et al. 2014, Chen "
    "et al. 2015), annotations licensed under CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). Captions were "
    "put in lower case and without a final stop. No photograph was used."
)
LANGUAGE_MODELS = ("own", "smollm2")
INPUTS = ("conse", "text")
#: Set before anything was measured: see :func:`text_to_conse`.
_TEMPERATURE, _CLASS_NOISE = 0.15, 0.04


def image_like(texts: PhotoTexts, inputs: str, classes: np.ndarray, seed: int) -> np.ndarray:
    """For each caption one vector that stands for its photograph, made of what the other annotators said."""
    others = leave_one_out(texts.vectors, texts.ids)
    if inputs == "text":
        return others.astype(np.float32)
    return text_to_conse(others, classes, temperature=_TEMPERATURE, noise=_CLASS_NOISE, seed=seed)


def _new_decoder(lm: str, texts: PhotoTexts, options: dict[str, Any], seed: int, device: str) -> Any:
    from neuroenc.captions.decoding._prefix import PrefixDecoder
    from neuroenc.captions.decoding._search import SearchSettings

    if lm == "own":
        from neuroenc.captions import make_language_model

        shape = {k: options[k] for k in ("width", "layers", "vocabulary", "dropout")}
        model, tokenizer = make_language_model(texts.captions, positions=48, seed=seed, **shape)
        stop = "<end>"
    else:
        from smollm2 import load_smollm2

        model, tokenizer = load_smollm2("bfloat16" if options["bfloat16"] else "float32")
        # The backward pass of fused attention takes longer on a CPU than all products of so short texts together.
        model.set_attn_implementation("eager")
        stop = "<|im_end|>"
    return PrefixDecoder(
        model,
        tokenizer,
        texts.vectors.shape[1],
        prefix_length=options["prefix_length"],
        mapping_settings={"hidden": options["hidden"]},
        normalise=True,
        centre=True,
        source="text",
        stop=stop,
        search=SearchSettings(max_length=24),
        seed=seed,
        device=device,
    )


def train_photo_captioner(
    out: str | Path,
    *,
    lm: str = "own",
    inputs: str = "conse",
    noise: float = 0.0,
    variants: int = 4,
    epochs: int = 4,
    minutes: float = 60.0,
    batch_size: int = 64,
    learning_rate: float = 1.5e-3,
    width: int = 256,
    layers: int = 4,
    vocabulary: int = 4096,
    dropout: float = 0.05,
    prefix_length: int = 6,
    hidden: int = 512,
    max_tokens: int = 22,
    validation: int = 250,
    photographs: int | None = None,
    bfloat16: bool = True,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    checkpoint: str | Path | None = None,
    cache: bool = True,
    show: bool = True,
) -> dict[str, Any]:
    """Train, write a folder for ``PrefixDecoder.load``, and measure it on captions that were held out.

    Parameters
    ----------
    out : path
        Folder for the decoder in float16, and ``metrics.json``.
    lm : {"own", "smollm2"}
        A GPT-2 architecture with its own BPE, trained whole; or the mapping network alone, before SmolLM2 as it is.
    inputs : {"conse", "text"}
        What stands for a photograph in training.
    noise : float
        Standard deviation a dimension of Gaussian noise on centred inputs of unit norm.
    variants : int
        Draws of the inputs' own noise for each caption; one epoch sees all of them.
    epochs, batch_size, learning_rate : int, int, float
        AdamW with warm-up and a cosine to zero.
    minutes : float
        Time limit of the training itself, at which the cosine ends (``metrics["ended_by"]``).
    width, layers, vocabulary, dropout
        Of the language model, with ``lm="own"``.
    prefix_length, hidden : int
        Of the mapping network.
    max_tokens : int
        Longer captions (some 2 %) are left out: cut ones would teach not to end.
    validation : int
        Photographs whose captions are not learned from.
    photographs : int, optional
        Only the first so many, for trials.
    bfloat16 : bool
        Products of the training in bfloat16; weights stay in float32.
    seed : int
    device : str
    threads : int, optional
        Threads of torch.
    checkpoint : path, optional
        Folder from which a training that was killed goes on.
    cache : bool
        Keep the texts' vectors in the user's cache.
    show : bool
        Progress bars.

    Returns
    -------
    dict
        The content of ``metrics.json``.

    Raises
    ------
    ConfigError
        Illegal settings.
    """
    for name, value, legal in (("lm", lm, LANGUAGE_MODELS), ("inputs", inputs, INPUTS)):
        if value not in legal:
            raise ConfigError(unknown_name(name, value, legal))
    prepare()
    import torch

    from neuroenc.captions.decoding._prefix import PrefixDecoder
    from neuroenc.captions.decoding._prefix_training import train_prefix
    from smollm2 import load_smollm2

    if threads:
        torch.set_num_threads(threads)
    began = time.monotonic()
    texts = photo_texts(photographs=photographs, cache=cache, device=device, show=show)
    kept_out = texts.validation(validation, seed)
    learned, judged = texts.without(kept_out), texts.of(kept_out)
    classes = conse_classes(device)
    embedded = time.monotonic()

    shape = {
        "width": width,
        "layers": layers,
        "vocabulary": vocabulary,
        "dropout": dropout,
        "hidden": hidden,
        "prefix_length": prefix_length,
        "bfloat16": bfloat16,
    }
    decoder = _new_decoder(lm, learned, shape, seed, device)
    # A single caption of each photograph is left where all others are too long: the input still stands for it.
    short = np.array([len(decoder.encode(c)) < max_tokens for c in learned.captions])
    captions = [c for c, s in zip(learned.captions, short) if s]
    drawn = [image_like(learned, inputs, classes, seed=1_000 * seed + v)[short] for v in range(variants)]
    # Vectors of texts and of images lie around different means; those of images come from the bank in decoding.
    decoder.text_direction = unit_rows(learned.vectors.astype(np.float64)).mean(axis=0)
    # Without its cache: within one context it would go on with the weights of the first step.
    half = torch.autocast(torch.device(decoder.device).type, torch.bfloat16, cache_enabled=False)
    with half if bfloat16 else nullcontext():
        training = train_prefix(
            decoder,
            np.concatenate(drawn),
            captions * variants,
            source="text",
            noise=noise,
            train_lm=lm == "own",
            epochs=epochs,
            minutes=minutes,
            batch_size=batch_size,
            lr=learning_rate,
            weight_decay=0.05,
            warmup=100,
            schedule="cosine",
            clip=1.0,
            seed=seed,
            checkpoint=checkpoint,
            progress=show,
        )
    out = Path(out)
    decoder.save(out, lm=lm == "own", dtype="float16")
    size = (out / "prefix.safetensors").stat().st_size
    # What is measured is what was written, in float16.
    whole = None if lm == "own" else load_smollm2()[0]
    written = PrefixDecoder.load(out, device=device, lm=whole)
    metrics = {
        "licence": ATTRIBUTION,
        "validation": measure(written, judged, classes),
        "final_loss": float(training.losses[-100:].mean()),
        "steps": training.steps,
        "ended_by": training.ended_by,
        "learned_from": {**learned.record(), "captions_used": len(captions)},
        "validation_texts": judged.record(),
        "lm": lm,
        "inputs": inputs,
        "noise": noise,
        "variants": variants,
        "batch_size": batch_size,
        "temperature": _TEMPERATURE,
        "class_noise": _CLASS_NOISE,
        "parameters": sum(p.numel() for p in decoder.mapping.parameters())
        + (sum(p.numel() for p in decoder.lm.parameters()) if lm == "own" else 0),
        "weights_bytes": size,
        "seconds_embedding": round(embedded - began, 1),
        "seconds_training": round(training.seconds, 1),
        "seconds_total": round(time.monotonic() - began, 1),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "provenance": provenance(step="train_photo_captioner", seed=seed, learning_rate=learning_rate),
    }
    write_json(out / "metrics.json", metrics)
    write_text(out / "README.md", model_card(metrics))
    return metrics


def model_card(metrics: dict[str, Any]) -> str:
    """What stands beside the weights: where they come from, and what they cannot know."""
    learned = metrics["learned_from"]
    return f"""# Captioner of photographs in the ConSE space

{ATTRIBUTION}

Learned from {learned["captions_used"]} captions of {learned["photographs"]} photographs. Left out are the
{learned["held_out_photographs"]} photographs of `coco-permissive`, so that they can be measured
(`tests/benchmarks/photo_captions.py`), and {metrics["validation_texts"]["photographs"]} for validation;
`metrics.json` holds their counts and hashes.
{metrics["parameters"]} parameters, {metrics["weights_bytes"]} bytes in float16.

ConSE is blind to people: ImageNet has hardly any class of persons. A person in a caption stands there because people
often go with the things that were seen, and is no evidence of a person; actions, counts, colours and positions are
likewise what usually goes with the things.
"""


def measure(decoder: Any, texts: PhotoTexts, classes: np.ndarray, photographs: int = 250) -> dict[str, Any]:
    """CIDEr (CIDEr-D) and BLEU-4 of captions of stand-ins for photographs, made of texts that were not learned from.

    A stand-in is :func:`text_to_conse` of one photograph's captions but its first; all of them are the references.
    """
    from caption_metrics import bleu4, cider

    stand_in = image_like(texts, "conse", classes, seed=987)
    first = np.unique(texts.ids, return_index=True)[1][:photographs]
    references = [texts.of([texts.ids[k]]).captions for k in first]
    vectors = stand_in[first]
    captions = [c[0].text for c in decoder.generate(vectors, mean=unit_rows(stand_in.astype(np.float64)).mean(axis=0))]
    wrong = captions[1:] + captions[:1]
    return {
        "cider_d": float(cider(captions, references).mean()),
        "bleu4": bleu4(captions, references),
        "shuffled_cider_d": float(cider(wrong, references).mean()),
        "n": len(captions),
        "examples": [[r[0], c] for r, c in zip(references[:5], captions)],
    }


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder to write")
    parser.add_argument("--lm", choices=LANGUAGE_MODELS, default="own")
    parser.add_argument("--inputs", choices=INPUTS, default="conse")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--variants", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=60.0, help="time limit of the training")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--prefix-length", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--validation", type=int, default=250, help="photographs whose captions are not learned from")
    parser.add_argument("--photographs", type=int, default=None, help="only the first so many, for trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--checkpoint", type=Path, default=None, help="folder to go on from after a kill")
    found = parser.parse_args(argv)
    print(json.dumps(train_photo_captioner(**vars(found)), indent=2))


if __name__ == "__main__":
    main()
