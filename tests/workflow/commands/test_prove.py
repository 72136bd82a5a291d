"""`deepen prove` holds on a sound run and finds faults that are planted one by one."""

import shutil
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models

from deepen.recipe.reading import load
from deepen.train.starting import proofs as train_proofs
from deepen.workflow.commands import prove as proving
from deepen.workflow.inputs.find import resolve_setup
from deepen.workflow.run import RunOptions, run_pipeline
from tests.workflow.test_continue import run


@pytest.fixture(scope="module")
def chained(tmp_path_factory):
    """A recipe on a base with a folder, whose rows hold many documents, with its data stages done."""
    from tests.tiny_runs import TINY, sentences, write_jsonl

    root = tmp_path_factory.mktemp("prove")
    for name in ("code", "prose", "other"):
        write_jsonl(root / f"{name}.jsonl", (text[:60] for text in sentences(name, 80)))
    recipe = root / "recipe.yaml"
    recipe.write_text(TINY.format(root=root))
    run(recipe, "base")
    recipe.write_text(
        recipe.read_text()
        .replace("name: tiny", "name: chained")
        .replace("base: {init: random, hidden_size: 32, layers: 2, heads: 2, intermediate_size: 64, max_length: 32}",
                 f"base: {{run: {root}/runs/base}}")
        .replace("vocabulary: {train: 400}", "vocabulary: keep")
    )  # fmt: skip
    loaded = load(recipe, None, ["machine.workers=1", "machine.compute.threads=1"])
    directory = root / "runs/chained"
    done = run_pipeline(loaded.recipe, loaded.machine, directory, RunOptions(last="mix", offline=True))
    return resolve_setup(loaded.recipe, loaded.machine, directory, offline=True), done


def found(chained, tmp_path, plant=lambda run: run):
    setup, done = chained
    return {
        proof.name: proof.passed
        for proof in proving.proofs(setup, done, lambda: plant(proving._prepare(setup, done, tmp_path)))
    }


def test_all_proofs_hold_on_a_sound_run(chained, tmp_path):
    assert set(found(chained, tmp_path).values()) == {True} and len(found(chained, tmp_path)) == 6


def test_an_all_ones_attention_mask_is_found(chained, tmp_path):
    def plant(run):
        body = run.trainee.model.model.base_model
        forward = body.forward

        def masked(input_ids, **values):
            return forward(input_ids=input_ids, **(values | {"attention_mask": torch.ones_like(input_ids)}))

        body.forward = masked
        return run

    results = found(chained, tmp_path, plant)
    assert results["packed equals separate"] is False and results["no attention leak"] is False


def test_a_wrong_tokenizer_is_found(chained, tmp_path):
    setup, done = chained
    other = tmp_path / "other-base"
    shutil.copytree(setup.base.path, other)
    tokenizer = Tokenizer.from_file(str(other / "tokenizer.json"))
    tokenizer.model = models.BPE(vocab=tokenizer.get_vocab(), merges=[])
    tokenizer.save(str(other / "tokenizer.json"))
    swapped = replace(setup, base=replace(setup.base, path=other))
    assert found((swapped, done), tmp_path)["first loss is the base's"] is False


def test_other_weights_than_the_base_has_are_found(chained, tmp_path):
    def plant(run):
        with torch.no_grad():
            run.trainee.model.model.get_output_embeddings().weight.mul_(1.05)
        return run

    assert found(chained, tmp_path, plant)["first loss is the base's"] is False


def test_unscaled_accumulation_is_found(chained, tmp_path):
    def plant(run):
        forward = run.trainee.model.forward

        def mean_of_each(tokens_BT, labels_BT, positions_BT):  # as if each micro-batch were averaged by itself
            total, nll_BT = forward(tokens_BT, labels_BT, positions_BT)
            return total / int((labels_BT != -100).sum()) * 100, nll_BT

        run.trainee.model.forward = mean_of_each
        return run

    assert found(chained, tmp_path, plant)["accumulation changes nothing"] is False


def test_a_checkpoint_without_optimizer_state_is_found(chained, tmp_path, monkeypatch):
    load_checkpoint = train_proofs.load_checkpoint

    def forgetful(info, model, optimizer):
        state = load_checkpoint(info, model, optimizer)
        optimizer.state.clear()
        return state

    monkeypatch.setattr(train_proofs, "load_checkpoint", forgetful)
    assert found(chained, tmp_path)["save, stop and resume"] is False
