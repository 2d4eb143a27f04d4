"""Training of a prefix decoder on images or texts alone, with exact resumption."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from neuroenc._core.arrays import unit_rows
from neuroenc._core.checkpoints import Checkpoint
from neuroenc._core.checks import at_least, check_whole, one_of
from neuroenc._core.errors import ConfigError, DataError
from neuroenc._core.files import hash_array, hash_json
from neuroenc._core.progress import progress as bar_of
from neuroenc.captions._descent import take_step
from neuroenc.captions.decoding._constraints import caption_pairs
from neuroenc.captions.decoding._prefix import PrefixDecoder
from neuroenc.captions.decoding._sampling import token_logits

_IGNORED = -100


@dataclass(frozen=True)
class PrefixTraining:
    """Result of `train_prefix`: losses, steps, stopping.

    Attributes
    ----------
    losses : ndarray (step,) float64
        Cross-entropy of a token, in nats, of each batch.
    steps : int
    ended_by : {"steps", "minutes"}
    seconds : float
        Spent in training, over all runs.
    """

    losses: np.ndarray
    steps: int
    ended_by: str
    seconds: float


def prefix_loss(decoder: PrefixDecoder, inputs: Tensor, tokens: Tensor, levels: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of captions (n, t), -100 behind their end, after the prefixes of prepared inputs.

    With ``levels`` (n,) the learned vectors of each caption's level stand behind the prefix.
    """
    prefix = decoder.mapping(inputs)
    if levels is not None:
        assert decoder.prompts is not None
        prefix = torch.cat([prefix, decoder.prompts.vectors[levels]], dim=1)
    # Captions are of different lengths, prefixes are not: what stands behind an end is hidden by causality.
    logits = token_logits(decoder.lm, prefix, tokens)
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), ignore_index=_IGNORED)


def train_prefix(
    decoder: PrefixDecoder,
    embeddings: Any,
    captions: Sequence[str] | Sequence[Sequence[str]],
    *,
    source: str = "image",
    noise: float = 0.0,
    train_lm: bool = True,
    train_mapping: bool = True,
    epochs: int = 10,
    minutes: float | None = None,
    batch_size: int = 40,
    lr: float = 2e-5,
    weight_decay: float = 0.0,
    warmup: int = 5000,
    schedule: str = "linear",
    clip: float | None = None,
    append_stop: bool = True,
    max_tokens: int | None = None,
    prepared: bool = False,
    prompted: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 500,
    progress: bool = True,
) -> PrefixTraining:
    r"""Train a prefix decoder: minimise the cross-entropy of captions given their embeddings, in place.

    .. math:: \min_{F, LM} -\frac{1}{\sum_i T_i} \sum_i \sum_{t \le T_i}
        \log p(y_{it} \mid F(x_i + \sigma \epsilon), y_{i,<t})

    over batches, with AdamW, a linear warm-up and a decay to zero; defaults are those released with ClipCap. From
    texts alone (CapDec) the embeddings are those of the captions themselves, and Gaussian noise of standard deviation
    sigma a dimension keeps the decoder from trusting them more than an image can be trusted; the published variance
    is 0.016 (sigma = 0.126) on unit-norm embeddings of 512 dimensions. With ``normalise`` the noisy embedding is
    brought back to unit norm.

    Order, noise and dropout of a step follow from ``seed`` and the step alone: a run that was killed ends with the
    bytes of one that was not (on the CPU, without a time limit).

    Parameters
    ----------
    decoder : PrefixDecoder
    embeddings : array (n, embedding_dim)
        Raw; the decoder's own ``normalise`` and ``centre`` are applied.
    captions : sequence of str (n,), or of sequences of str
        One or more for each embedding; each pair is an example.
    source : {"image", "text"}
        What the embeddings are; remembered by the decoder.
    noise : float
        sigma.
    train_lm : bool
        False: the language model stays as it is (no dropout either).
    train_mapping : bool
        False: the mapping network stays as it is; something else is then to be trained.
    epochs : int
    minutes : float, optional
        Time limit: on a slower machine the decay ends then instead, and the result depends on the machine.
    batch_size, lr, weight_decay, warmup, clip
        ``clip`` is the largest norm of the gradient.
    schedule : {"linear", "cosine"}
        Of the decay.
    append_stop : bool
        Captions that do not end with the stop token get it.
    max_tokens : int, optional
        Longer captions are cut.
    prepared : bool
        ``embeddings`` are already what :meth:`PrefixDecoder.inputs` gives.
    prompted : sequence of sequence of int, optional
        Of each caption, the number of the decoder's learned prompt that stands in front of it, which is trained as
        well: what :func:`train_retriever` hands over.
    seed : int
    checkpoint : path, optional
        Folder for the state of training; the same call goes on from there. Several runs may share it.
    checkpoint_every : int
        Steps.
    progress : bool

    Raises
    ------
    DataError
        Numbers that do not agree, embeddings that are not finite, empty captions, or a loss that is not finite.

    References
    ----------
    Nukrai, Mokady, Globerson. Text-only training for image captioning using noise-injected CLIP. Findings of EMNLP
    2022.

    Examples
    --------
    >>> import numpy as np
    >>> from neuroenc.captions import PrefixDecoder, make_language_model, train_prefix
    >>> lm, tokenizer = make_language_model(["a face", "a house"], width=16, layers=1)
    >>> decoder = PrefixDecoder(lm, tokenizer, 2, stop="<end>", device="cpu")
    >>> found = train_prefix(decoder, np.eye(2), ["a face", "a house"], epochs=3, warmup=0, progress=False)
    >>> found.steps, found.losses.shape
    (3, (3,))
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("checkpoint_every", checkpoint_every)):
        check_whole(name, value)
    check_whole("warmup", warmup, 0)
    one_of("source", source, ("image", "text"))
    one_of("schedule", schedule, ("linear", "cosine"))
    at_least("lr", lr, above=True)
    at_least("minutes", 1 if minutes is None else minutes, above=True)
    at_least("noise", noise)
    inputs = np.asarray(embeddings, dtype=np.float64)
    if not np.isfinite(inputs).all():
        raise DataError("embeddings hold NaN or infinity. Next step: leave those stimuli out.")
    if not prepared:
        if decoder.centre:
            decoder.mean = unit_rows(inputs).mean(axis=0)
        inputs = decoder.inputs(inputs)
    stop = decoder.stop if append_stop else None
    rows, tokens = caption_pairs(captions, len(inputs), decoder.encode, decoder.room, stop, max_tokens)
    if not (train_lm or train_mapping or prompted is not None):
        raise ConfigError("nothing is to be trained. Next step: train_mapping=True, or train_lm=True.")
    levels = None if prompted is None else np.array([k for several in prompted for k in several], dtype=np.int64)
    if levels is not None and len(levels) != len(rows):
        raise DataError(f"{len(levels)} prompts of {len(rows)} captions; legal is one a caption.")
    decoder.source = source
    descent: dict[str, Any] = {"lr": lr, "decay": weight_decay, "warmup": warmup, "schedule": schedule, "clip": clip}
    total, limit = epochs * math.ceil(len(rows) / batch_size), None if minutes is None else 60.0 * minutes
    length: dict[str, Any] = {"batch": batch_size, "total": total, "limit": limit}
    x = torch.from_numpy(inputs.astype(np.float32))
    parts: dict[str, Any] = {"train_lm": train_lm, "train_mapping": train_mapping, "levels": levels}
    run = _Run(decoder, x, rows, tokens, noise=float(noise), seed=seed, **parts, **descent, **length)
    return run.run(checkpoint, checkpoint_every, progress)


@dataclass
class _Run:
    decoder: PrefixDecoder
    inputs: Tensor
    rows: np.ndarray
    tokens: list[list[int]]
    noise: float
    train_lm: bool
    train_mapping: bool
    levels: np.ndarray | None
    batch: int
    lr: float
    decay: float
    warmup: int
    schedule: str
    clip: float | None
    seed: int
    total: int
    limit: float | None

    def __post_init__(self) -> None:
        trained = {"mapping": self.decoder.mapping} if self.train_mapping else {}
        trained |= {"lm": self.decoder.lm} if self.train_lm else {}
        trained |= {"prompts": self.decoder.prompts} if self.levels is not None else {}
        self.modules = torch.nn.ModuleDict(trained)
        self.parameters = list(self.modules.parameters())
        self.optimiser = torch.optim.AdamW(self.parameters, lr=self.lr, weight_decay=self.decay)
        self.step, self.spent, self.losses = 0, 0.0, list[float]()

    def _key(self) -> str:
        apart = ("decoder", "inputs", "rows", "tokens", "levels", *(("train_mapping",) if self.train_mapping else ()))
        names = [f.name for f in fields(self) if f.name not in apart]
        flat = np.concatenate([np.array(t) for t in self.tokens])
        data = hash_array(self.inputs.numpy(), self.rows, flat, *([] if self.levels is None else [self.levels]))
        start = hash_array(*[p.detach().cpu().float().numpy() for p in self.parameters])
        return hash_json({**{k: getattr(self, k) for k in names}, "data": data, "start": start})

    def run(self, folder: Any, every: int, show: bool) -> PrefixTraining:
        store = None
        if folder is not None:
            store = Checkpoint(folder, self._key())
            found = store.resume(self.modules, self.optimiser, self.decoder.device)
            if found is not None:
                self.step, self.spent, self.losses = found[0]
        networks = ((self.decoder.lm, self.train_lm), (self.decoder.mapping, self.train_mapping))
        frozen = [network for network, trained in networks if not trained]
        for part in frozen:
            part.requires_grad_(False)
        self.modules.train()
        bar = bar_of(desc="captions", total=self.total, initial=self.step, show=show)
        try:
            # Dropout draws from the global stream, which is the user's.
            with torch.random.fork_rng(), torch.enable_grad():
                while not self._over():
                    began = time.monotonic()
                    self._one()
                    self.spent += time.monotonic() - began
                    bar.update(1)
                    if self.step % 20 == 0:
                        bar.set_postfix(loss=f"{np.mean(self.losses[-50:]):.3f}")
                    if store is not None and (self.step % every == 0 or self._over()):
                        store.save(self.modules, self.optimiser, [self.step, self.spent, self.losses])
        finally:
            bar.close()
            self.modules.eval()
            for part in frozen:
                part.requires_grad_(True)
        ended = "steps" if self.step >= self.total else "minutes"
        return PrefixTraining(np.array(self.losses), self.step, ended, self.spent)

    def _over(self) -> bool:
        return self.step >= self.total or (self.limit is not None and self.spent >= self.limit)

    def _rate(self) -> float:
        warm = min(1.0, (self.step + 1) / self.warmup) if self.warmup else 1.0
        done = max(self.step / self.total, 0.0 if self.limit is None else self.spent / self.limit)
        if self.schedule == "cosine":
            return self.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        start = min(1.0, self.warmup / self.total)
        return self.lr * warm * (1.0 if done <= start else (1 - done) / (1 - start))

    def _seed(self, purpose: int) -> int:
        return int(np.random.SeedSequence([self.seed, self.step, purpose]).generate_state(1, np.uint64)[0] >> 1)

    def _one(self) -> None:
        each = math.ceil(len(self.rows) / self.batch)
        epoch, place = divmod(self.step, each)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.rows))
        chosen = order[place * self.batch : (place + 1) * self.batch]
        x = self.inputs[self.rows[chosen]]
        if self.noise:
            generator = torch.Generator().manual_seed(self._seed(0))
            x = x + self.noise * torch.randn(x.shape, generator=generator)
            if self.decoder.normalise:
                x = torch.nn.functional.normalize(x, dim=-1)
        y = pad_sequence([torch.tensor(self.tokens[k]) for k in chosen], batch_first=True, padding_value=_IGNORED)
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate()
        torch.manual_seed(self._seed(1))
        device = self.decoder.device
        behind = None if self.levels is None else torch.from_numpy(self.levels[chosen]).to(device)
        loss = prefix_loss(self.decoder, x.to(device), y.to(device), behind)
        self.losses.append(take_step(loss, self.optimiser, self.step, self.clip))
        self.step += 1
