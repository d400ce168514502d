"""Short histories that the machines seldom happen upon, played by hand: the same steps, the same checks."""

from tests.machines.directory import DirectoryMachine
from tests.machines.handover import HandoverMachine
from tests.machines.handover_sides import PROMPTS


def next_attempt_while_the_last_one_still_receives() -> None:
    """Begin a second attempt when the first has posted its receives and nothing was sent: each has bytes of its own."""
    machine = HandoverMachine()
    machine.start()
    machine.begin(PROMPTS[-1], "first", 0)
    machine.deliver_request(0)
    machine.deliver_answer(0, again=False)
    machine.try_again(0, "first")
    machine.teardown()


def lease_that_ends_behind_one_that_has_not_begun() -> None:
    """Finish an export beside an older one that is still being read: nobody comes, and the younger lease ends."""
    machine = HandoverMachine()
    machine.start()
    machine.begin(PROMPTS[0], "never", 0)
    machine.begin(PROMPTS[-1], "never", len(PROMPTS[-1]))
    machine.wait(4.5)
    machine.teardown()


def restart_that_cannot_tell_its_blocks() -> None:
    """Start a worker anew while the server takes no snapshots: what its last life held is void all the same."""
    machine = DirectoryMachine()
    machine.start([0, 1])
    machine.fail("without_snapshots")
    machine.start_worker("decode-0", zombie=False)
    machine.wait(0.3)
    machine.nothing_is_believed_that_was_never_true()
    machine.teardown()


def empty_server_after_many_events() -> None:
    """Let the server lose everything after some events: what workers tell it then is believed, and only that."""
    machine = DirectoryMachine()
    machine.start([0, 1])
    for number in (2, 3, 4):
        machine.change("decode-0", "store", [number])
    machine.restart_server("lose everything")
    machine.wait(1.0)
    machine.change("decode-0", "remove", [2])
    machine.nothing_is_believed_that_was_never_true()
    machine.teardown()


def worker_out_of_reach_for_longer_than_its_lease() -> None:
    """Keep one worker from the server until its registration has run out: what it holds is known again afterwards."""
    machine = DirectoryMachine()
    machine.start([0, 1])
    machine.fail("cut_off")
    for _ in range(4):
        machine.wait(3.0)
    machine.teardown()


HISTORIES = (
    next_attempt_while_the_last_one_still_receives,
    lease_that_ends_behind_one_that_has_not_begun,
    restart_that_cannot_tell_its_blocks,
    empty_server_after_many_events,
    worker_out_of_reach_for_longer_than_its_lease,
)
