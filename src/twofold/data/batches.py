"""Batches as a function of the step number only: independent of the order of calls and of the number of ranks."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from twofold.contracts import DataError, Sample
from twofold.data.sources import Source

SECOND_STREAM = 500_000
"""What a run adds to its seed for the batches of its other level."""


class Shard(NamedTuple):
    """Which part of every batch is made here: rank `rank` of `ranks`."""

    rank: int = 0
    ranks: int = 1


def _one_thread() -> ThreadPoolExecutor:
    """A worker whose operations use one thread: a second team of threads beside the network's would make both wait for
    each other, many times slower.
    """
    pool, threads = ThreadPoolExecutor(1, "batches"), torch.get_num_threads()
    pool.submit(_use_one_thread).result()
    torch.set_num_threads(threads)  # the worker has also changed what later threads start with
    return pool


def _use_one_thread() -> None:
    torch.get_num_threads()  # the first question would undo what was set before it
    torch.set_num_threads(1)


class Batches:
    """`batches(n)` is the batch of step n. Its sample i comes from a generator seeded with (seed, n · size + i) alone.

    So a resumed run sees what an uninterrupted one sees, two ranks together see what one sees, and the batch after
    the one asked for is made ahead in a thread without changing anything.

    size: of the whole batch, all ranks together. Raises: DataError if it cannot be shared evenly.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        *,
        seed: int = 0,
        share: Shard = Shard(),
        device: torch.device | str = "cpu",
        ahead: bool = True,
    ) -> None:
        if size % share.ranks:
            raise DataError(f"a batch of {size} cannot be shared by {share.ranks} processes; change data.batch")
        self.source, self.size, self.seed, self.device = source, size, seed, torch.device(device)
        self.mine = range(size * share.rank // share.ranks, size * (share.rank + 1) // share.ranks)
        self._pool = _one_thread() if ahead else None
        self._next: tuple[int, Future[Sample]] | None = None

    def __call__(self, n: int) -> Sample:
        if self._pool is None:
            return self._made(n)
        ready = self._next[1] if self._next is not None and self._next[0] == n else self._pool.submit(self._made, n)
        sample = ready.result()
        self._next = (n + 1, self._pool.submit(self._made, n + 1))
        return sample

    def _made(self, n: int) -> Sample:
        samples = [self.source(self._generator(n * self.size + i)) for i in self.mine]
        return Sample(*(self._joined([sample[part] for sample in samples]) for part in range(4)))  # type: ignore[arg-type]

    def _generator(self, number: int) -> torch.Generator:
        # consecutive seeds of this generator give related first draws: spread them by a large odd multiplier
        return torch.Generator().manual_seed((self.seed * 1_000_003 + number) * 0x9E3779B97F4A7C15 % 2**63)

    def _joined(self, parts: list[Tensor | None]) -> Tensor | None:
        if any(part is None for part in parts):
            return None
        whole = torch.cat([part for part in parts if part is not None])
        if whole.shape[1] > 1:
            whole = whole.contiguous(memory_format=torch.channels_last)
        return whole.to(self.device, non_blocking=True)
