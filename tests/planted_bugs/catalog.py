"""The sixteen historical bugs, each as a patch to our own code, and the layer that must catch it."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings

from tests.planted_bugs import cluster_bugs, handover_bugs, layers, pool_bugs


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedBug:
    """One mistake that somebody made."""

    number: int
    origin: str
    plant: Callable[[pytest.MonkeyPatch], None]
    layer: Callable[[settings], None]
    complaint: str
    """What the layer says when the bug is there."""

    @property
    def mistake(self) -> str:
        """What the patch does."""
        return (self.plant.__doc__ or "").partition(": ")[2].rstrip(".")

    def row(self) -> str:
        """Return the bug's row of the table in README.md."""
        cells = (f"B{self.number}", self.origin, self.mistake, f"`{self.layer.__name__}`", self.complaint)
        return f"| {' | '.join(cells)} |"


BUGS = (
    PlantedBug(
        number=1,
        origin="SGLang 24527: pages freed on abort while the writer is still at work",
        plant=pool_bugs.free_on_abort,
        layer=layers.block_pool_machine,
        complaint="a hold is missing, or one too many",
    ),
    PlantedBug(
        number=2,
        origin="vLLM 46240: a boolean where a set of holds is needed",
        plant=pool_bugs.one_flag_for_all_holds,
        layer=layers.block_pool_machine,
        complaint="a hold is missing, or one too many",
    ),
    PlantedBug(
        number=3,
        origin="vLLM 58222: the reaper of leases leaves its loop early",
        plant=handover_bugs.sweep_that_stops_early,
        layer=layers.handover_history_of_two_leases,
        complaint="a lease outlived its deadline",
    ),
    PlantedBug(
        number=4,
        origin="vLLM 46283: a pushing producer never reports",
        plant=handover_bugs.sends_without_report,
        layer=layers.handover_machine,
        complaint="an undisturbed hand-over did not succeed",
    ),
    PlantedBug(
        number=5,
        origin="vLLM 52234: a stale read of a reassigned block is accepted",
        plant=handover_bugs.blocks_are_not_checked,
        layer=layers.handover_machine,
        complaint="wrong KV was accepted",
    ),
    PlantedBug(
        number=6,
        origin="vLLM 49250: recomputation without rolling the state back",
        plant=pool_bugs.preempted_without_rollback,
        layer=layers.block_pool_machine,
        complaint="a sequence reads what it would not have written",
    ),
    PlantedBug(
        number=7,
        origin="vllm-ascend 6325: the decode side frees by its own id instead of the prefill side's",
        plant=handover_bugs.accepted_under_a_local_name,
        layer=layers.handover_machine,
        complaint="a lease outlived its export",
    ),
    PlantedBug(
        number=8,
        origin="vLLM 27987 and 49796: the client's id is the transfer's key",
        plant=handover_bugs.tags_made_of_the_clients_id,
        layer=layers.handover_history_of_two_attempts,
        complaint="an undisturbed hand-over did not succeed",
    ),
    PlantedBug(
        number=9,
        origin="Dynamo 7072: the numbers of events start again after a recovery",
        plant=cluster_bugs.numbers_start_again,
        layer=layers.directory_history_of_an_empty_server,
        complaint="the index is not what the worker holds",
    ),
    PlantedBug(
        number=10,
        origin="SGLang 39822: placements by what a worker held before its restart",
        plant=cluster_bugs.blocks_kept_by_worker,
        layer=layers.directory_history_of_a_restart,
        complaint="the index believes what was never true",
    ),
    PlantedBug(
        number=11,
        origin="vLLM 51640: the salt is missing in the external key",
        plant=pool_bugs.hashes_without_salt,
        layer=layers.block_pool_machine,
        complaint="a sequence reads what it would not have written",
    ),
    PlantedBug(
        number=12,
        origin="mori 655: a lost acknowledgement wedges the transfer",
        plant=handover_bugs.waits_for_ever,
        layer=layers.handover_machine,
        complaint="a hand-over did not end",
    ),
    PlantedBug(
        number=13,
        origin="Ray 60145: the child is dead, the actor lives (here the engine's loop and its worker)",
        plant=cluster_bugs.dead_engine_in_a_living_worker,
        layer=layers.engine_loop_scenario,
        complaint="the engine's loop has ended and nobody was told",
    ),
    PlantedBug(
        number=14,
        origin="Mooncake TENT: what was submitted in part is submitted again as a whole",
        plant=handover_bugs.submits_again_what_was_submitted,
        layer=layers.handover_machine,
        complaint="a receive lands once",
    ),
    PlantedBug(
        number=15,
        origin="tokens of a stopped worker after SIGCONT are taken for the new attempt's",
        plant=cluster_bugs.zombies_are_heard,
        layer=layers.token_stream_machine,
        complaint="a zombie",
    ),
    PlantedBug(
        number=16,
        origin="gRPC 43462: an abandoned call of grpc.aio is never cancelled (here one that we abandon)",
        plant=cluster_bugs.abandoned_calls,
        layer=layers.request_flow_machine,
        complaint="a call was abandoned",
    ),
)
