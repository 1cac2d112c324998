"""Whether a program works on this machine: it is run, not looked for by its name."""

from __future__ import annotations

import functools
import subprocess

import pytest
from patience import PATIENCE


@functools.cache
def complaint(*command: str) -> str | None:
    """Why this small use of a program fails, or None if it works."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return f"{command[0]}: {said[-1]:.200}"


def need(where: str, *commands: list[str], packages: str) -> None:
    """Skip the test, and say why, unless all of these programs work."""
    said = [text for command in commands if (text := complaint(*command))]
    if said:
        pytest.skip(f"{where}: {'; '.join(said)} (Debian: {packages})")
