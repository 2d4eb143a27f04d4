"""Public names and their signatures as they were agreed on: a change of one is a change of signatures.txt, to be seen.

``python tests/test_signatures.py`` writes the file anew.
"""

import difflib
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import neuroenc

KEPT = Path(__file__).parent / "signatures.txt"


def rooms():
    """Modules whose public names are those of their stubs."""
    yield neuroenc
    for found in pkgutil.walk_packages(neuroenc.__path__, "neuroenc."):
        if found.ispkg and not any(part.startswith("_") for part in found.name.split(".")):
            module = importlib.import_module(found.name)
            if Path(module.__file__).with_suffix(".pyi").exists():
                yield module


def signature(thing):
    """Names and defaults of parameters, without annotations, which type checkers look after."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return ""
    # Sets have no order, and objects no stable text.
    shown = [str(p.replace(annotation=p.empty)) for p in parameters]
    return f"({', '.join(re.sub(r'=(frozenset.*|<.* at 0x.*)', '=...', s, flags=re.DOTALL) for s in shown)})"


def lines():
    """``room.name(parameters)``; methods of classes indented below them."""
    found = []
    for room in rooms():
        for name in sorted(n for n in dir(room) if not n.startswith("_")):
            thing = getattr(room, name)
            if inspect.ismodule(thing):
                continue
            known = callable(thing) and type(thing).__module__ != "typing"
            found.append(f"{room.__name__}.{name}{signature(thing) if known else ''}")
            if inspect.isclass(thing) and thing.__module__.startswith("neuroenc"):
                own = {n: m for n, m in vars(thing).items() if not n.startswith(("_", "set_")) and inspect.isroutine(m)}
                found += [f"  .{n}{signature(getattr(thing, n))}" for n in sorted(own)]
    return found


def test_public_names_and_signatures_are_those_agreed_on():
    found = list(difflib.unified_diff(KEPT.read_text().splitlines(), lines(), "agreed on", "found", n=0, lineterm=""))
    assert not found, "\n".join(["python tests/test_signatures.py writes what follows; is it meant?", *found])


if __name__ == "__main__":
    KEPT.write_text("\n".join(lines()) + "\n")
