"""How to run a script of this folder."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def python(script, *args, timeout=600, check=True):
    """Run a script of this folder in a fresh interpreter; its result."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / script), *map(str, args)],
        capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done
