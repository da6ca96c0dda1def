"""What no contender can beat: the time that the machine needs for the bytes of a case."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from .cases import Workload
from .contenders import Call, Contender

# Below this, handing half of a copy to a second thread costs more than it brings.
BYTES_PER_THREAD = 2 * 2**20


class Copy(Contender):
    """`np.copyto` of half the bytes that the case must move: as many are read and written together."""

    name = "copy"
    package = "numpy"

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def start(self, threads: int) -> None:
        super().start(threads)
        if threads > 1:
            self._pool = ThreadPoolExecutor(threads)

    def prepare(self, work: Workload) -> Call:
        source = np.full(max(1, work.case.bytes_moved // 2), 1, np.uint8)
        target = np.zeros_like(source)
        if self._pool is None or source.size < BYTES_PER_THREAD * self.threads:
            return partial(np.copyto, target, source)
        pairs = list(zip(np.array_split(target, self.threads), np.array_split(source, self.threads), strict=True))
        pool = self._pool
        return lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs))


LIMITS: list[type[Contender]] = [Copy]
