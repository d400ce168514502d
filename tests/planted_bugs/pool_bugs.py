"""Mistakes in who may use a block, and what a block's hash stands for."""

import pytest

import router.placer
from cluster_core import hash_chain
from cluster_core.holds import Hold, RequestHold, WriterHold
from inference_engine.block_pool import BlockPool
from inference_engine.sequence import TokenSequence


def free_on_abort(patch: pytest.MonkeyPatch) -> None:
    """B1: a request's end takes the writers' holds along."""
    release_block = BlockPool.release_block

    def release_with_writers(self: BlockPool, index: int, hold: Hold) -> None:
        if hold not in self._owners[index]:
            return
        release_block(self, index, hold)
        if isinstance(hold, RequestHold):
            for writer in [each for each in self._owners[index] if isinstance(each, WriterHold)]:
                release_block(self, index, writer)

    patch.setattr(BlockPool, "release_block", release_with_writers)


def one_flag_for_all_holds(patch: pytest.MonkeyPatch) -> None:
    """B2: a block is in use or it is not, so the second holder leaves no trace and the first one's end frees it."""
    acquire, release_block = BlockPool.acquire, BlockPool.release_block

    def acquire_flag(self: BlockPool, index: int, hold: Hold) -> None:
        if not self._owners[index]:
            acquire(self, index, hold)

    def release_flag(self: BlockPool, index: int, hold: Hold) -> None:
        if hold in self._owners[index]:
            release_block(self, index, hold)

    patch.setattr(BlockPool, "acquire", acquire_flag)
    patch.setattr(BlockPool, "release_block", release_flag)


def preempted_without_rollback(patch: pytest.MonkeyPatch) -> None:
    """B6: a preempted sequence gives its blocks back and still counts their tokens as computed."""
    give_back = TokenSequence.give_back

    def give_back_and_keep_counting(self: TokenSequence) -> None:
        computed = self.computed
        give_back(self)
        self.computed = computed

    patch.setattr(TokenSequence, "give_back", give_back_and_keep_counting)


def hashes_without_salt(patch: pytest.MonkeyPatch) -> None:
    """B11: two tenants with the same prompt have the same block hashes."""
    salted = hash_chain.root_hash

    def unsalted(model_seed: bytes, cache_salt: str) -> bytes:
        del cache_salt
        return salted(model_seed, "")

    patch.setattr(hash_chain, "root_hash", unsalted)
    patch.setattr(router.placer, "root_hash", unsalted)
