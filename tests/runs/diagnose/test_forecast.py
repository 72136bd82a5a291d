"""The forecast of another quarter of a run, from tables whose law is known."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deepen.evaluate.documents.likelihoods import SCHEMA
from deepen.runs.diagnose.forecast import forecast
from deepen.train.schedule.schedules import Constant, Cosine, WarmupStableDecay

STEPS, DOCUMENTS = 200, 150


def metrics(schedule):
    shape = schedule.shape(total_steps=STEPS, tokens_per_step=1)
    rates = [1e-3 * schedule.multiplier(step, shape) for step in range(STEPS)]
    return [{"step": step + 1, "learning_rate": rate, "skipped": None} for step, rate in enumerate(rates)]


def tables(folder, records, *, slope, decay, every=10, noise=0.002, source="papers", lacking=()):
    """Likelihoods of documents of very different lengths that follow the law, with noise."""
    generator = np.random.default_rng(3)
    lengths = generator.lognormal(5, 1, DOCUMENTS)
    rates = np.array([one["learning_rate"] for one in records])
    found = {}
    for step in range(every, STEPS + 1, every):
        law = -slope * np.log(rates[:step].sum()) + decay * rates[step - 1] / rates.max()
        nll = lengths * np.exp(law) * (1 + generator.normal(0, noise, DOCUMENTS))
        rows = [
            {"id": f"{i:04d}", "source": source, "bytes": 9, "tokens": 3, "reason": None,
             "nll": None if (step, i) in lacking else nll[i]}
            for i in range(DOCUMENTS)
        ]  # fmt: skip
        found[step] = folder / f"step-{step:06d}.parquet"
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), found[step])
    return found


@pytest.mark.parametrize("schedule", [Constant(), Cosine(), Cosine(floor=0.0), WarmupStableDecay()])
@pytest.mark.parametrize("slope", [0.0, 0.02, 0.2])
def test_the_slope_is_found_whatever_the_decay_brings(tmp_path, schedule, slope):
    """Even where the end of the run is flat (a cosine to zero), and with documents of very different lengths."""
    records = metrics(schedule)
    found = forecast(tables(tmp_path, records, slope=slope, decay=0.05), records, ["papers"], seed=1)
    true = 1 - 1.25**-slope
    assert found.interval[0] - 0.001 <= true <= found.interval[1] + 0.001
    assert found.interval[1] - found.interval[0] < 0.01
    assert min(found.steps) >= 30, "the beginning of the run has no say"


def test_sources_count_alike(tmp_path):
    records = metrics(Constant())
    both = tables(tmp_path, records, slope=0.1, decay=0.0)
    (tmp_path / "b").mkdir()
    other = tables(tmp_path / "b", records, slope=0.3, decay=0.0, source="notes")
    for step, path in both.items():
        pq.write_table(pa.concat_tables([pq.read_table(path), pq.read_table(other[step])]), path)
    found = forecast(both, records, ["papers", "notes"], seed=1)
    assert found.gain == pytest.approx(1 - 1.25**-0.2, abs=0.003)


def test_what_cannot_be_told_is_not_forecast(tmp_path):
    records = metrics(Cosine())
    known = tables(tmp_path, records, slope=0.1, decay=0.05)
    assert forecast(known, records, ["papers"], seed=1) is not None
    assert forecast({step: known[step] for step in (100, 150, 200)}, records, ["papers"], seed=1) is None
    assert forecast(known, [*records, {"step": STEPS + 1, "learning_rate": 1e-3}], ["papers"], seed=1) is None
    assert forecast(known, records, ["papers", "notes"], seed=1) is None
    assert forecast({}, [], ["papers"], seed=1) is None
    constant = metrics(Constant())
    assert forecast({step: known[step] for step in (100, 200)}, constant, ["papers"], seed=1) is not None


def test_a_document_without_a_likelihood_is_left_out_at_every_checkpoint_or_nothing_is_said(tmp_path):
    records = metrics(Constant())
    never = {(step, 5) for step in range(STEPS + 1)}
    assert forecast(tables(tmp_path, records, slope=0.1, decay=0, lacking=never), records, ["papers"], seed=1)
    once = tables(tmp_path, records, slope=0.1, decay=0, lacking={(200, 5)})
    assert forecast(once, records, ["papers"], seed=1) is None


def test_skipped_steps_are_no_time(tmp_path):
    records = metrics(Constant())
    known = tables(tmp_path, records, slope=0.2, decay=0.0, every=50)
    for record in records[150:]:
        record["skipped"] = "spike"
    pq.write_table(pq.read_table(known[150]), known[200])
    found = forecast(known, records, ["papers"], seed=1)
    assert found.gain == pytest.approx(1 - 1.25**-0.2, abs=0.005)
