"""Items of files: what they mean, what is wrong with them, and how answers become scores."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepen.errors import DeepenError, RunError, SourceError
from deepen.evaluate.compare.summary_table import baseline_table
from deepen.evaluate.documents.material import Material
from deepen.evaluate.items.answering import Answering, is_right, until_stop
from deepen.evaluate.items.files import gold_of
from deepen.evaluate.items.generated import arithmetic_items, instruction_items
from deepen.evaluate.items.tables import (
    Kind,
    Outcome,
    compare_items,
    smallest,
    stratified,
    subset_of,
    summary,
    table_of,
)
from deepen.evaluate.probes.answers import ExactAnswer, Facts
from deepen.evaluate.probes.choices import Cloze, MultipleChoice
from deepen.model.generate import Decoding, generate
from deepen.model.loss.model import LossModel

MakeMaterial = Callable[..., Material]
QUESTIONS = [
    {"id": "a", "question": "the cat sat on the", "choices": ["mat", "body of blood"], "answer": 0},
    {"id": "b", "question": "once upon a", "choices": ["time", "fever", "rain"], "answer": "time"},
    {"id": "c", "question": "the heart pumps", "choices": ["clouds", "blood"], "answer": "B"},
]


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def naive_choice(model: LossModel, tokenizer: Any, prompt: str, choice: str) -> float:
    """Log-likelihood of a choice by one plain forward pass over everything."""
    before, whole = [0, *tokenizer.encode(prompt).ids], [0, *tokenizer.encode(prompt + choice).ids]
    whole = before + whole[len(before) :]
    with torch.no_grad():
        shares = model.model(input_ids=torch.tensor([whole])).logits[0].double().log_softmax(-1)
    return sum(float(shares[place - 1, whole[place]]) for place in range(len(before), len(whole)))


@pytest.mark.parametrize("normalise", ["none", "bytes", "characters", "tokens"])
def test_choices_are_scored_as_a_plain_forward_pass_does(
    model: LossModel, material: MakeMaterial, tmp_path: Path, normalise: str
) -> None:
    from deepen.evaluate.documents.windows import plain_encoder

    made = material(["x"])
    probe = MultipleChoice(path=lines(tmp_path / "q.jsonl", QUESTIONS), normalise=normalise)
    rows = probe.prepare(made)(model, None).to_pylist()
    encoder = plain_encoder(made.tokenizer)
    for row, question in zip(rows, QUESTIONS, strict=True):
        scores = [naive_choice(model, encoder, question["question"], " " + choice) for choice in question["choices"]]
        assert row["nll"] == pytest.approx([-score for score in scores], abs=1e-4)
        lengths = {"none": [1] * 9, "tokens": row["tokens"]}.get(normalise, [len(one) for one in question["choices"]])
        best = int(np.argmax([score / length for score, length in zip(scores, lengths, strict=False)]))
        assert row["answer"] == question["choices"][best]
        assert row["value"] == float(row["answer"] == row["gold"])


def test_batches_and_neighbours_do_not_change_an_answer(
    model: LossModel, material: MakeMaterial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = MultipleChoice(path=lines(tmp_path / "q.jsonl", QUESTIONS))
    together = probe.prepare(material(["x"]))(model, None).to_pylist()
    monkeypatch.setattr("deepen.evaluate.documents.windows._TOKENS_PER_BATCH", {"cpu": 1})
    alone = probe.prepare(material(["x"]))(model, None).to_pylist()
    assert [row["answer"] for row in alone] == [row["answer"] for row in together]
    for one, other in zip(alone, together, strict=True):
        assert one["nll"] == pytest.approx(other["nll"], rel=1e-6)


def test_bad_rows_stay_in_the_table_with_their_reasons(
    model: LossModel, material: MakeMaterial, tmp_path: Path
) -> None:
    bad = [
        *QUESTIONS, "{not json", [1, 2], {"id": "a", **{k: v for k, v in QUESTIONS[1].items() if k != "id"}},
        {"id": "d", "question": "why", "choices": ["so", "thus"], "answer": "because"},
        {"id": "e", "question": "why", "choices": ["so"], "answer": 0},
        {"id": "f", "choices": ["so", "thus"], "answer": 0},
        {"id": "g", "question": "why", "choices": ["so", " "], "answer": 0},
        {"id": "h", "question": "why", "choices": ["so", "thus"], "answer": 2},
        {"id": "j", "question": "why", "choices": ["so", "thus"], "answer": "ß"},
        {"id": "k", "question": "half of \ud83d", "choices": ["so", "thus"], "answer": 0},
        {"id": "\ud83d", "question": "why", "choices": ["so", "thus"], "answer": 0},
        '{"id": "l", "question": "why", "choices": %s}' % ("[" * 100_000 + "]" * 100_000),
        '{"id": "m", "question": "why", "choices": %s, "answer": 0}' % ("[" * 600 + "]" * 600),
        {"id": "i", "question": "fever " * 20, "choices": ["fever " * 80, "thus"], "answer": 1},
    ]  # fmt: skip
    table = MultipleChoice(path=lines(tmp_path / "q.jsonl", bad)).prepare(material(["x"]))(model, None)
    found = summary(table)
    assert (found["items"], found["used"]) == (17, 3)
    assert found["not_used"] == {
        "answer_not_among_choices": 3, "duplicate_id": 1, "empty_text": 1, "fewer_than_two_choices": 1,
        "missing_field": 1, "no_json": 3, "not_an_object": 1, "not_unicode": 2, "too_long_for_the_model": 1,
    }  # fmt: skip
    assert found["examples"]["no_json"] == ["line 4", "line 15", "line 16"]


def test_prompts_that_do_not_fit_are_counted(model: LossModel, material: MakeMaterial, tmp_path: Path) -> None:
    """The model has 64 positions; what is cut off its prompts is told."""
    rows = [{**QUESTIONS[0], "id": name, "question": "fever " * n} for name, n in (("short", 2), ("long", 80))]
    made, path = material(["x"]), lines(tmp_path / "q.jsonl", rows)
    choosing = MultipleChoice(path=path).prepare(made)(model, None)
    writing = ExactAnswer(path=path, max_tokens=4).prepare(made)(model, None)
    for table in (choosing, writing):
        cut = dict(zip(table["id"].to_pylist(), table["cut_tokens"].to_pylist(), strict=True))
        assert cut["short"] == 0 < cut["long"] and summary(table)["cut"] == 1 and summary(table)["used"] == 2
        said = baseline_table({"sources": {}, "probes": {"q": summary(table)}, "failed": {}})
        assert "q: 1 prompts are longer than the model's context" in said


@pytest.mark.parametrize("prompt", ["{question", "a } b", "{}", "{question:x}", "{question!r}"])
def test_a_prompt_that_names_no_fields_is_told_before_any_work(tmp_path: Path, prompt: str) -> None:
    probe = MultipleChoice(path=lines(tmp_path / "q.jsonl", QUESTIONS), prompt=prompt)
    (problem,) = probe.problems("evaluate.probes[0]")
    assert problem.path == "evaluate.probes[0].prompt"
    assert not probe.model_copy(update={"prompt": "{{x}} {question}"}).problems("p")


def test_a_file_without_usable_items_is_an_error_that_says_why(material: MakeMaterial, tmp_path: Path) -> None:
    for name, rows, reason in (("empty.jsonl", [], "empty"), ("bad.jsonl", [{"question": "?"}], "missing_field")):
        with pytest.raises(DeepenError, match=reason):
            MultipleChoice(path=lines(tmp_path / name, rows)).prepare(material(["x"]))
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 99)[:20])
    with pytest.raises(SourceError, match=r"torn\.jsonl\.gz"):
        MultipleChoice(path=str(tmp_path / "torn.jsonl.gz")).prepare(material(["x"]))


def test_files_are_read_as_they_were_published(tmp_path: Path) -> None:
    row = {"goal": "boil water", "sol1": "heat it", "sol2": "freeze it", "label": 1, "passages": ["one", "two"]}
    path = tmp_path / "piqa.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(row) + "\n").encode()))
    probe = MultipleChoice.model_validate(
        {"path": str(path), "prompt": "{passages}\n\nQ: {goal}\nA:", "choices": ["sol1", "sol2"], "answer": "label"}
    )
    (item,) = probe.items()
    assert (item.prompt, item.choices, item.gold) == ("one\n\ntwo\n\nQ: boil water\nA:", ("heat it", "freeze it"), 1)
    fixed = probe.model_copy(update={"options": ("yes", "no"), "answer": "label"})
    assert fixed.items()[0].choices == ("yes", "no")


def test_rows_without_an_id_are_called_after_their_line(tmp_path: Path) -> None:
    rows = [{**QUESTIONS[0], "id": None}, {**QUESTIONS[1], "id": None}]
    items = MultipleChoice(path=lines(tmp_path / "q.jsonl", rows)).items()
    assert [(item.id, item.reason) for item in items] == [("line 1", None), ("line 2", None)]


def test_examples_stand_before_every_question(tmp_path: Path) -> None:
    asked, shown = lines(tmp_path / "q.jsonl", QUESTIONS[:1]), lines(tmp_path / "shots.jsonl", QUESTIONS[1:])
    (item,) = MultipleChoice(path=asked, shots=2, shots_path=shown).items()
    assert item.prompt == "once upon a time\n\nthe heart pumps blood\n\nthe cat sat on the"
    with pytest.raises(DeepenError, match="2 usable examples, 3 are needed"):
        MultipleChoice(path=asked, shots=3, shots_path=shown).items()
    problems = MultipleChoice(path=asked, shots=1, shots_path=asked).problems("evaluate.probes[0]")
    assert [problem.path for problem in problems] == ["evaluate.probes[0].shots_path"]


def test_a_cloze_scores_what_stands_behind_the_blank(model: LossModel, material: MakeMaterial, tmp_path: Path) -> None:
    from deepen.evaluate.documents.windows import plain_encoder

    made, row = material(["x"]), {"text": "the _ sat on the mat", "choices": ["cat", "fever"], "answer": "cat"}
    path = lines(tmp_path / "c.jsonl", [row, {**row, "text": "no blank"}, {**row, "text": "_ and _"}])
    encoder = plain_encoder(made.tokenizer)
    filled = Cloze(path=path).prepare(made)(model, None).to_pylist()
    expected = [-naive_choice(model, encoder, "the", f" {choice} sat on the mat") for choice in row["choices"]]
    assert filled[0]["nll"] == pytest.approx(expected, abs=1e-4)
    assert [one["reason"] for one in filled] == [None, "not_one_blank", "not_one_blank"]
    rest = Cloze(path=path, scored="rest").prepare(made)(model, None).to_pylist()
    expected = [-naive_choice(model, encoder, f"the {choice}", " sat on the mat") for choice in row["choices"]]
    assert rest[0]["nll"] == pytest.approx(expected, abs=1e-4)


def greedy(model: LossModel, tokens: list[int], count: int) -> list[int]:
    """The plain way: all logits of the whole text again for every token."""
    written = list(tokens)
    for _ in range(count):
        with torch.no_grad():
            written.append(int(model.model(input_ids=torch.tensor([written])).logits[0, -1].argmax()))
    return written[len(tokens) :]


def test_generation_is_the_plain_greedy_one_in_any_company(model: LossModel) -> None:
    prompts = [[5, 9, 20], [7], [40, 41, 42, 43, 44, 45, 46, 47], [7, 8]]
    expected = [greedy(model, prompt, 6) for prompt in prompts]
    assert generate(model, prompts, Decoding(6)) == expected
    assert [generate(model, [prompt], Decoding(6))[0] for prompt in prompts] == expected
    end = expected[0][2]
    assert generate(model, prompts[:1], Decoding(6, end_ids=[end]))[0] == expected[0][: expected[0].index(end)]
    assert generate(model, prompts[:1], Decoding(6, is_done=lambda tokens: len(tokens) == 2))[0] == expected[0][:2]
    long = list(range(2, 90))
    assert generate(model, [long], Decoding(6))[0] == greedy(model, long[-58:], 6)


def test_sampling_depends_on_the_seed_alone(model: LossModel) -> None:
    sampled = [generate(model, [[5, 6]], Decoding(12, temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    torch.manual_seed(99)
    again = generate(model, [[5, 6]], Decoding(12, temperature=1.0, seed=1))
    assert sampled[0] == sampled[1] == again != sampled[2]


def test_likeliest_tokens_are_those_of_the_logits(model: LossModel) -> None:
    tokens_BT = torch.randint(0, 300, (3, 20), generator=torch.Generator().manual_seed(1))
    positions_BT = torch.arange(20).expand(3, 20)
    with torch.no_grad():
        expected = model.model(input_ids=tokens_BT).logits.argmax(-1)
    assert torch.equal(model.likeliest(tokens_BT, positions_BT), expected)


@pytest.mark.parametrize(
    ("answer", "accepted", "answering", "right"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], Answering(9, ()), True),
        ("The Eiffel Tower in Paris", ["eiffel tower"], Answering(9, ()), False),
        ("The Eiffel Tower in Paris", ["eiffel tower"], Answering(9, (), begins_with=True), True),
        ("Eiffel Towers", ["eiffel tower"], Answering(9, (), begins_with=True), False),
        ("so she has 1,250.0 apples", ["1250"], Answering(9, (), "last_number"), True),
        ("2 and 3 make 5", ["2"], Answering(9, (), "first_number"), True),
        ("2 and 3 make 5", ["2"], Answering(9, (), "last_number"), False),
        ("none", ["7"], Answering(9, (), "last_number"), False),
        ("", ["x"], Answering(9, ()), False),
        ("A", ["A"], Answering(9, ()), True),
        ("+.", ["+"], Answering(9, ()), False),
        ("+", ["+"], Answering(9, ()), True),
        ("", ["the"], Answering(9, ()), False),
        ("the", ["a"], Answering(9, ()), False),
        ("北京。", ["北京"], Answering(9, ()), True),
        ("北京是首都。", ["北京"], Answering(9, (), begins_with=True), True),
        ("दिल्ली।", ["दिल्ली"], Answering(9, ()), True),
        ("दिल्लीवाला", ["दिल्ली"], Answering(9, (), begins_with=True), False),
        ("it is 12345678901234", ["12345678901235"], Answering(9, (), "last_number"), False),
        ("it is -0.0", ["0"], Answering(9, (), "last_number"), True),
        ("100 of them", ["100.00"], Answering(9, (), "last_number"), True),
    ],
)
def test_answers_are_compared_after_normalisation(
    answer: str, accepted: list[str], answering: Answering, right: bool
) -> None:
    assert is_right(answer, accepted, answering) is right


def test_an_answer_ends_before_its_stop() -> None:
    assert until_stop("Paris\nQ: next", ("\n", "Q:")) == "Paris"
    assert until_stop("Paris", ()) == "Paris"


def test_written_answers_are_right_when_the_model_writes_them(
    model: LossModel, material: MakeMaterial, tmp_path: Path
) -> None:
    made = material(["x"])
    from deepen.evaluate.items.prompts import texts_of

    texts = texts_of(made)
    written = texts.decode(greedy(model, texts.encode("the cat"), 4))
    rows = [{"question": "the cat", "answer": [written, "zebra"]}, {"question": "the cat", "answer": "zebra"}]
    path = lines(tmp_path / "q.jsonl", rows)
    found = ExactAnswer(path=path, max_tokens=4, stop=("@@",)).prepare(made)(model, None).to_pylist()
    assert [row["value"] for row in found] == [1.0, 0.0] and found[0]["answer"] == written
    facts = Facts(path=path, prompt="{question}", answer="answer", max_tokens=4, stop=("@@",))
    assert [row["value"] for row in facts.prepare(made)(model, None).to_pylist()] == [1.0, 0.0]


def test_no_space_stands_before_a_chinese_answer(model: LossModel, material: MakeMaterial, tmp_path: Path) -> None:
    rows = [{"question": "床前明月", "answer": "光"}, {"question": "the cat", "answer": "sat"}]
    table = ExactAnswer(path=lines(tmp_path / "q.jsonl", rows), max_tokens=2).prepare(material(["x"]))(model, None)
    assert table["bytes"].to_pylist() == [[3], [4]]


def outcomes(values: dict[str, list[float | None]], gold: str = "") -> Any:
    return table_of(
        Outcome(f"{task}-{place}", task, str(place // 2), value=value, gold=gold)
        for task, found in values.items()
        for place, value in enumerate(found)
    )


def test_scores_are_accuracies_and_their_relative_change() -> None:
    base, model = outcomes({"exam": [1, 0, 1, 0] * 10}), outcomes({"exam": [1, 0, 0, 0] * 10})
    (score,) = compare_items(base, model, Kind("exam", "kept"), seed=1, resamples=500)
    assert (score.probe, score.baseline, score.value, score.items) == ("exam", 0.5, 0.25, 40)
    assert score.difference == pytest.approx(-0.5) and score.loss == pytest.approx(0.5)
    assert score.loss_interval is not None and 0 < score.loss_interval[0] < 0.5 < score.loss_interval[1]


def test_several_tasks_have_a_score_each_and_their_mean() -> None:
    base = outcomes({"x": [1, 1, 0, 0], "y": [1] * 20})
    model = outcomes({"x": [1, 1, 1, 1], "y": [1] * 10 + [0] * 10})
    scores = compare_items(base, model, Kind("exam", "new"), seed=1, resamples=200)
    assert [(one.probe, one.difference) for one in scores] == [("exam:x", 1.0), ("exam:y", -0.5), ("exam", 0.25)]


def test_a_base_that_knows_nothing_has_a_plain_difference() -> None:
    (score,) = compare_items(
        outcomes({"exam": [0, 0, 0, 0]}), outcomes({"exam": [1, 0, 1, 0]}), Kind("exam", "new"), seed=1, resamples=200
    )
    assert (score.difference, score.relative) == (0.5, False)


def test_a_task_that_the_base_knows_nothing_of_has_nothing_to_lose() -> None:
    base = outcomes({"x": [1, 1, 0, 0], "y": [0] * 8})
    model = outcomes({"x": [1, 0, 0, 0], "y": [1, 1] + [0] * 6})
    kept = compare_items(base, model, Kind("exam", "kept"), seed=1, resamples=200)
    assert [(one.probe, one.difference, one.relative, one.items) for one in kept] == [
        ("exam:x", -0.5, True, 4), ("exam:y", 0.25, False, 8), ("exam", -0.5, True, 4),
    ]  # fmt: skip
    new = compare_items(base, model, Kind("exam", "new"), seed=1, resamples=200)
    assert [(one.difference, one.relative) for one in new] == [(-0.25, False), (0.25, False), (0.0, False)]


def test_the_mean_of_tasks_about_the_same_people_is_not_surer_than_people_are_many() -> None:
    def table(of_person: list[float], shared: bool) -> Any:
        return table_of(
            Outcome(f"{task}-{place}", task, str(place) if shared else f"{task}{place}", value=value)
            for task in ("birthday", "school", "employer")
            for place, value in enumerate(of_person)
        )

    before, after = [1.0, 0.0] * 40, [1.0, 1.0, 0.0, 0.0] * 20
    widths = {}
    for shared in (True, False):
        tables = table(before, shared), table(after, shared)
        *tasks, mean = compare_items(*tables, Kind("facts", "new"), seed=1, resamples=2_000)
        widths[shared] = [one.interval[1] - one.interval[0] for one in (tasks[0], mean) if one.interval]
    assert widths[True][1] == pytest.approx(widths[True][0], rel=0.1)
    assert widths[False][1] == pytest.approx(widths[False][0] / 3**0.5, rel=0.1)


def test_a_model_without_a_number_has_no_score_and_other_items_are_refused() -> None:
    base = outcomes({"x": [1, 0], "y": [1, 0]})
    broken = outcomes({"x": [float("nan"), 0], "y": [1, 0]})
    assert [one.probe for one in compare_items(base, broken, Kind("e", "new"), seed=1, resamples=50)] == ["e:y"]
    with pytest.raises(RunError, match="not those that the base was measured on"):
        compare_items(base, outcomes({"x": [1, 0]}, gold="other"), Kind("e", "new"), seed=1, resamples=50)


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 50), min_size=1), st.integers(1, 300))
def test_strata_have_their_share(sizes: dict[str, int], total: int) -> None:
    shares = stratified(sizes, total)
    assert all(1 <= shares[name] <= size for name, size in sizes.items())
    assert sum(shares.values()) <= total + len(sizes)
    if total <= sum(sizes.values()):
        assert sum(shares.values()) >= min(total, len(sizes))


def test_subsets_do_not_depend_on_other_items() -> None:
    ids = [str(number) for number in range(50)]
    assert set(smallest(ids, 5)) <= set(smallest(ids[:40], 5)) | set(ids[40:])
    chosen = subset_of(outcomes({"x": [1] * 30, "y": [None] * 5 + [0] * 10}), num_items=8)
    assert [len(chosen[task]) for task in ("x", "y")] == [6, 2]


@pytest.mark.parametrize(("answer", "index"), [(1, 1), ("b", 1), ("B", 1), ("1", 1), ("no", 1), ("yes", 0)])
def test_the_right_choice_is_an_index_a_letter_or_a_text(answer: Any, index: int) -> None:
    assert gold_of(answer, ["yes", "no"]) == index


def test_generated_items_are_right_varied_and_the_same_every_time() -> None:
    sums = arithmetic_items(300, 17)
    assert sums == arithmetic_items(300, 17) != arithmetic_items(300, 18)
    assert len({item.id for item in sums}) == 300 and {item.task for item in sums} == {
        "addition", "subtraction", "multiplication",
    }  # fmt: skip
    for item in sums:
        question = item.prompt.splitlines()[-1].removesuffix("=")
        assert item.answers == (str(eval(question)),) and int(item.answers[0]) >= 0
    instructions = instruction_items(80, 17)
    assert len({item.prompt for item in instructions}) > 60
    assert is_right(" RIVER", ["RIVER"], Answering(9, (), to_the_letter=True))
    assert not is_right("river", ["RIVER"], Answering(9, (), to_the_letter=True))


def test_a_panel_is_measured_beside_the_probes(model: LossModel, material: MakeMaterial) -> None:
    from deepen.evaluate.config import EvaluateConfig

    config = EvaluateConfig(panel="offline")
    assert [probe.label for probe in config.all_probes] == ["held_out", "arithmetic", "instructions"]
    assert [probe.label for probe in EvaluateConfig(panel="default").all_probes][1:4] == [
        "mmlu", "hellaswag", "arc_challenge",
    ]  # fmt: skip
    made = replace(material(["x"]), only=frozenset({"0:capitals", "1:repeat"}))
    found = config.all_probes[2].prepare(made)(model, None).to_pylist()
    assert [row["gold"] for row in found] == [item.answers[0] for item in instruction_items(2, 17)]


def test_no_logits_of_more_than_the_last_position_are_made(model: LossModel) -> None:
    seen: list[int] = []
    head = model.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _module, given, _result: seen.append(given[0].shape[1]))
    generate(model, [[5] * 40, [7] * 12], Decoding(3))
    hook.remove()
    assert seen == [1, 1, 1]
