"""What a reader is told besides the file: which fields are wanted, and how to treat what is in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from deepen.ingest.config import Extraction
from deepen.ingest.read.records import Expansion, Record, Reject, Tally
from deepen.ingest.streams import Input


@dataclass(frozen=True)
class Reading:
    """How the files of a source are read."""

    fields: Sequence[str] | None = None
    """The fields wanted of a record, so that a format that stores columns need not read the others; None: all."""
    format: str = "auto"
    """Format of all files inside an archive, or "auto"."""
    encoding: str = "auto"
    delimiter: str | None = None
    """Of csv files; None: told from the first rows."""
    extractor: str = "trafilatura"
    passwords: Sequence[str] = ()
    limits: Extraction = Extraction()
    tokenizer: str | None = None
    """Folder of the tokenizer that made a Megatron pair."""
    tables_only: bool = False
    """Leave out what is no table of records (to guess which field has the text, documents need not be taken apart)."""
    tally: Tally = field(default_factory=Tally, compare=False)
    """Where archives count their members."""

    @property
    def expansion(self) -> Expansion:
        """How far what is packed may expand."""
        return Expansion(self.limits.expansion, self.limits.expansion_MB * 10**6)


Reader = Callable[[Input, Reading], Iterator[Record | Reject]]
"""A file in, records and rejects out, streaming, in the order of the file."""
