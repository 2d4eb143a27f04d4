"""Decoding of many voxels beside the released loop, and the phrase index over a large corpus.

    python tests/benchmarks/bench_captions.py decode [--voxels 1000] [--peer-voxels 20] [--beams 5] [--threads 1]
    python tests/benchmarks/bench_captions.py index [--captions 1000000]

The peer of ``decode`` searches as the released script does: one voxel at a time, every step runs the language model
over the whole prefix and text again, for all beams, and nothing is kept between steps. Model, beams, stop token and
scores are the same, and so are the captions, which is checked. It is run on some voxels between two halves of ours.
"""

from __future__ import annotations

import argparse
import resource
import time


def released_beam_search(decoder, prefix, beams, length):
    """Best caption (tokens) of one prefix (1, prefix_length, width), nothing cached."""
    import torch

    lm, stop = decoder.lm, decoder.stop
    embed = lm.get_input_embeddings()
    text, done = None, torch.zeros(beams, dtype=torch.bool)
    lengths, total = torch.ones(beams), torch.zeros(beams)
    inputs = prefix
    for _ in range(length):
        logp = lm(inputs_embeds=inputs, use_cache=False).logits[:, -1].log_softmax(-1)
        if text is None:
            total, token = logp[0].topk(beams)
            text, inputs = token[:, None], prefix.expand(beams, -1, -1)
        else:
            # A finished beam stays as it is: it goes on by one thing only, at no cost.
            logp[done] = -torch.inf
            logp[done, 0] = 0.0
            lengths[~done] += 1
            score = (total[:, None] + logp) / lengths[:, None]
            best, flat = score.view(-1).topk(beams)
            source, token = flat // logp.shape[1], flat % logp.shape[1]
            lengths, done, inputs = lengths[source], done[source], inputs[source]
            total = best * lengths
            text = torch.cat([text[source], token[:, None]], dim=1)
        inputs = torch.cat([inputs, embed(text[:, -1:])], dim=1)
        done = done | (text[:, -1] == stop)
        if done.all():
            break
    best = int((total / lengths).argmax())
    tokens = text[best].tolist()[: int(lengths[best])]
    return tokens


def decode(voxels, peer_voxels, beams, threads):
    """Voxels a second."""
    import numpy as np
    import torch

    from neuroenc.captions import load_captioner
    from neuroenc.data.simulate import simulate_world
    from neuroenc.embedding import ImageEmbedder

    torch.set_num_threads(threads)
    decoder = load_captioner("world", device="cpu", beams=beams, max_length=40)
    x = ImageEmbedder("world", progress=False).embed(simulate_world(min(voxels, 500), seed=90_001)).values
    x = np.tile(x, (-(-voxels // len(x)), 1))[:voxels]
    x = x + 0.05 * np.random.default_rng(0).standard_normal(x.shape) * np.linalg.norm(x, axis=1).mean() / np.sqrt(128)
    decoder.generate(x[:8])

    def timed(work):
        clocks = time.perf_counter, time.process_time
        start = [c() for c in clocks]
        found = work()
        return found, np.array([c() - s for c, s in zip(clocks, start)])

    def peer(part):
        with torch.inference_mode():
            return [
                released_beam_search(decoder, decoder.prefixes(decoder.inputs(x[v : v + 1])), beams, 40) for v in part
            ]

    # In pieces, by turns, so that both meet the same noise.
    ours, theirs, times = [], [], []
    for piece in np.array_split(np.arange(voxels), 4):
        found, mine = timed(lambda piece=piece: decoder.generate(x[piece]))
        few = piece[: peer_voxels // 4]
        loop, other = timed(lambda few=few: peer(few))
        ours.extend(found[: len(few)])
        theirs.extend(loop)
        times.append((mine / len(piece), other / len(few)))
    mine, other = np.median(times, axis=0)
    same = np.mean([a[0].text == decoder.text(b) for a, b in zip(ours, theirs)])
    ratios = ", ".join(f"{b[1] / a[1]:.1f}" for a, b in times)
    print(f"{'':24s} voxels/s   per second of processor time")
    print(f"{'released loop':24s} {1 / other[0]:8.1f}   {1 / other[1]:8.1f}   ({len(theirs)} voxels)")
    print(f"{'batched, cached':24s} {1 / mine[0]:8.1f}   {1 / mine[1]:8.1f}   ({voxels} voxels)")
    print(f"same captions {same:.0%}")
    print(f"ratio {other[0] / mine[0]:.1f}; of processor time {other[1] / mine[1]:.1f} ({ratios})")


def index(n):
    """Build time, size and speed of the phrase index."""
    import numpy as np

    from neuroenc.captions import load_captioner
    from neuroenc.data.simulate import simulate_world
    from neuroenc.retrieval import NGramIndex

    decoder = load_captioner("world", device="cpu")
    texts = [c for several in simulate_world(2_000, seed=90_002).captions for c in several]
    different = list(dict.fromkeys(texts))
    rows = [decoder.encode(t) for t in different]
    rng = np.random.default_rng(0)
    # Corpora of a million human captions are not at hand: sentences of the world, joined by twos at random.
    first, second = rng.integers(0, len(rows), (2, n))
    corpus = [rows[a] + rows[b] for a, b in zip(first.tolist(), second.tolist())]
    characters = sum(len(different[a]) + len(different[b]) for a, b in zip(first.tolist(), second.tolist()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = NGramIndex(corpus)
    built = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    size = sum(v.nbytes for v in vars(found).values() if isinstance(v, np.ndarray))
    phrases = []
    for k in rng.integers(0, n, 2_000).tolist():
        a = int(rng.integers(0, len(corpus[k]) - 3))
        phrases.append(corpus[k][a : a + int(rng.integers(2, 4))])
    start = time.perf_counter()
    counts = [found.count(p) for p in phrases]
    counted = len(phrases) / (time.perf_counter() - start)
    start = time.perf_counter()
    for p in phrases:
        found.successors(p)
    followed = len(phrases) / (time.perf_counter() - start)
    assert min(counts) >= 1
    print(f"{n:,} captions, {characters / 1e6:.0f} M characters, {sum(map(len, corpus)) / 1e6:.1f} M tokens")
    print(f"build {built:.1f} s, peak {peak / 1e6:.2f} GB above what was there")
    print(f"index {size / 1e6:.0f} MB: {size / characters:.2f} bytes a character")
    print(f"{counted:,.0f} phrases counted a second, next tokens of {followed:,.0f} phrases a second")


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("decode")
    one.add_argument("--voxels", type=int, default=1000)
    one.add_argument("--peer-voxels", type=int, default=40)
    one.add_argument("--beams", type=int, default=5)
    one.add_argument("--threads", type=int, default=1)
    two = commands.add_parser("index")
    two.add_argument("--captions", type=int, default=1_000_000)
    found = parser.parse_args()
    if found.command == "decode":
        decode(found.voxels, found.peer_voxels, found.beams, found.threads)
    else:
        index(found.captions)


if __name__ == "__main__":
    main()
