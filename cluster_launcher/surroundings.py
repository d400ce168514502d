"""What the process was given: read once in ``__main__``, handed to the commands."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster_launcher.state_file import StateFiles, state_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The environment, and what follows from it."""

    environment: Mapping[str, str]

    @property
    def state_files(self) -> StateFiles:
        """Where running clusters are noted."""
        return StateFiles(state_folder(self.environment))
