"""Give every command and public entry malformed inputs, and sort what comes of it.

    python tests/robustness/malformed.py [--only files,settings,arrays,machines] [--show taken] [--place FOLDER]

Each case runs in a process of its own on a fresh copy of small valid inputs. What can come of it:

    refused   an error of the package's own kinds (of commands: one line on stderr and exit code 2)
    right     the input was taken, and the result is the one of the same input in its plain form
    taken     the input was taken, and nothing here knows what is right: to be looked at (--show taken)
    raw       a traceback, or an error that no `raise` of the package made
    wrong     the input was taken and the numbers are others than those of its plain form
    hang      no end within the seconds allowed
    crash     the process was ended by a signal

Exit code 1 where a case is wrong, hangs or crashes, or more than five are raw.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import linecache
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # run as a script: beside it
from scenarios import make_inputs, scenarios

MIRROR = Path(__file__).parents[3] / "shared" / "data"


@dataclass(frozen=True)
class Case:
    """``work`` is called in a folder of its own and returns True (right), False (wrong) or anything else (taken)."""

    group: str
    name: str
    work: Callable[[], Any]


def cli(*arguments: str) -> None:
    """The command as a user gives it; a traceback on stderr counts as raw."""
    from neuroenc.cli import main

    sys.argv = ["neuroenc", *arguments]
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            main()
    except SystemExit as stop:
        text = shown.getvalue()
        if stop.code in (0, None):
            return
        if "Traceback (most recent call last)" in text or "bug" in text:
            raise RuntimeError(f"raw: {text[-600:]}") from None
        # Warnings may stand before the error, which is the last line or, from the parser of arguments, a box.
        raise Refused(text.strip().splitlines()[-1] if text.strip() else f"exit {stop.code} without a word") from None


class Refused(Exception):
    """A command that ended with a clear error."""


# --------------------------------------------------------------------------------------------------------------- files


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: max(1, path.stat().st_size // 2)])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(len(content))
    for at in rng.integers(0, len(content), max(8, len(content) // 50)):
        content[at] ^= 0xFF
    path.write_bytes(content)


def _device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": lambda p: p.unlink(),
    "empty": lambda p: p.write_bytes(b""),
    "cut": _truncate,
    "flipped": _flip,
    "a folder": _folder,
    "a FIFO": _fifo,
    "a device": _device,
    "a loop": _loop,
    "bytes": lambda p: p.write_bytes(bytes(range(256)) * 4),
    "utf-16 text": lambda p: p.write_bytes("stimulus,caption\nä,ö\n".encode("utf-16")),
}
# Scenario, the file that it reads; what earlier scenarios wrote counts too.
READS = {
    "run": ["my.toml", "y.nc", "images/*0.png"],
    "compare": ["compare.toml", "maps.nc", "y.nc"],
    "bank": ["images/*0.png"],
    "pretrain": ["icl.toml", "features.nc", "one.nc"],
    "export": ["run-out/report/scores.nc"],
    "extend": ["icl-out/pretrain/anchored/model.json", "icl-out/pretrain/anchored/model.safetensors"],
    "evaluate": ["new.nc", "icl-out/finetune/anchored/model.safetensors"],
    "predict": ["icl-out/finetune/anchored/model.json", "new.nc"],
}


def files(place: Path) -> Iterator[Case]:
    known = scenarios(MIRROR)
    for name, patterns in READS.items():
        for pattern in patterns:
            for kind, damage in DAMAGE.items():

                def work(name: str = name, pattern: str = pattern, damage: Any = damage) -> None:
                    for earlier in known[name].before:
                        shutil.copytree(
                            place / "done" / earlier / known[earlier].out, known[earlier].out, dirs_exist_ok=True
                        )
                    found = sorted(Path().glob(pattern))
                    if not found:
                        raise RuntimeError(f"no {pattern}: the scenario is out of date")
                    damage(found[0])
                    cli(*known[name].arguments)

                yield Case("files", f"{name}: {pattern} is {kind}", work)
    yield from artefacts(place)


def artefacts(place: Path) -> Iterator[Case]:
    """What commands wrote, damaged, and opened by the functions that open it."""
    from neuroenc import data
    from neuroenc.captions import CaptionStudy
    from neuroenc.encoders import load_encoder
    from neuroenc.encoders.incontext import load_model
    from neuroenc.retrieval import load_bank

    done = place / "done"
    openers: list[tuple[str, Path, Callable[[Path], Any]]] = [
        ("load_encoder", done / "run" / "run-out" / "encoder", load_encoder),
        ("load_model", done / "pretrain" / "icl-out" / "pretrain" / "anchored", load_model),
        ("load_bank", done / "bank" / "bank-out", lambda p: (load_bank(p).verify(), load_bank(p).table())),
        ("CaptionStudy.load", done / "caption" / "caption-out" / "study", CaptionStudy.load),
        ("data.load", done / "run" / "run-out" / "report" / "scores.nc", lambda p: data.load(p).load()),
    ]
    for label, source, opener in openers:
        names = (
            [source.name]
            if source.is_file()
            else sorted(
                p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file() and "/." not in f"/{p}"
            )
        )
        for name in names[:6]:
            for kind in ("missing", "empty", "cut", "flipped", "a folder", "a device", "bytes"):

                def work(source: Path = source, name: str = name, kind: str = kind, opener: Any = opener) -> Any:
                    target = Path("artefact")
                    if source.is_file():
                        target.mkdir()
                        shutil.copy(source, target / name)
                        DAMAGE[kind](target / name)
                        return opener(target / name)
                    shutil.copytree(source, target)
                    DAMAGE[kind](target / name)
                    return opener(target)

                yield Case("files", f"{label}: {name} is {kind}", work)


# ------------------------------------------------------------------------------------------------------------ settings

VALUES = ["-1", "0", "nan", "inf", "1e400", '"x"', "[]", "true", "99999999999999999999", "1979-05-27", '""', "{}"]
SETTINGS = {
    "run": [
        "seed",
        "evaluation.n_splits",
        "evaluation.permutations",
        "evaluation.q",
        "evaluation.scheme",
        "encoder.cv",
        "encoder.alphas",
        "encoder.max_memory",
        "encoder.device",
        "encoder.scoring",
        "features.world.model",
        "features.world.layer",
        "features.world.pooling",
        "data.zscore",
        "data.images",
        "title",
    ],
    "compare": [
        "seed",
        "compare.cv",
        "compare.validation",
        "compare.n_candidates",
        "compare.n_bootstraps",
        "compare.q",
        "compare.cells",
        "compute.threads",
        "compare.training.max_epochs",
        "compare.training.lr",
        "compare.readouts.linear",
        "features.right.file",
    ],
    "caption": [
        "seed",
        "captions.stability.folds",
        "evaluation.permutations",
        "evaluation.share",
        "captions.gate.q",
        "captions.decoder.beams",
        "captions.decoder.top",
        "captions.decoder.temperature",
        "captions.projection.temperature",
        "captions.decoder.max_length",
        "data.options.n_voxels",
        "captions.grounding.images",
    ],
    "pretrain": [
        "seed",
        "incontext.model.dim",
        "incontext.model.heads",
        "incontext.model.depth",
        "incontext.model.clusters",
        "incontext.pretrain.support",
        "incontext.pretrain.query",
        "incontext.pretrain.voxels",
        "incontext.pretrain.max_steps",
        "incontext.pretrain.lr",
        "incontext.pretrain.seed",
    ],
    "predict": [
        "incontext.predict.n_support",
        "incontext.predict.model",
        "incontext.predict.device",
        "incontext.predict.response_scale",
    ],
}


def settings(place: Path) -> Iterator[Case]:
    known = scenarios(MIRROR)
    for n, (name, keys) in enumerate(SETTINGS.items()):
        for k, key in enumerate(keys):
            # Every value meets every command, not every key: four values a key, in turn.
            for step in range(4):
                value = VALUES[(3 * k + 5 * step + n) % len(VALUES)]

                def work(name: str = name, key: str = key, value: str = value) -> None:
                    for earlier in known[name].before:
                        shutil.copytree(
                            place / "done" / earlier / known[earlier].out, known[earlier].out, dirs_exist_ok=True
                        )
                    cli(*known[name].arguments, "--set", f"{key}={value}")

                yield Case("settings", f"{name}: {key}={value}", work)
    for text in ("", "=", "a", "a=", "data=1", "data.x.y=1", "seed.a=1", "tittle=x", "évaluation.q=1", "\0=1"):
        yield Case("settings", f"run: --set {text!r}", lambda text=text: cli("run", "my.toml", "--set", text))
    bad = {
        "a number twice": "seed = 1\nseed = 2\n",
        "no TOML": "[data\n",
        "nothing": "",
        "a list of tables": "[[data]]\n",
        "an unknown table": "[dada]\nx = 1\n",
        "a mark": "\ufeffseed = 1\n",
        "nesting": "a = " + "[" * 2000,
    }
    for kind, text in bad.items():
        for command in ("run", "compare", "caption"):

            def work(command: str = command, text: str = text) -> None:
                Path("bad.toml").write_text(text, encoding="utf-8")
                cli(command, "bad.toml")

            yield Case("settings", f"{command}: a config of {kind}", work)


# -------------------------------------------------------------------------------------------------------------- arrays


def _kinds() -> dict[str, Callable[[np.ndarray], Any]]:
    """Forms of an array that holds small whole numbers: all of these hold them exactly."""
    import scipy.sparse
    import torch

    return {
        "a list": lambda a: a.tolist(),
        "int8": lambda a: a.astype("i1"),
        "float16": lambda a: a.astype("f2"),
        "big-endian": lambda a: a.astype(">f8"),
        "Fortran order": lambda a: np.asfortranarray(a),
        "a view": lambda a: np.repeat(a, 2, axis=0)[::2],
        "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
        "object": lambda a: a.astype(object),
        "text": lambda a: a.astype(str),
        "complex": lambda a: a.astype(complex),
        "sparse": lambda a: scipy.sparse.csr_matrix(a),
        "masked": lambda a: np.ma.masked_array(a, np.zeros(a.shape, bool)),
        "bfloat16": lambda a: torch.tensor(a).bfloat16(),
        "with gradient": lambda a: torch.tensor(a).requires_grad_(),
        "a frame": lambda a: __import__("pandas").DataFrame(a),
        "a matrix": lambda a: np.asmatrix(a),
    }


def _broken() -> dict[str, Callable[[np.ndarray], Any]]:
    """Arrays that are no responses or features at all."""
    return {
        "none": lambda a: None,
        "a number": lambda a: 1.0,
        "empty": lambda a: a[:0],
        "no columns": lambda a: a[:, :0],
        "one row": lambda a: a[:1],
        "three axes": lambda a: a[None],
        "ragged": lambda a: [[1.0, 2.0], [3.0]],
        "infinite": lambda a: np.where(a == a.max(), np.inf, a),
        "all NaN": lambda a: np.full(a.shape, np.nan),
        "fewer rows": lambda a: a[:-3],
        "dates": lambda a: a.astype("M8[s]"),
        "a generator": lambda a: iter(a),
    }


def _pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    x = rng.integers(-4, 5, (60, 6)).astype(float)
    y = x @ rng.integers(-2, 3, (6, 3)) + rng.integers(-5, 6, (60, 3))
    return x, y


def _entries() -> dict[str, Callable[[Any, Any], Any]]:
    """Functions of features (n, 6) and responses (n, 3) whose result is an array."""
    from neuroenc import data, stats
    from neuroenc.encoders import BandedRidgeEncoder, ReadoutEncoder, RidgeEncoder
    from neuroenc.encoders.incontext import EmpiricalBayesRidge

    alphas = np.logspace(-1, 3, 5)
    ids = np.repeat([f"s{k}" for k in range(30)], 2)

    def pairs(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        # Scores take two arrays of one shape: the responses, and three of the features.
        return lambda x, y: function(y, x[:, :3] if isinstance(x, np.ndarray) and x.ndim == 2 else x)

    def readout(x: Any, y: Any) -> Any:
        return ReadoutEncoder("linear", max_epochs=1, progress=False).fit(x, y).predict(_pair()[0])

    return {
        "RidgeEncoder": lambda x, y: RidgeEncoder(alphas).fit(x, y).predict(_pair()[0]),
        "RidgeEncoder.predict": lambda x, y: RidgeEncoder(alphas).fit(*_pair()).predict(x),
        "RidgeEncoder.score_voxels": lambda x, y: RidgeEncoder(alphas).fit(*_pair()).score_voxels(x, y),
        "BandedRidgeEncoder": lambda x, y: BandedRidgeEncoder(n_candidates=2).fit({"a": x}, y).coef_,
        "EmpiricalBayesRidge": lambda x, y: EmpiricalBayesRidge().fit(x, y).coef_,
        "ReadoutEncoder": readout,
        "make_responses": lambda x, y: data.make_responses(y, stimulus=ids),
        "make_features": lambda x, y: data.make_features(x, stimulus=[f"s{k}" for k in range(60)]),
        "stats.score": pairs(stats.score),
        "stats.r2_score": pairs(stats.r2_score),
        "stats.explained_variance": pairs(stats.explained_variance),
        "stats.Resampler": pairs(lambda y, p: stats.Resampler(40).score(y, p).high),
        "stats.permutation_test": pairs(lambda y, p: stats.permutation_test(y, p, n_permutations=40).p),
        "stats.ncsnr": lambda x, y: stats.ncsnr(y, ids),
        "stats.rdm": lambda x, y: stats.rdm(y, "correlation"),
        "stats.fdr": lambda x, y: stats.fdr(y),
    }


def arrays(place: Path) -> Iterator[Case]:
    x, y = _pair()
    for label, function in _entries().items():
        takes_pairs = label.startswith("stats.") and label not in ("stats.ncsnr", "stats.rdm", "stats.fdr")
        ours = [
            w
            for w in ("features", "responses")
            if not (w == "features" and label in ("make_responses", "stats.ncsnr", "stats.rdm", "stats.fdr"))
            and not (w == "responses" and label in ("make_features", "RidgeEncoder.predict"))
        ]
        for which in ours:
            for kinds, plain in ((_kinds(), True), (_broken(), False)):
                for kind, turn in kinds.items():

                    def work(
                        function: Any = function,
                        which: str = which,
                        turn: Any = turn,
                        plain: bool = plain,
                        pair: bool = takes_pairs,
                        label: str = label,
                    ) -> Any:
                        first, second = (x[:, :3] if pair else x), y
                        if label == "stats.fdr":  # p-values: zeros and ones
                            second = (np.abs(y) > 4).astype(float)
                        given = (turn(first), second) if which == "features" else (first, turn(second))
                        found = function(*given)
                        if not plain:
                            return None
                        return bool(np.allclose(_numbers(found), _numbers(function(first, second)), atol=1e-3))

                    yield Case("arrays", f"{label}: {which} are {kind}", work)


def _numbers(found: Any) -> np.ndarray:
    if hasattr(found, "detach"):
        found = found.detach().float().numpy()
    return np.asarray(found, dtype=float)


# ------------------------------------------------------------------------------------------------------------ machines


def machines(place: Path) -> Iterator[Case]:
    """Full disks, read-only folders, files in the way, and two processes on one folder."""
    known = scenarios(MIRROR)
    root = sys.platform == "linux" and os.geteuid() == 0

    def started(name: str) -> None:
        for earlier in known[name].before:
            shutil.copytree(place / "done" / earlier / known[earlier].out, known[earlier].out, dirs_exist_ok=True)

    for name, scenario in known.items():
        start = scenario.out if name in ("extend", "finetune", "evaluate", "predict") else ""

        def in_the_way(name: str = name, scenario: Any = scenario) -> None:
            started(name)
            shutil.rmtree(scenario.out, ignore_errors=True)
            Path(scenario.out).write_text("")
            cli(*scenario.arguments)

        if not start:
            yield Case("machines", f"{name}: the output folder is a file", in_the_way)

        def together(name: str = name, scenario: Any = scenario) -> bool:
            started(name)
            line = [sys.executable, "-c", "from neuroenc.cli import main; main()", *scenario.arguments]
            two = [subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(2)]
            ends = [(p.communicate()[1], p.returncode) for p in two]
            if any(code for _, code in ends):
                raise RuntimeError(f"raw: {[text[-300:] for text, _ in ends]}")
            from kills import differences, tree

            return not differences(tree(Path(scenario.out)), tree(place / "done" / name / scenario.out))

        yield Case("machines", f"{name}: two processes at once", together)
        if not root:
            continue

        def on_a_small_disk(name: str = name, scenario: Any = scenario, size: str = "40k", options: str = "") -> None:
            started(name)
            small = Path("small")
            small.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], check=True)
            try:
                if options:
                    subprocess.run(["mount", "-o", f"remount,{options}", str(small)], check=True)
                cli(*[f"small/{a}" if a == scenario.out else a for a in scenario.arguments])
            finally:
                subprocess.run(["umount", "-l", str(small)], check=False)

        def on_a_read_only_disk(work: Any = on_a_small_disk) -> None:
            work(options="ro")

        def with_a_small_cache(name: str = name, scenario: Any = scenario) -> Any:
            started(name)
            cache = Path("cache")
            cache.mkdir(exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(cache)], check=True)
            try:
                cli(*scenario.arguments)
            finally:
                subprocess.run(["umount", "-l", str(cache)], check=False)

        if not start:
            yield Case("machines", f"{name}: the disk is full", on_a_small_disk)
            yield Case("machines", f"{name}: the disk is read-only", on_a_read_only_disk)
        yield Case("machines", f"{name}: the cache's disk is full", with_a_small_cache)


# ---------------------------------------------------------------------------------------------------------------- runs


def _deliberate(error: BaseException) -> bool:
    """Whether a `raise` statement of the package (or of its checks of estimators) made the error."""
    from neuroenc._core.errors import NeuroencError

    if isinstance(error, (NeuroencError, Refused)):
        return True
    frame = traceback.extract_tb(error.__traceback__)[-1]
    line = linecache.getline(frame.filename, frame.lineno or 0).strip()
    ours = f"{os.sep}neuroenc{os.sep}" in frame.filename and line.startswith("raise")
    checks = "sklearn" in frame.filename and "validation" in frame.filename
    return isinstance(error, (ValueError, TypeError)) and (ours or checks)


def _child(case: Case, place: Path, pipe: Any) -> None:
    folder = Path(tempfile.mkdtemp(dir=place))
    shutil.copytree(place / "inputs", folder, dirs_exist_ok=True)
    os.chdir(folder)
    os.environ["NEUROENC_CACHE"] = str(folder / "cache")
    warnings.simplefilter("ignore")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        try:
            found = case.work()
            outcome = ("right" if found else "wrong", "") if isinstance(found, bool) else ("taken", "")
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
            outcome = ("refused" if _deliberate(error) else "raw", text)
    pipe.send(outcome)
    pipe.close()
    os.chdir(place)
    shutil.rmtree(folder, ignore_errors=True)


def outcome_of(case: Case, place: Path, seconds: float) -> tuple[str, str]:
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(case, place, send))
    process.start()
    send.close()
    try:
        if receive.poll(seconds):
            return receive.recv()
    except EOFError:
        process.join()
        return "crash", f"ended by signal {-(process.exitcode or 0)}"
    finally:
        process.kill()
        process.join()
    return "hang", f"no end within {seconds:.0f} s"


GROUPS = {"files": files, "settings": settings, "arrays": arrays, "machines": machines}


def prepare(place: Path) -> None:
    """Valid inputs, and what every scenario writes from them."""
    if not (place / "inputs").is_dir():
        (place / "inputs").mkdir(parents=True)
        make_inputs(place / "inputs")
    known = scenarios(MIRROR)
    for name, scenario in known.items():
        folder = place / "done" / name
        if folder.is_dir():
            continue
        shutil.copytree(place / "inputs", folder)
        for earlier in scenario.before:
            out = known[earlier].out
            shutil.copytree(place / "done" / earlier / out, folder / out, dirs_exist_ok=True)
        line = [sys.executable, "-c", "from neuroenc.cli import main; main()", *scenario.arguments]
        environment = {**os.environ, "NEUROENC_CACHE": str(folder / "cache")}
        subprocess.run(line, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="groups: " + ", ".join(GROUPS))
    parser.add_argument("--match", default="", help="only cases whose name holds this text")
    parser.add_argument("--seconds", type=float, default=180, help="after which a case hangs")
    parser.add_argument("--show", default="raw,wrong,hang,crash", help="outcomes to list")
    parser.add_argument("--place", type=Path, help="a folder to keep and use again")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        place = (args.place or Path(own)).resolve()
        prepare(place)
        # Imported before the cases are forked: each then starts at once.
        import torch

        import neuroenc.cli
        import neuroenc.study  # noqa: F401
        from neuroenc.encoders import ReadoutEncoder  # noqa: F401

        torch.set_num_threads(1)
        counts: Counter[str] = Counter()
        start = time.perf_counter()
        for group in args.only.split(",") if args.only else GROUPS:
            for case in GROUPS[group](place):
                if args.match not in case.name:
                    continue
                kind, text = outcome_of(case, place, args.seconds)
                counts[kind] += 1
                if kind in args.show.split(","):
                    print(f"{kind:<8} {case.name}\n         {' '.join(text.split())[:400]}", flush=True)
    total = sum(counts.values())
    sums = ", ".join(f"{n} {k}" for k, n in counts.items())
    print(f"\n{total} inputs in {time.perf_counter() - start:.0f} s: {sums}")
    raise SystemExit(1 if counts["wrong"] + counts["hang"] + counts["crash"] or counts["raw"] > 5 else 0)


if __name__ == "__main__":
    main()
