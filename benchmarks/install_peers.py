"""Install the peers, each into a venv of its own below benchmarks/.venvs.

    python benchmarks/install_peers.py [PEER…]

Peers are installed one after the other, at low priority. If one cannot be installed, the reason is
noted, so that a run can show it. A peer that pulled torch in is removed again: its venv would be
larger than all the others together.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.peers import PEERS, VENVS, Peer

PATIENCE_S = 1200.0
# How much of pip's last message is kept as the reason. The error stands at its end.
REASON_BYTES = 300


def install(peer: Peer) -> dict[str, object]:
    """Make its venv; returns the note that is kept: version, reason ("" where it went well),
    megabytes.
    """
    venv = VENVS / peer.slug
    shutil.rmtree(venv, ignore_errors=True)
    commands = [
        [sys.executable, "-m", "venv", str(venv)],
        [
            str(venv / "bin" / "pip"),
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *peer.requirements,
        ],
    ]
    for command in commands:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        if done.returncode:
            shutil.rmtree(venv, ignore_errors=True)
            return {
                "version": "",
                "reason": f"pip: {done.stderr.strip()[-REASON_BYTES:]}",
                "megabytes": 0,
            }
    if list(venv.glob("lib/*/site-packages/torch")):
        shutil.rmtree(venv)
        return {"version": "", "reason": "it pulls torch into its venv", "megabytes": 0}
    size = sum(
        file.stat().st_size for file in venv.rglob("*") if file.is_file() and not file.is_symlink()
    )
    return {"version": _version(peer), "reason": "", "megabytes": size // 1_000_000}


def _version(peer: Peer) -> str:
    code = f"import importlib.metadata as m; print(m.version({peer.requirements[0]!r}))"
    return subprocess.run(
        [peer.python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> int:
    os.nice(10)
    VENVS.mkdir(exist_ok=True)
    done: set[str] = set()
    for peer in PEERS:
        if len(sys.argv) > 1 and peer.slug not in sys.argv[1:]:
            continue
        if peer.program and shutil.which(peer.program) is None:
            print(
                f"{peer.name}: not on PATH; on Debian `apt-get install {peer.program}` "
                "(not done by this script)"
            )
        if peer.requirements and peer.slug not in done:
            note = install(peer)
            (VENVS / f"{peer.slug}.json").write_text(json.dumps(note) + "\n")
            print(
                f"{peer.name}: {note['reason'] or 'installed'} {note['version']} "
                f"({note['megabytes']} MB)",
                flush=True,
            )
        done.add(peer.slug)
    return 0


if __name__ == "__main__":
    sys.exit(main())
