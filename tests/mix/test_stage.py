"""The stage: counts that add up, the same bytes again, and refusals that say what to do."""

from pathlib import Path

import numpy as np
import pytest

from deepen.errors import SourceError
from deepen.formats.files.atomic import damage
from deepen.formats.manifest import open_artifact
from deepen.formats.tokens.megatron import IndexedDataset
from deepen.formats.tokens.order import Order, begins_with, row_of, source_of
from deepen.formats.tokens.packs import Packs
from deepen.mix.config import MixConfig
from deepen.mix.stage import mix

PAPERS = ("domain", [14, 7, 5, 2, 3, 40, 9])
WEB = ("replay", [6, 6, 21, 8, 1])


def files(directory: Path) -> dict[str, bytes]:
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def test_the_account_balances(make_job) -> None:
    manifest = mix(
        MixConfig(sequence_length=8), make_job("out", papers=PAPERS, web=WEB), batch_tokens=16, num_batches=5
    )
    for source in manifest.counts["sources"].values():
        assert source["shard_tokens"] == source["packed_tokens"] == source["seen_tokens"] + source["unused_tokens"]
        assert source["slots"] == source["rows"] * 8 == source["packed_tokens"] + source["padding"]
        assert source["rows"] == source["rows_seen"] + source["rows_unused"]
    assert sum(source["order_rows"] for source in manifest.counts["sources"].values()) == 10
    assert manifest.counts["domain_share"] == 0.7


@pytest.mark.parametrize("packing", ["best_fit", "concatenate"])
def test_one_epoch_shows_every_token_of_every_shard_once(make_job, packing: str) -> None:
    job = make_job("out", papers=("domain", [14, 7, 5, 2, 3, 40, 9]))
    config = MixConfig(sequence_length=8, packing=packing)
    rows = mix(config, job, batch_tokens=8, num_batches=1).counts["sources"]["papers"]["rows"]
    mix(config, job, batch_tokens=8, num_batches=rows)
    order, packs = Order.open(job.out), Packs.open(job.out, "papers")
    shard = IndexedDataset.open(job.inputs["tokenize"].path / "shards" / "papers")
    seen = [
        token
        for batch in range(order.num_batches)
        for row in row_of(order.batch(batch))
        for sequence, start, length in packs.row(row).tolist()
        for token in shard.read(sequence, start, length).tolist()
    ]
    assert sorted(seen) == list(range(80))


def test_two_builds_and_any_number_of_workers_give_the_same_bytes(make_job, monkeypatch) -> None:
    monkeypatch.setattr("deepen.mix.stage._WORTH_A_PROCESS", 0)
    config = MixConfig(sequence_length=8)
    for name, workers in (("one", 1), ("two", 2)):
        mix(config, make_job(name, workers=workers, papers=PAPERS, web=WEB), batch_tokens=16, num_batches=5)
    one, two = (files(make_job(name).out) for name in ("one", "two"))
    assert one == two
    assert sorted(one) == [
        "mixture.json", "order/000.u64", "packs/papers.rows.npy", "packs/papers.segments.npy", "packs/web.rows.npy",
        "packs/web.segments.npy", "segments.json",
    ]  # fmt: skip


KINDS = {
    "plain": {"sequence_length": 8},
    "curriculum": {
        "sequence_length": [{"until": "50%", "length": 8}, {"length": 16}],
        "domain_share": [{"until": "30%", "share": 0.2}, {"share": 0.8, "ramp": "linear"}],
        "balance": "category",
    },
    "megatron": {"sequence_length": 8, "order": "megatron"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_leftovers_of_a_kill_change_nothing(make_job, kind: str) -> None:
    config = MixConfig.model_validate({**KINDS[kind], "max_epochs": 9})
    many = {"papers": ("domain", PAPERS[1] * 3, ["a", "b", None] * 7), "web": ("replay", WEB[1] * 3)}
    mix(config, make_job("one", **many), batch_tokens=16, num_batches=6)
    job = make_job("two", **many)
    for name in ("order/000.u64.tmp", "packs/papers.rows.npy", "packs/papers.segments.npy.tmp", "segments.json"):
        (job.out / name).parent.mkdir(parents=True, exist_ok=True)
        (job.out / name).write_bytes(b"half")
    mix(config, job, batch_tokens=16, num_batches=6)
    assert files(job.out) == files(make_job("one").out)


def test_the_manifest_lists_every_file_with_its_hash(make_job) -> None:
    job = make_job("out", papers=PAPERS, web=WEB)
    mix(MixConfig(sequence_length=8), job, batch_tokens=16, num_batches=5)
    artifact = open_artifact(job.out)
    assert artifact is not None
    assert {entry.path for entry in artifact.manifest.files} == set(files(job.out))
    assert not any(damage(entry, job.out) for entry in artifact.manifest.files)


def test_more_batches_only_extend_the_order(make_job) -> None:
    config = MixConfig(sequence_length=8)
    for name, num_batches in (("short", 4), ("long", 9)):
        mix(config, make_job(name, papers=PAPERS, web=WEB), batch_tokens=16, num_batches=num_batches)
    assert begins_with(make_job("long").out, make_job("short").out)


def test_another_seed_gives_another_order(make_job) -> None:
    config = MixConfig(sequence_length=8)
    for name, seed in (("one", 1), ("two", 2)):
        mix(config, make_job(name, seed=seed, papers=PAPERS, web=WEB), batch_tokens=16, num_batches=5)
    one, two = (Order.open(make_job(name).out) for name in ("one", "two"))
    assert any(not np.array_equal(one.batch(b), two.batch(b)) for b in range(5))


def test_without_replay_everything_is_domain(make_job) -> None:
    job = make_job("out", papers=PAPERS)
    assert mix(MixConfig(sequence_length=8), job, batch_tokens=16, num_batches=3).counts["domain_share"] == 1.0


def test_replay_only_is_a_valid_control(make_job) -> None:
    job = make_job("out", papers=PAPERS, web=WEB)
    manifest = mix(MixConfig(sequence_length=8, domain_share=0.0), job, batch_tokens=16, num_batches=3)
    assert manifest.counts["sources"]["papers"]["order_rows"] == 0
    assert set(source_of(Order.open(job.out).batch(0)).tolist()) == {1}


@pytest.mark.parametrize(
    ("sources", "share", "message"),
    [
        ({"papers": PAPERS}, 0.7, "30% of the tokens are asked from replay sources, and no source has the role replay"),
        ({"papers": PAPERS, "web": ("replay", [])}, None, "replay sources `web` hold no tokens"),
        ({"papers": ("domain", []), "web": WEB}, None, "domain sources `papers` hold no tokens"),
    ],
)
def test_a_role_without_tokens_is_refused(make_job, sources, share, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        mix(MixConfig(sequence_length=8, domain_share=share), make_job("o", **sources), batch_tokens=8, num_batches=1)
    assert "mix.domain_share" in str(caught.value.hint)


def test_one_empty_source_among_others_is_told(make_job, capsys) -> None:
    job = make_job("out", papers=PAPERS, empty=("domain", []))
    source = mix(MixConfig(sequence_length=8), job, batch_tokens=8, num_batches=3).counts["sources"]["empty"]
    assert (source["rows"], source["order_rows"], source["epochs"]) == (0, 0, 0.0)
    assert "source `empty` has no tokens" in capsys.readouterr().err


def test_too_many_epochs_are_refused_with_the_largest_run_that_fits(make_job) -> None:
    config = MixConfig(sequence_length=8, max_epochs=2)
    with pytest.raises(SourceError, match="`papers` has 80 tokens") as caught:
        mix(config, make_job("out", papers=PAPERS, web=WEB), batch_tokens=16, num_batches=500)
    hint = str(caught.value.hint)
    batches = int(hint.split("(")[1].split()[0])
    assert f"at most {batches * 2 * 8} ({batches} batches)" in hint
    assert "mix.max_epochs" in hint
    assert "mix.domain_share to at most" in hint
    mix(config, make_job("fits", papers=PAPERS, web=WEB), batch_tokens=16, num_batches=batches)
    with pytest.raises(SourceError):
        mix(config, make_job("more", papers=PAPERS, web=WEB), batch_tokens=16, num_batches=batches + 1)


def test_the_summary_names_shares_asked_and_realised(make_job, capsys) -> None:
    mix(MixConfig(sequence_length=8), make_job("out", papers=PAPERS, web=WEB), batch_tokens=16, num_batches=5)
    table = capsys.readouterr().err
    assert "papers" in table
    assert "70.00%" in table
