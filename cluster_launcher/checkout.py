"""Where the checkout is: the demo's model, the configurations and the benchmarks live in it, not in a wheel."""

from pathlib import Path

from cluster_core.errors import PartUnavailable


def checkout_folder(command: str) -> Path:
    """Return the checkout's root. Raises `PartUnavailable` naming ``command`` when Baton was installed without one."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / "cluster_configs").is_dir():
        message = (
            f"`{command}` needs Baton's source checkout, and this Baton was installed without one; "
            "clone the repository and run `make setup` in it"
        )
        raise PartUnavailable(message)
    return folder
