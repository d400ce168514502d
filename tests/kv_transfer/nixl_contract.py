"""What needs NIXL itself, the transport contract first, in a process without ucxx: a process can hold one UCX.

Arguments are pytest's.
"""

import sys

import pytest

from tests.kv_transfer import transport_sides

FOLDER = "tests/kv_transfer"
SUITES = (
    f"{FOLDER}/test_transport_contract.py",
    f"{FOLDER}/test_transport_lots.py",
    f"{FOLDER}/nixl_kills.py",
    f"{FOLDER}/nixl_lanes.py",
)


if __name__ == "__main__":
    transport_sides.KINDS = transport_sides.NIXL_KINDS
    sys.exit(pytest.main([*SUITES, "-k", "nixl", "-p", "no:cacheprovider", *sys.argv[1:]]))
