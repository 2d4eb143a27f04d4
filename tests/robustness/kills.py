"""Kill commands at random moments and at renames, run them again, and compare every file.

    python tests/robustness/kills.py --random 50 --renames 20 [--only run,compare] [--seed 0] [--mirror FOLDER]

Prints a table: command, seconds of the uninterrupted run, kills, and the files that differ from an uninterrupted run's
(byte for byte; of JSON, of CSV and of the records of safetensors files, all but fields named ``seconds`` or
``seconds_...``). At each chosen rename the command is killed twice: before it, and behind it. Downloads come from a
server on this machine. Exit code 1 where one differs.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # run as a script: beside it
from scenarios import DOWNLOAD, Scenario, make_inputs, scenarios, server

HERE = Path(__file__).parent


def command(arguments: list[str], mode: str = "", record: str = "-") -> list[str]:
    """The command line; with ``mode``, watched (see killable.py)."""
    if mode:
        return [sys.executable, str(HERE / "killable.py"), mode, record, "--", *arguments]
    return [sys.executable, "-c", "from neuroenc.cli import main; main()", *arguments]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "NEUROENC_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}


def is_time(name: str) -> bool:
    return name == "seconds" or name.startswith("seconds_")


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if not is_time(k)}
    return [without_seconds(v) for v in value] if isinstance(value, list) else value


def columns(text: str) -> list[list[str]]:
    """Cells of a table, without columns of times."""
    rows = list(csv.reader(io.StringIO(text, newline="")))
    kept = [k for k, name in enumerate(rows[0]) if not is_time(name)] if rows else []
    return [[row[k] for k in kept if k < len(row)] for row in rows]


def tensors(raw: bytes) -> Any:
    """Header and values of a safetensors file; a record with times has a hash of its own, which goes with them."""
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    notes = header.pop("__metadata__", {})
    if "record" in notes:
        record = json.loads(notes["record"])
        notes["record"] = without_seconds(record)
        if notes["record"] != record:
            notes.pop("seal", None)
    return notes, header, raw[end:]


def tree(folder: Path) -> dict[str, Any]:
    """Content of every file below ``folder``, hidden ones too."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[name + "/"] = None
        elif path.suffix == ".json":
            found[name] = without_seconds(json.loads(path.read_text()))
            if path.name == "_result.json":
                # A seal counts the seconds of the records that it seals; they are compared by themselves.
                sealed = {k: v for k, v in found[name].get("files", {}).items() if not k.endswith(".json")}
                found[name] = {**found[name], "files": sealed, "seal": None}
        elif path.suffix == ".csv" and any(map(is_time, path.read_text().partition("\n")[0].split(","))):
            found[name] = columns(path.read_text())
        elif path.suffix == ".safetensors":
            found[name] = tensors(path.read_bytes())
        else:
            found[name] = path.read_bytes()
    return found


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names that only one tree has, or that differ."""
    return sorted(n for n in a.keys() | b.keys() if n not in a or n not in b or a[n] != b[n])


def finish(arguments: list[str], folder: Path) -> str:
    """Run to the end; the text of an error, or nothing."""
    done = subprocess.run(command(arguments), cwd=folder, env=environment(folder), capture_output=True, text=True)
    return "" if done.returncode == 0 else f"exit {done.returncode}: {done.stderr[-400:]}"


def one_kill(
    scenario: Scenario, base: Path, expected: dict[str, Any], kill: str, after: float
) -> tuple[bool, list[str]]:
    """Whether the kill came before the end, and what differs after the same command was given again."""
    folder = base.parent / "work"  # where the uninterrupted run was: some results name the model's folder
    shutil.copytree(base, folder)
    try:
        process = subprocess.Popen(
            command(scenario.arguments, kill),
            cwd=folder,
            env=environment(folder),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        error = finish(scenario.arguments, folder)
        if error:
            return process.returncode != 0, [error]
        return process.returncode != 0, differences(tree(folder / scenario.out), expected)
    finally:
        shutil.rmtree(folder)


def prepare(name: str, known: dict[str, Scenario], place: Path, served: str) -> Path:
    """A folder in which the scenario can start."""
    base = place / f"{name}-base"
    if known[name].before and (done := place / f"{known[name].before[-1]}-whole").is_dir():
        shutil.copytree(done, base)
        return base
    base.mkdir()
    make_inputs(base, served)
    for earlier in known[name].before:
        error = finish(known[earlier].arguments, base)
        if error:
            raise SystemExit(f"{earlier}, before {name}: {error}")
    return base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=50, help="kills at random moments, over all commands")
    parser.add_argument("--renames", type=int, default=12, help="renames of each command at which it is killed")
    parser.add_argument("--only", default="", help="names of commands, comma between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mirror", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    args = parser.parse_args()
    known = scenarios(args.mirror.resolve()) | {"download": DOWNLOAD}
    names = args.only.split(",") if args.only else list(known)
    rng, wrong = np.random.default_rng(args.seed), 0
    share = {n: args.random // len(names) + (k < args.random % len(names)) for k, n in enumerate(names)}
    with tempfile.TemporaryDirectory() as place, server() as served:
        for name in names:
            base, scenario = prepare(name, known, Path(place), served), known[name]
            whole = Path(place) / "work"
            shutil.copytree(base, whole)
            start, count = time.perf_counter(), Path(place) / "count"
            watched = command(scenario.arguments, "COUNT", str(count))
            done = subprocess.run(watched, cwd=whole, env=environment(whole), capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name}: {done.stderr[-800:]}")
            seconds, expected, renames = time.perf_counter() - start, tree(whole / scenario.out), int(count.read_text())
            whole.rename(Path(place) / f"{name}-whole")
            chosen = np.unique(np.linspace(1, renames, min(renames, args.renames)).round().astype(int))
            kills = [("", float(t)) for t in rng.uniform(0, seconds, share[name])]
            kills += [(f"{k}{side}", 600.0) for k in chosen for side in ("", "+")]
            early, bad = 0, []
            for kill, after in kills:
                killed, found = one_kill(scenario, base, expected, kill, after)
                early += killed
                if found:
                    bad.append(f"    {f'at rename {kill}' if kill else f'after {after:.2f} s'}: {found[:4]}")
                    print(bad[-1], file=sys.stderr, flush=True)
            wrong += len(bad)
            print(
                f"{name:<9} {seconds:6.1f} s, {renames:3d} renames, {len(kills):3d} kills ({early} before the end): "
                f"{len(bad)} with other files",
                *bad,
                sep="\n",
                flush=True,
            )
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
