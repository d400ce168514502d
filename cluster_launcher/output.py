"""Where a command's words go: facts to standard output, as JSON or for reading; everything else to standard error."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console

from cluster_launcher.progress import ConsoleProgress, Progress, SilentProgress


class Output:
    """One command's output. In JSON mode standard output carries JSON objects, one a line, and nothing else."""

    def __init__(self, *, as_json: bool) -> None:
        """Choose the form of the facts."""
        self.as_json = as_json
        self.console = Console(quiet=as_json, highlight=False)
        self.errors = Console(stderr=True, highlight=False)

    def progress(self) -> Progress:
        """Return where progress is told."""
        return SilentProgress() if self.as_json else ConsoleProgress(self.errors)

    def facts(self, facts: Mapping[str, Any]) -> None:
        """Write one JSON object in JSON mode; otherwise nothing, the command prints for reading."""
        if self.as_json:
            sys.stdout.write(json.dumps(facts) + "\n")
            sys.stdout.flush()

    def text(self, text: str) -> None:
        """Write a piece of streamed text as it is, for reading only."""
        if not self.as_json:
            sys.stdout.write(text)
            sys.stdout.flush()
