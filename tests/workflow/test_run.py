import json
import shutil

import pytest

from deepen.errors import RunError
from deepen.formats.manifest import open_artifact
from deepen.formats.replaced import recover_swap
from deepen.recipe.reading import load
from deepen.runs.lineage import remove, status
from deepen.workflow.run import RunOptions, run_pipeline
from deepen.workflow.stages import STAGES
from tests.tiny_runs import sentences, write_jsonl

UNTIL_MIX = RunOptions(last="mix", offline=True)


def run(recipe, *sets, options=UNTIL_MIX, name=None):
    loaded = load(recipe, None, ["machine.workers=1", *sets])
    return run_pipeline(loaded.recipe, loaded.machine, recipe.parent / "runs" / (name or loaded.recipe.name), options)


def test_finished_stages_are_not_run_again(tiny, capsys):
    first = run(tiny)
    times = {name: artifact.manifest.finished for name, artifact in first.items()}
    capsys.readouterr()
    again = run(tiny)
    assert {name: artifact.manifest.finished for name, artifact in again.items()} == times
    assert capsys.readouterr().err.count("up to date") == 4


def test_a_changed_setting_stops_the_run_and_is_named(tiny):
    run(tiny)
    with pytest.raises(RunError, match=r"mix.domain_share: 0.6 -> 0.5") as caught:
        run(tiny, "mix.domain_share=0.5")
    assert "--redo" in caught.value.hint


def test_a_changed_source_stops_the_run_and_redo_makes_anew_what_depends_on_it(tiny):
    before = run(tiny)
    write_jsonl(tiny.parent / "prose.jsonl", sentences("prose", 61))
    with pytest.raises(RunError, match="input source:prose: has other contents"):
        run(tiny)
    after = run(tiny, options=RunOptions(last="mix", redo=True, offline=True))
    assert after["ingest"].counts["sources"]["prose"]["documents"] == 61
    assert all(after[name].fingerprint != before[name].fingerprint for name in before)
    assert not list((tiny.parent / "runs" / "tiny").glob("*.redo"))


def test_a_source_that_is_added_is_the_only_one_that_is_read(tiny, capsys):
    run(tiny)
    write_jsonl(tiny.parent / "more.jsonl", sentences("more", 40))
    text = tiny.read_text()
    added = f"    - {{name: more, role: replay, path: {tiny.parent}/more.jsonl}}\ncurate:"
    tiny.write_text(text.replace("curate:", added))
    capsys.readouterr()
    after = run(tiny, options=RunOptions(last="mix", redo=True, offline=True))
    assert capsys.readouterr().err.count("is as it was") == 3
    (tiny.parent / "elsewhere").mkdir()
    loaded = load(tiny, None, ["machine.workers=1"])
    alone = run_pipeline(loaded.recipe, loaded.machine, tiny.parent / "elsewhere" / "tiny", UNTIL_MIX)
    assert alone["ingest"].manifest.files == after["ingest"].manifest.files
    assert alone["ingest"].counts == after["ingest"].counts


def test_another_run_refers_to_equal_work_and_keeps_it_from_being_removed(tiny):
    first = run(tiny)
    second = run(tiny, "mix.domain_share=0.5", name="second")
    assert second["tokenize"].path == first["tokenize"].path.resolve()
    assert [row.state for row in status(tiny.parent / "runs" / "second")][:4] == ["referenced"] * 3 + ["finished"]
    with pytest.raises(RunError, match="referred to by"):
        remove(tiny.parent / "runs" / "tiny")
    with pytest.raises(RunError, match="tokenize` is referred to by"):
        run(tiny, "tokenize.vocabulary.train=300", options=RunOptions(last="mix", redo=True, offline=True))
    remove(tiny.parent / "runs" / "second")
    remove(tiny.parent / "runs" / "tiny")
    assert [path.name for path in (tiny.parent / "runs").iterdir() if path.is_dir()] == []


def test_from_needs_what_comes_before(tiny):
    with pytest.raises(RunError, match="--from mix: the stage `ingest`"):
        run(tiny, options=RunOptions(first="mix", last="mix", offline=True))


@pytest.mark.parametrize("swapped_in", [True, False])
def test_an_interrupted_swap_is_finished_or_undone(tiny, swapped_in):
    mix = run(tiny)["mix"].path
    shutil.copytree(mix, mix.with_name("mix.redo"))
    if not swapped_in:
        (mix.with_name("mix.redo") / "manifest.json").unlink()
    mix.rename(mix.with_name("mix.old"))
    recover_swap(mix)
    assert open_artifact(mix) is not None
    assert not mix.with_name("mix.old").exists()


def test_a_stage_is_given_a_directory_that_only_its_manifest_makes_finished(tiny):
    mix = run(tiny)["mix"].path
    manifest = json.loads((mix / "manifest.json").read_text())
    unfinished = {key: manifest[key] for key in ("stage", "format", "fingerprint", "config", "inputs", "started")}
    (mix / "manifest.json").unlink()
    (mix / "unfinished.json").write_text(json.dumps(unfinished))
    assert status(mix.parent)[list(STAGES).index("mix")].state == "unfinished"
    assert run(tiny)["mix"].fingerprint == manifest["fingerprint"]
    assert not (mix / "unfinished.json").exists()
