"""The scripts that trained the shipped weights start from a checkout."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.parametrize("script", sorted(TOOLS.glob("train_*.py")), ids=lambda p: p.stem)
def test_scripts_say_their_options(script):
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--out" in done.stdout
