"""The token account: from documents read to tokens in the loss, per source, and whether it adds up.

Every line is a sum that must hold exactly; a line that does not hold names the source and both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepen.runs.directory import check_is_run, finished_stages


@dataclass(frozen=True)
class AccountLine:
    """One equation of the account for one source."""

    source: str
    what: str
    left: int
    right: int
    terms: str
    """How the right side is made up, for people."""

    @property
    def balances(self) -> bool:
        """Whether both sides are equal."""
        return self.left == self.right


def account(run: Path) -> list[AccountLine]:
    """All lines of the account that the finished stages of ``run`` allow; raises ``RunError`` for what is no run."""
    check_is_run(run)
    counts = {name: artifact.counts for name, artifact in finished_stages(run).items()}
    return [line for rule, needs in _RULES.items() if needs <= counts.keys() for line in rule(counts)]


Counts = dict[str, Any]


def _sources(counts: Counts, stage: str) -> dict[str, dict[str, Any]]:
    return dict(counts.get(stage, {}).get("sources", {}))


def _ingest_to_curate(counts: Counts) -> Iterator[AccountLine]:
    read = _sources(counts, "ingest")
    for name, source in _sources(counts, "curate").items():
        yield AccountLine(name, "documents read", read[name]["documents"], source["documents_in"], "curated")
        dropped = sum(source["dropped"].values())
        total = source["documents_kept"] + dropped + source["held_out"]
        terms = f"{source['documents_kept']:,} kept + {dropped:,} dropped + {source['held_out']:,} held out"
        yield AccountLine(name, "documents in", source["documents_in"], total, terms)


def _curate_to_tokenize(counts: Counts) -> Iterator[AccountLine]:
    curated = _sources(counts, "curate")
    for name, source in _sources(counts, "tokenize").items():
        refused = sum(source.get("refused", {}).values())
        terms = (
            f"{source['documents']:,} tokenized + {refused:,} refused by the chat template" if refused else "tokenized"
        )
        yield AccountLine(name, "documents kept", curated[name]["documents_kept"], source["documents"] + refused, terms)


def _tokenize_to_mix(counts: Counts) -> Iterator[AccountLine]:
    shards = _sources(counts, "tokenize") | counts.get("mix", {}).get("fixed_rows", {})
    for name, source in _sources(counts, "mix").items():
        yield AccountLine(name, "tokens in shards", shards[name]["tokens"], source["shard_tokens"], "tokens to pack")
        to_pack = source["passes"] * source["shard_tokens"]
        what = "tokens to pack" if source["passes"] == 1 else f"tokens to pack x {source['passes']} passes"
        terms = f"{source['packed_tokens']:,} packed + {source['left_over']:,} left over at the end"
        yield AccountLine(name, what, to_pack, source["packed_tokens"] + source["left_over"], terms)
        filled = source["packed_tokens"] + source["padding"]
        terms = f"{source['packed_tokens']:,} packed + {source['padding']:,} padding"
        yield AccountLine(name, "positions in rows", source["slots"], filled, terms)
        seen = source["seen_tokens"] + source["unused_tokens"]
        terms = f"{source['seen_tokens']:,} in the order + {source['unused_tokens']:,} unused"
        yield AccountLine(name, "packed tokens", source["packed_tokens"], seen, terms)


def _fixed_rows(counts: Counts) -> Iterator[AccountLine]:
    for name, rows in counts.get("mix", {}).get("fixed_rows", {}).items():
        terms = f"{rows['documents']:,} fixed rows + {rows['empty_rows']:,} empty"
        yield AccountLine(name, "rows read", rows["rows_read"], rows["documents"] + rows["empty_rows"], terms)
        terms = f"{rows['tokens']:,} tokens + {rows['padding_removed']:,} padding removed"
        total = rows["tokens"] + rows["padding_removed"]
        yield AccountLine(name, "positions read", rows["positions_read"], total, terms)
        packed = counts["mix"]["sources"][name]
        yield AccountLine(name, "fixed rows", rows["documents"], packed["rows"], "rows of the mix")


def _mix_to_train(counts: Counts) -> Iterator[AccountLine]:
    mixed = _sources(counts, "mix")
    for name, source in _sources(counts, "train").items():
        terms = f"{source['rows']:,} trained + {source['skipped_rows']:,} in skipped batches"
        rows = source["rows"] + source["skipped_rows"]
        planned = source.get("order_rows", mixed[name]["order_rows"])  # its own where the mixture was changed
        yield AccountLine(name, "rows in the order", planned, rows, terms)
        loss = source["loss_tokens"] + source["masked"] + source["without_label"]
        terms = f"{source['loss_tokens']:,} in the loss + {source['masked']:,} masked"
        terms += f" + {source['without_label']:,} without a label"
        yield AccountLine(name, "tokens trained", source["tokens"], loss, terms)


_RULES: dict[Callable[[Counts], Iterator[AccountLine]], set[str]] = {
    _ingest_to_curate: {"ingest", "curate"},
    _curate_to_tokenize: {"curate", "tokenize"},
    _fixed_rows: {"mix"},
    _tokenize_to_mix: {"tokenize", "mix"},
    _mix_to_train: {"mix", "train"},
}
"""The equations between stages, and which must be there: any of them may have been removed."""
