"""Lengths, categories, annealing and controls through the stage: what the order holds, counted from its files."""

from typing import Any

import numpy as np
import pytest

from deepen.errors import SourceError
from deepen.formats.manifest import StageJob
from deepen.formats.tokens.order import Order, row_of, source_of
from deepen.formats.tokens.packs import Packs
from deepen.mix.config import MixConfig
from deepen.mix.stage import mix
from deepen.train.batches.read import Batches

LENGTHS = np.random.default_rng(5).integers(3, 60, 120).tolist()
TWO_LENGTHS = [{"until": "75%", "length": 8}, {"length": 32}]


def mixed(job: StageJob, batches: int, **keys: Any) -> dict[str, Any]:
    config = MixConfig.model_validate({"sequence_length": 8, **keys})
    return mix(config, job, batch_tokens=64, num_batches=batches).counts


def documents_of(job: StageJob, source: str, batches: range) -> set[int]:
    """Sequences of a source that are in some batches."""
    order, packs = Order.open(job.out), Packs.open(job.out, source)
    index = order.sources.index(source)
    ids = np.concatenate([order.batch(batch) for batch in batches])
    rows = row_of(ids[source_of(ids) == index]).tolist()
    return {sequence for row in rows for sequence in packs.row(row)[:, 0].tolist()}


def test_each_length_has_documents_of_its_own(make_job) -> None:
    job = make_job("out", papers=("domain", LENGTHS), web=("replay", LENGTHS[::-1]))
    counts = mixed(job, 40, sequence_length=TWO_LENGTHS)
    order = Order.open(job.out)
    shapes = [(s.first_batch, s.num_batches, s.sequence_length, s.rows_per_batch) for s in order.stretches()]
    assert shapes == [(0, 30, 8, 8), (30, 10, 32, 2)]
    for source in ("papers", "web"):
        short, long = (documents_of(job, source, batches) for batches in (range(30), range(30, 40)))
        assert short and long and not short & long
        assert sum(np.array(LENGTHS if source == "papers" else LENGTHS[::-1])[sorted(long)]) < sum(LENGTHS) / 3
    for source in counts["sources"].values():
        assert source["shard_tokens"] == source["packed_tokens"] == source["slots"] - source["padding"]


def test_rows_of_a_million_tokens(make_job) -> None:
    million = 1 << 20
    job = make_job("out", books=("domain", [3 * million // 2, 5 * million // 2, 1000, 2000]))
    config = MixConfig(sequence_length=million)
    counts = mix(config, job, batch_tokens=2 * million, num_batches=2).counts["sources"]["books"]
    assert (counts["rows"], counts["order_rows"], counts["cuts"]) == (5, 4, 3)
    batches = Batches.open(job.inputs["tokenize"].path, job.out)
    filled = sum(int((batches[number].documents_BT >= 0).sum()) for number in range(2))
    assert (batches[0].tokens_BT.shape, filled) == ((2, million), counts["order_tokens"])


def test_categories_get_equal_parts(make_job) -> None:
    categories = ["law"] * 90 + ["health"] * 20 + [None] * 10
    job = make_job("out", papers=("domain", LENGTHS, categories), web=("replay", LENGTHS[::-1]))
    counts = mixed(job, 40, balance="category", max_epochs=16)
    taken = {s["name"]: s["order_tokens"] for s in counts["supplies"]}
    parts = [taken[f"papers/{name}"] for name in ("law", "health", "none")]
    assert max(parts) - min(parts) <= 3 * 8
    assert counts["sources"]["papers"]["shard_tokens"] == counts["sources"]["papers"]["packed_tokens"]


def test_categories_get_weights_and_each_needs_one(make_job) -> None:
    job = make_job("out", papers=("domain", LENGTHS, ["law"] * 60 + ["health"] * 60))
    counts = mixed(job, 20, balance={"law": 3, "health": 1})
    law, health = (s["order_tokens"] for s in sorted(counts["supplies"], key=lambda s: s["name"], reverse=True))
    assert law / (law + health) == pytest.approx(0.75, abs=0.02)
    with pytest.raises(SourceError, match="`health` of source `papers` has no weight"):
        mixed(make_job("other", papers=("domain", LENGTHS, ["law"] * 60 + ["health"] * 60)), 20, balance={"law": 3})


def test_the_control_trains_replay_alone_with_as_many_tokens(make_job) -> None:
    counts = mixed(make_job("out", papers=("domain", LENGTHS), web=("replay", LENGTHS)), 30, control=True)
    rows = {name: source["order_rows"] for name, source in counts["sources"].items()}
    assert rows == {"papers": 0, "web": 240}


def test_annealing_takes_other_shares_at_the_end(make_job, capsys) -> None:
    job = make_job("out", papers=("domain", LENGTHS * 2), notes=("domain", LENGTHS), web=("replay", LENGTHS))
    anneal = {"last": "25%", "domain_share": 0.9, "weights": {"papers": 1, "notes": 3}}
    counts = mixed(job, 40, domain_share=0.5, anneal=anneal)
    for phase in counts["phases"]:
        for name, asked in phase["asked"].items():
            assert phase["realised"][name] == pytest.approx(asked, abs=1.5 / phase["num_batches"])
    assert counts["phases"][1]["asked"] == pytest.approx({"papers": 0.225, "notes": 0.675, "web": 0.1})
    table = capsys.readouterr().err
    assert "steps 1-30" in table and "steps 31-40" in table and "shares from the first step to the last" in table


def test_unimax_fills_small_sources_to_their_cap(make_job) -> None:
    job = make_job("out", small=("domain", [8] * 10), large=("domain", [8] * 500))
    counts = mixed(job, 40, weights="unimax", max_epochs=3)["sources"]
    assert (counts["small"]["order_rows"], counts["large"]["order_rows"]) == (30, 290)


def test_many_repeats_are_told_with_what_they_are_worth(make_job, capsys) -> None:
    mixed(make_job("out", papers=("domain", [8] * 10)), 10, max_epochs=16)
    assert "`papers` is passed 8.0 times: its 640 tokens are worth about 530 new ones" in capsys.readouterr().err


def test_a_source_without_documents_for_a_length_is_told(make_job, capsys) -> None:
    job = make_job("out", papers=("domain", LENGTHS), one=("domain", [30]))
    counts = mixed(job, 40, sequence_length=TWO_LENGTHS)
    assert "`one` has no document left for rows of 32" in capsys.readouterr().err
    assert sum(source["order_rows"] for source in counts["sources"].values()) == 30 * 8 + 10 * 2
