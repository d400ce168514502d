"""`baton demo`, as a newcomer runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

DEMO_TIMEOUT_S = 240.0


def test_the_demo_hands_over_finds_what_it_cached_and_ends_identical(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cluster_launcher", "demo", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=DEMO_TIMEOUT_S,
        env=dict(os.environ, XDG_RUNTIME_DIR=str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    facts = json.loads(done.stdout)
    assert facts["identical"] is True
    requests = facts["requests"]
    assert len(requests) == 4
    first, *others = requests
    (attempt,) = first["attempts"]
    assert attempt["handoff"]["moved_blocks"] > 0
    assert attempt["handoff"]["transport"] == "ucx"
    assert first["cached_tokens"] == 0
    assert all(request["cached_tokens"] > 0 for request in others)
    assert not list(tmp_path.rglob("*.json")), "no state file stays behind"
