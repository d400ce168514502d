"""Configurations of the clusters that the end-to-end tests run."""

from pathlib import Path

from tests.cluster_harness import write_config


def cluster_config(folder: Path, model: Path, **changes: dict[str, object]) -> Path:
    """Write a configuration for one prefill and two decode workers on this machine; ``changes`` go over it."""
    sections: dict[str, dict[str, object]] = {
        "cluster": {"name": "test", "prefill": 1, "decode": 2},
        "model": {"path": str(model)},
        "engine": {"dtype": "float32", "threads": 1},
        "router": {"port": 0, "placement": "split"},
        "prefill": {"total_blocks": 1024},
        "decode": {"total_blocks": 1024},
    }
    for name, section in changes.items():
        sections.setdefault(name, {}).update(section)
    return write_config(folder, sections)
