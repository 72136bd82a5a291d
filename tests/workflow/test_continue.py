"""More tokens for a finished run: the result must equal one uninterrupted longer run."""

import json

import pytest
from safetensors.numpy import load_file

from deepen.errors import RunError
from deepen.recipe.reading import load
from deepen.workflow.run import RunOptions, run_pipeline


def run(recipe, name, *sets, **options):
    loaded = load(recipe, None, ["machine.workers=1", "machine.compute.threads=1", *sets])
    directory = recipe.parent / "runs" / name
    return run_pipeline(loaded.recipe, loaded.machine, directory, RunOptions(offline=True, **options))


def weights(artifacts):
    newest = sorted((artifacts["train"].path / "checkpoints").iterdir())[-1]
    return newest.name, {key: tensor.tobytes() for key, tensor in load_file(newest / "model.safetensors").items()}


def test_a_continued_run_equals_one_uninterrupted_longer_run(tiny):
    longer = "train.tokens=3840"
    run(tiny, "short")
    with pytest.raises(RunError, match="num_batches: 10 -> 20") as caught:
        run(tiny, "short", longer)
    assert "--continue" in caught.value.hint
    continued = run(tiny, "short", longer, extend=True)
    at_once = run(tiny, "long", longer)
    assert weights(continued) == weights(at_once)
    assert weights(continued)[0] == "step-000020"
    lines = [json.loads(line) for line in (continued["train"].path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in lines] == list(range(1, 21))
    assert continued["export"].path.is_dir()
    assert run(tiny, "short", longer)["train"].fingerprint == continued["train"].fingerprint


@pytest.mark.parametrize(
    "schedule",
    ["{use: constant, warmup: 2 steps}", "{use: infinite, warmup: 2 steps, cooldown: 4 steps, decay: 2 steps}"],
)
def test_every_extendable_schedule_continues_exactly(tiny, schedule):
    sets = [f"train.schedule={schedule}"]
    run(tiny, "short", *sets, last="train")
    longer = [*sets, "train.tokens=3840"]
    continued = run(tiny, "short", *longer, extend=True, last="train")
    assert weights(continued) == weights(run(tiny, "long", *longer, last="train"))


def test_a_finished_cosine_run_is_not_continued(tiny):
    cosine = "train.schedule={use: cosine}"
    run(tiny, "short", cosine, last="train")
    with pytest.raises(RunError, match="already decayed"):
        run(tiny, "short", cosine, "train.tokens=3840", extend=True, last="train")


def test_continue_refuses_other_changes(tiny):
    run(tiny, "short", last="train")
    with pytest.raises(RunError, match="learning_rate"):
        run(tiny, "short", "train.tokens=3840", "train.learning_rate=1e-3", extend=True, last="train")


def test_a_chain_starts_from_what_the_earlier_run_exported(tiny):
    first = run(tiny, "tiny")
    chained = ["name=second", f"base={{run: {tiny.parent}/runs/tiny}}", "tokenize.vocabulary=keep"]
    second = run(tiny, "second", *chained)
    assert second["baseline"].manifest.inputs["base"].fingerprint == first["export"].fingerprint
    assert second["ingest"].path == first["ingest"].path.resolve()
    sources = second["baseline"].counts["sources"]
    trained = first["evaluate"].counts["checkpoints"][-1]
    assert trained["step"] == 10
    assert all(source["bits_per_byte"] > 0 for source in sources.values())
