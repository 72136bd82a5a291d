"""Writing text in several processes: each continues some of the prompts, and all know what was said.

After every token the processes agree on rank 0's: rounding that differs between them can then neither part their
answers nor let one of them stop earlier than the others, who would wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from deepen.model.writing import Choose, Writer
from deepen.parallel.axes.rows import agree, collect, rows_of
from deepen.parallel.process import Process

OpenWriter = Callable[[Sequence[list[int]], Choose, Sequence[int]], Writer]
"""Who continues some prompts on this process, given their numbers among all."""


class SharedWriter:
    """The writer of a batch whose rows are dealt out to the data-parallel processes (``Writer``)."""

    def __init__(self, prompts: Sequence[list[int]], choose: Choose, process: Process, open_writer: OpenWriter) -> None:
        self._process, self._num_prompts = process, len(prompts)
        self._places = [
            max(int(row), 0) for row in rows_of(len(prompts), process)
        ]  # the first again where there is none
        self._own = open_writer([prompts[place] for place in self._places], choose, self._places)

    def next(self, said: Sequence[int] | None) -> list[int]:
        """See ``Writer``."""
        own = self._own.next(None if said is None else [said[place] for place in self._places])
        mine = torch.tensor(own, device=self._process.device)
        return [int(token) for token in agree(collect(mine, self._num_prompts, self._process), self._process).tolist()]


class AgreedWriter:
    """The writer of a batch that every copy of the model continues as a whole (``Writer``)."""

    def __init__(self, own: Writer, process: Process) -> None:
        self._own, self._process = own, process

    def next(self, said: Sequence[int] | None) -> list[int]:
        """See ``Writer``."""
        own = torch.tensor(self._own.next(said), device=self._process.device)
        return [int(token) for token in agree(own, self._process).tolist()]
