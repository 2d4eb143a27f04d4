"""Prefix decoders: released layout and loop, files, training and its resumption, voxels that keep their labels."""

import itertools
import os

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from neuroenc._core.errors import ConfigError, DataError
from neuroenc.captions import (
    CorpusConstraint,
    Decoder,
    PrefixDecoder,
    SearchSettings,
    make_language_model,
    project,
    train_prefix,
)
from neuroenc.captions.decoding._language_model import make_tokenizer
from neuroenc.captions.decoding._mapping import TransformerMapping, make_mapping
from neuroenc.captions.decoding._prefix_training import _Run
from neuroenc.embedding import prepare

NAMES = ("face", "house", "dog", "pizza", "sign", "hand")
FORMS = ("a {}.", "a photo of a {}.", "there is one small {} here.")
TEXTS = [form.format(x) for x in NAMES for form in FORMS]
D = 12


def fresh(**options):
    lm, tokenizer = make_language_model(TEXTS, width=32, layers=2, heads=2, vocabulary=330)
    options = {"prefix_length": 3, "normalise": True, "device": "cpu", **options}
    return PrefixDecoder(lm, tokenizer, D, **options)


def concepts(n=1, noise=0.0, seed=0, gap=0.0):
    """Directions of the six concepts, n of each, around a common mean."""
    rng = np.random.default_rng(seed)
    x = np.repeat(np.eye(6, D), n, axis=0)
    x[:, -1] = gap
    return x + noise * rng.standard_normal(x.shape)


@pytest.fixture(scope="module")
def trained():
    decoder = fresh()
    found = train_prefix(
        decoder, 7 * concepts(3), TEXTS, epochs=150, batch_size=18, lr=0.01, warmup=10, noise=0.05, progress=False
    )
    assert found.losses[-1] < 1.2 < found.losses[0]
    assert (found.steps, found.ended_by) == (150, "steps")
    return decoder


def test_it_names_what_it_was_shown(trained):
    found = trained.generate(concepts(2, noise=0.1, seed=1), top=3)
    assert all(NAMES[k // 2] in c.text for k, several in enumerate(found) for c in several[:1])
    for several in found:
        assert len({c.text for c in several}) == len(several) == 3
        assert all(c.finished and c.text.endswith(".") for c in several[:1])
        assert sorted((c.score for c in several), reverse=True) == [c.score for c in several]


def released(decoder, x, beams=5, longest=67):
    """The best of `released_order`."""
    return released_order(decoder, x, beams, longest)[0]


def released_order(decoder, x, beams=5, longest=67):
    """ClipCap's generate_beam, one embedding, everything read again at each step."""
    with torch.no_grad():
        generated = decoder.mapping(torch.from_numpy(decoder.inputs(x[None])))
        tokens = scores = None
        lengths, stopped = torch.ones(beams), torch.zeros(beams, dtype=torch.bool)
        for _ in range(longest):
            logits = decoder.lm(inputs_embeds=generated).logits[:, -1].softmax(-1).log()
            if scores is None:
                scores, new = logits.topk(beams, -1)
                generated = generated.expand(beams, *generated.shape[1:])
                tokens = new = new.permute(1, 0)
                scores = scores.squeeze(0)
            else:
                logits[stopped] = -float("inf")
                logits[stopped, 0] = 0
                total = scores[:, None] + logits
                lengths[~stopped] += 1
                average, new = (total / lengths[:, None]).view(-1).topk(beams, -1)
                source = new // total.shape[1]
                lengths = lengths[source]
                new = (new % total.shape[1]).unsqueeze(1)
                tokens = torch.cat((tokens[source], new), dim=1)
                generated = generated[source]
                scores = average * lengths
                stopped = stopped[source]
            embedded = decoder.lm.get_input_embeddings()(new.squeeze(1)).view(generated.shape[0], 1, -1)
            generated = torch.cat((generated, embedded), dim=1)
            stopped = stopped + new.eq(decoder.stop).squeeze(1)
            if stopped.all():
                break
    scores = scores / lengths
    order = scores.argsort(descending=True)
    return [(tokens[k][: int(lengths[k])].tolist(), float(scores[k])) for k in order]


def test_batched_and_cached_is_the_released_loop(trained):
    x = 3 * concepts(2, noise=0.3, seed=2)
    raw = trained.with_options(normalise=False)
    for decoder in (trained, raw):
        for found, row in zip(decoder.generate(x, top=5), x, strict=True):
            best = max(found, key=lambda c: c.score)  # captions that were cut come last here, not there
            tokens, score = released(decoder, row, longest=decoder.room)
            assert best.tokens == tokens
            assert best.score == pytest.approx(score, abs=1e-5)


def test_batches_cache_and_items_change_nothing(trained):
    x = concepts(3, noise=0.4, seed=3)
    for method in ("beam", "sample"):
        whole = trained.with_options(method=method).generate(x, top=4)
        for options in ({"batch_size": 1}, {"batch_size": 5}, {"cache": False}):
            found = trained.with_options(method=method, **options).generate(x, top=4)
            for a, b in zip(whole, found, strict=True):
                assert [c.tokens for c in a] == [c.tokens for c in b]
                np.testing.assert_allclose([c.score for c in a], [c.score for c in b], atol=1e-5)
        alone = trained.with_options(method=method).generate(x[7:8], top=4, items=[7])
        assert [c.tokens for c in alone[0]] == [c.tokens for c in whole[7]]


def voxels(decoder, seed=0):
    rng = np.random.default_rng(seed)
    bank = 5 * concepts(40, noise=0.1, seed=seed, gap=0.8)
    coef = np.eye(D, 8)
    coef[:, 7] = np.nan
    coords = {"voxel": 100 + np.arange(8), "roi": ("voxel", ["FFA"] * 8), "i": ("voxel", rng.integers(0, 9, 8))}
    return project(xr.DataArray(coef, dims=("feature", "voxel"), coords=coords), bank, progress=False), coef


def test_it_is_a_decoder_and_voxels_keep_their_labels(trained):
    projection, coef = voxels(trained)
    assert isinstance(trained, Decoder)
    frame = trained.decode(projection, top=2)
    assert list(frame.columns) == ["voxel", "rank", "caption", "score", "caption_id", "predicted", "i", "roi"]
    assert frame["voxel"].tolist() == [v for v in range(100, 107) for _ in (1, 2)]  # the last has no weights
    assert frame["predicted"].isna().all()
    assert (frame["i"] == [projection.sel(voxel=v)["i"].item() for v in frame["voxel"]]).all()
    best = frame[frame["rank"] == 1]["caption"].tolist()
    assert [name in text for name, text in zip(NAMES, best[:6], strict=True)] == [True] * 6
    text = {n: k for k, n in enumerate(NAMES)}

    def embed(texts):
        return np.stack([2 * np.eye(D)[next(k for n, k in text.items() if n in t)] for t in texts])

    shown = trained.with_options(embed_text=embed).decode(
        projection,
        top=1,
        coef=xr.DataArray(coef, dims=("feature", "voxel"), coords={"voxel": projection["voxel"]}),
        intercept=np.full(8, 0.5),
    )
    assert shown["predicted"].tolist()[:6] == pytest.approx([1.5] * 6)
    with pytest.raises(DataError, match="different voxels"):
        trained.with_options(embed_text=embed).decode(projection, coef=coef)


def test_corpus_constraint_and_provenance_in_the_table(trained):
    constraint = CorpusConstraint.from_captions(
        TEXTS, trained.encode, stop=trained.stop, vocabulary=len(trained.tokenizer), ids=[f"im{k}" for k in range(18)]
    )
    projection, _ = voxels(trained)
    frame = trained.with_options(constraint=constraint).decode(projection, top=3)
    assert len(frame) >= 14
    assert set(frame["caption"]) <= set(TEXTS)
    assert frame["caption_id"].tolist() == [f"im{TEXTS.index(t)}" for t in frame["caption"]]
    pairs = CorpusConstraint(constraint.index, stop=trained.stop, vocabulary=len(trained.tokenizer), n=3)
    y = trained.encode("a photo of one small dog.")
    traced = pairs.provenance(y)
    assert len(traced) > 1
    for row in traced.itertuples():
        assert all(trained.text(y[row.start : row.end]) in TEXTS[int(i[2:])] for i in row.ids.split(";"))


def test_hooks_see_the_numbers_of_voxels_in_every_batch(trained):
    seen = set()

    def note(tokens, items):
        seen.update(items.tolist())
        return torch.ones((len(tokens), trained.vocabulary), dtype=torch.bool)

    trained.with_options(constraint=note, batch_size=4).generate(concepts(2), items=range(50, 62))
    assert seen == set(range(50, 62))


def test_diverse_captions_of_a_mixed_voxel_name_both_concepts(trained):
    x = np.stack([np.eye(D)[a] + np.eye(D)[b] for a in range(6) for b in range(a)])
    pairs = [(a, b) for a in range(6) for b in range(a)]

    def both(decoder):
        found = decoder.generate(x, top=2)
        return np.mean([all(any(NAMES[k] in c.text for c in f) for k in p) for f, p in zip(found, pairs, strict=True)])

    diverse = trained.with_options(beams=4, groups=2, diversity="words", diversity_penalty=3.0)
    plain = trained.with_options(beams=4)
    assert both(diverse) > both(plain) + 0.3


@pytest.mark.parametrize("mapping", ["mlp", "transformer"])
@pytest.mark.parametrize("with_lm", [True, False])
def test_a_decoder_on_disk_is_the_one_in_memory(tmp_path, mapping, with_lm):
    settings = {"layers": 1, "heads": 2} if mapping == "transformer" else {"hidden": 9}
    decoder = fresh(mapping=mapping, mapping_settings=settings, centre=True, search=SearchSettings(beams=3))
    decoder.mean, decoder.text_direction = np.full(D, 0.25), np.full(D, 0.5)
    decoder.save(tmp_path / "d", lm=with_lm)
    names = {p.name for p in (tmp_path / "d").iterdir()}
    assert {"decoder.json", "prefix.safetensors", "tokenizer.json"} <= names
    assert not any(n.endswith((".pt", ".pkl", ".bin")) for n in names)
    read = PrefixDecoder.load(tmp_path / "d", device="cpu", **({} if with_lm else {"lm": decoder.lm}))
    x = concepts(1, noise=0.3)
    found, expected = read.generate(x, top=3), decoder.generate(x, top=3)
    assert found == expected
    assert (read.search, read.stop, read.centre) == (decoder.search, decoder.stop, True)
    assert read.text_direction.tolist() == decoder.text_direction.tolist()
    if not with_lm:
        with pytest.raises(DataError, match="without its language model"):
            PrefixDecoder.load(tmp_path / "d")


def test_half_precision_files_are_half_as_large_and_say_the_same(trained, tmp_path):
    sizes = []
    for dtype in ("float32", "float16"):
        trained.save(tmp_path / dtype, dtype=dtype)
        sizes.append((tmp_path / dtype / "prefix.safetensors").stat().st_size)
    assert sizes[1] < 0.55 * sizes[0]
    found = PrefixDecoder.load(tmp_path / "float16", device="cpu").generate(concepts(), top=1)
    assert [f[0].text for f in found] == [f[0].text for f in trained.generate(concepts(), top=1)]
    with pytest.raises(ConfigError, match="dtype"):
        trained.save(tmp_path / "x", dtype="int8")
    with pytest.raises(DataError, match="no prefix decoder"):
        PrefixDecoder.load(tmp_path)


def clipcap(tmp_path, kind="mlp", masks=True):
    """A checkpoint with the published names: 512 -> 3840 -> 7680 at a 64th, GPT-2 of 2 layers beside it."""
    prepare()
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=300, n_positions=96, n_embd=12, n_layer=2, n_head=2)
    lm = transformers.GPT2LMHeadModel(config).eval()
    if kind == "mlp":
        mapping = nn.Sequential(nn.Linear(8, 60), nn.Tanh(), nn.Linear(60, 120))
        state = {f"clip_project.model.{k}": v for k, v in mapping.state_dict().items()}
    else:
        mapping = TransformerMapping(8, 10, 12, clip_length=4, layers=2, heads=2)
        state = {f"clip_project.{k}": v for k, v in mapping.state_dict().items()}
    state |= {f"gpt.{k}": v for k, v in lm.state_dict().items()}
    if masks:
        for k in range(2):
            state[f"gpt.transformer.h.{k}.attn.bias"] = torch.ones(1, 1, 96, 96, dtype=torch.uint8)
            state[f"gpt.transformer.h.{k}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, tmp_path / "coco_weights.pt")
    return state, mapping.eval(), lm


def test_published_clipcap_layout(tmp_path):
    state, mapping, lm = clipcap(tmp_path)
    assert {k for k in state if k.startswith("clip_project")} == {
        f"clip_project.model.{k}.{p}" for k in (0, 2) for p in ("weight", "bias")
    }
    tokenizer = make_tokenizer(TEXTS, 290)
    decoder = PrefixDecoder.load_clipcap(
        tmp_path / "coco_weights.pt", tokenizer, heads=2, prefix_length=10, device="cpu"
    )
    assert (decoder.embedding_dim, decoder.mapping.prefix_length, decoder.normalise) == (8, 10, False)
    assert decoder.stop == tokenizer.get_vocab()["."]
    assert decoder.search == SearchSettings(beams=5, max_length=67, temperature=1.0, length_penalty=1.0)
    x = torch.randn(4, 8)
    with torch.no_grad():
        prefix = mapping(x).view(4, 10, 12)
        assert torch.equal(decoder.prefixes(x.numpy()), prefix)
        assert torch.allclose(decoder.lm(inputs_embeds=prefix).logits, lm(inputs_embeds=prefix).logits, atol=1e-6)
    for (best, *_), row in zip(decoder.generate(x.numpy(), top=1), x.numpy(), strict=True):
        assert best.tokens == released(decoder, row)[0]


def test_captions_stand_in_the_released_order_cut_ones_among_them(tmp_path):
    clipcap(tmp_path)
    decoder = PrefixDecoder.load_clipcap(
        tmp_path / "coco_weights.pt", make_tokenizer(TEXTS, 290), heads=2, device="cpu", max_length=4
    )
    # A stop that is often among the beams.
    with torch.no_grad():
        decoder.lm.lm_head.weight[decoder.stop] *= 3
    x = 3 * np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    cut_first = 0
    for found, row in zip(decoder.generate(x, top=5), x, strict=True):
        # Equal texts count once here, and empty ones not at all.
        written = [decoder.text(y) for y, _ in released_order(decoder, row, longest=4)]
        texts = dict.fromkeys(text.rstrip(". ") for text in written if text)
        assert [c.text.rstrip(". ") for c in found] == list(texts)
        cut_first += any(not a.finished and b.finished for a, b in itertools.pairwise(found))
    assert cut_first > 0


def test_a_checkpoint_that_would_run_code_is_refused_in_our_own_words(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    path = tmp_path / "evil.pt"
    for modern in (True, False):
        torch.save({"gpt.x": Evil()}, path, _use_new_zipfile_serialization=modern)
        with pytest.raises(DataError, match=r"only running code could restore.*mkdir") as found:
            PrefixDecoder.load_clipcap(path, make_tokenizer(TEXTS, 290))
        assert "weights_only" not in str(found.value)
        assert found.value.__cause__ is None
        assert not (tmp_path / "ran").exists()
    path.write_text("<html>not found</html>")
    with pytest.raises(DataError, match="not a file that torch wrote"):
        PrefixDecoder.load_clipcap(path, make_tokenizer(TEXTS, 290))
    torch.save([1, 2], path)
    with pytest.raises(DataError, match="no tensors by name"):
        PrefixDecoder.load_clipcap(path, make_tokenizer(TEXTS, 290))
    with pytest.raises(DataError, match="does not exist"):
        PrefixDecoder.load_clipcap(tmp_path / "none.pt", make_tokenizer(TEXTS, 290))


def test_clipcap_with_a_transformer_and_what_is_refused(tmp_path):
    state, mapping, _ = clipcap(tmp_path, "transformer", masks=False)
    path, tokenizer = tmp_path / "coco_weights.pt", make_tokenizer(TEXTS, 290)
    decoder = PrefixDecoder.load_clipcap(path, tokenizer, heads=2, mapping_heads=2, device="cpu")
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.equal(decoder.prefixes(x.numpy()), mapping(x))
    with pytest.raises(DataError, match="prefix of 10"):
        PrefixDecoder.load_clipcap(path, tokenizer, heads=2, mapping_heads=2, prefix_length=40)
    for change, message in (
        (lambda s: s.pop("gpt.transformer.ln_f.weight"), "1 tensors are missing"),
        (lambda s: s.update({"gpt.adapter.weight": torch.zeros(2)}), "1 are not known"),
        (lambda s: [s.pop(k) for k in list(s) if k.startswith("clip")], "0 under clip_project"),
    ):
        changed = dict(state)
        change(changed)
        torch.save(changed, path)
        with pytest.raises(DataError, match=message):
            PrefixDecoder.load_clipcap(path, tokenizer, heads=2, mapping_heads=2)


def test_transformer_mapping_is_the_equations_written_out():
    torch.manual_seed(0)
    mapping = make_mapping("transformer", embedding_dim=5, prefix_length=3, width=8, clip_length=2, layers=2, heads=2)
    x = torch.randn(4, 5)
    h = torch.cat([mapping.linear(x).view(4, 2, 8), mapping.prefix_const.expand(4, 3, 8)], dim=1)
    for layer in mapping.transformer.layers:
        z, attn = layer.norm1(h), layer.attn
        q = attn.to_queries(z).reshape(4, 5, 2, 4)
        kv = attn.to_keys_values(z).reshape(4, 5, 2, 2, 4)
        weight = (torch.einsum("bnhd,bmhd->bnmh", q, kv[:, :, 0]) * 4**-0.5).softmax(dim=2)
        h = h + attn.project(torch.einsum("bnmh,bmhd->bnhd", weight, kv[:, :, 1]).reshape(4, 5, 8))
        h = h + layer.mlp.fc2(torch.relu(layer.mlp.fc1(layer.norm2(h))))
    assert torch.allclose(mapping(x), h[:, 2:], atol=1e-5)


OPTIONS = {"epochs": 4, "batch_size": 5, "lr": 0.01, "warmup": 3, "noise": 0.1, "progress": False, "seed": 3}


def weights(decoder):
    return [p.detach().clone() for part in (decoder.mapping, decoder.lm) for p in part.parameters()]


@pytest.mark.parametrize("train_lm", [True, False])
def test_a_killed_training_ends_with_the_bytes_of_one_that_was_not(tmp_path, monkeypatch, train_lm):
    def start():
        lm, tokenizer = make_language_model(TEXTS, width=16, layers=1, heads=2, vocabulary=330, dropout=0.1)
        return PrefixDecoder(lm, tokenizer, D, prefix_length=2, normalise=True, device="cpu")

    options = {**OPTIONS, "train_lm": train_lm, "schedule": "cosine"}
    whole = start()
    before = weights(whole)
    found = train_prefix(whole, concepts(3), TEXTS, **options)
    frozen = [torch.equal(a, b) for a, b in zip(before, weights(whole), strict=True)]
    assert any(frozen) is not train_lm
    assert all(p.requires_grad for p in whole.lm.parameters())
    one = _Run._one

    def killed(self):
        if self.step == 11:
            raise KeyboardInterrupt
        one(self)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_one", killed)
        with pytest.raises(KeyboardInterrupt):
            train_prefix(start(), concepts(3), TEXTS, checkpoint=tmp_path, checkpoint_every=3, **options)
    torch.rand(100)  # the global stream has moved on
    again = start()
    resumed = train_prefix(again, concepts(3), TEXTS, checkpoint=tmp_path, checkpoint_every=3, **options)
    assert resumed.losses.tolist() == found.losses.tolist()
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))
    # Another run in the same folder starts from its own beginning.
    other = train_prefix(start(), concepts(3), TEXTS, checkpoint=tmp_path, **{**options, "lr": 0.02})
    assert other.losses[0] == found.losses[0]
    assert other.losses.tolist() != found.losses.tolist()


def test_the_loss_is_that_of_one_caption_at_a_time():
    decoder = fresh()
    x = concepts(3, noise=0.2)
    total, count = 0.0, 0
    with torch.no_grad():
        for row, text in zip(x, TEXTS, strict=True):
            y = decoder.encode(text)
            prefix = decoder.prefixes(decoder.inputs(row[None]))
            for t in range(len(y)):
                seen = decoder.lm.get_input_embeddings()(torch.tensor([y[:t]], dtype=torch.int64))
                logits = decoder.lm(inputs_embeds=torch.cat([prefix, seen], dim=1)).logits[0, -1]
                total, count = total - float(logits.log_softmax(-1)[y[t]]), count + 1
    found = train_prefix(decoder, x, TEXTS, epochs=1, batch_size=18, lr=1e-9, warmup=0, progress=False)
    assert found.losses[0] == pytest.approx(total / count, rel=1e-5)


def test_trained_from_texts_alone_it_captions_images_across_the_gap():
    decoder = fresh(centre=True)
    texts = concepts(3, noise=0.05, seed=5, gap=-1.5)  # the text cone
    train_prefix(
        decoder, texts, TEXTS, source="text", noise=0.1, epochs=150, batch_size=18, lr=0.01, warmup=10, progress=False
    )
    projection, _ = voxels(decoder)
    best = decoder.decode(projection, top=1)["caption"].tolist()
    assert sum(name in text for name, text in zip(NAMES, best[:6], strict=True)) >= 5
    with pytest.raises(ConfigError, match="bank_direction"):
        decoder.decode(projection.drop_vars("bank_direction"))


def test_time_limits_end_a_training():
    found = train_prefix(fresh(), concepts(3), TEXTS, epochs=10_000, minutes=0.01, lr=0.01, warmup=0, progress=False)
    assert found.ended_by == "minutes"
    assert 0 < found.steps < 60_000


def test_what_is_wrong_is_said():
    decoder = fresh()
    x = concepts(3)
    with pytest.raises(DataError, match="18 embeddings and captions for 2"):
        train_prefix(decoder, x, TEXTS[:2])
    with pytest.raises(DataError, match="NaN"):
        train_prefix(decoder, np.full((18, D), np.nan), TEXTS)
    with pytest.raises(DataError, match="no tokens"):
        train_prefix(decoder, x[:1], [""])
    with pytest.raises(DataError, match="room for 61"):
        train_prefix(decoder, x[:1], ["a face " * 90])
    with pytest.raises(ConfigError, match="schedule"):
        train_prefix(decoder, x, TEXTS, schedule="step")
    with pytest.raises(DataError, match="not finite"):
        decoder.generate(np.full((1, D), np.nan))
    with pytest.raises(DataError, match=r"legal is \(n, 12\)"):
        decoder.generate(np.zeros((1, 3)))
    with pytest.raises(ConfigError, match="diversity_penalty"):
        decoder.with_options(diversity_penality=1.0)
    for options, message in (
        ({"stop": "face house"}, "tokens; legal"),
        ({"stop": 10**6}, "numbers under"),
        ({"mapping": "mpl"}, "mlp"),
        ({"centre": True, "normalise": False}, "normalise=True"),
        ({"source": "audio"}, "Legal: image, text"),
    ):
        with pytest.raises(ConfigError, match=message):
            fresh(**options)
