"""Programs that are built once: what builds them is a script, and writes down how it was called."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    """A script that can be started."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def calls(environ: Mapping[str, str]) -> list[str]:
    """What the builder has written down to CALLS."""
    path = Path(environ["CALLS"])
    return path.read_text().splitlines() if path.exists() else []


def asked_at_once(code: str, environ: Mapping[str, str], gate: Path) -> list[str]:
    """What two processes print that run `code` at the same time; a builder that reads GATE waits until both may have asked."""
    os.mkfifo(gate)
    asking = {**environ, "GATE": str(gate), "PYTHONPATH": os.pathsep.join(sys.path)}
    asked = [
        subprocess.Popen([sys.executable, "-c", code], env=asking, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(2)
    ]
    try:
        opener = threading.Thread(target=gate.write_text, args=("go on\n",), daemon=True)  # returns once a build has begun
        opener.start()
        opener.join(60)
        return [process.communicate(timeout=60)[0].strip() for process in asked]
    finally:
        for process in asked:
            process.kill()
            process.wait()
