"""The stage on documents with turns: a mask beside the shard, what was refused in the counts, the same bytes again."""

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from deepen.errors import DeepenError, SourceError
from deepen.formats.documents.document_ids import read_document_ids
from deepen.formats.documents.documents import Document, Span, document_id, roles_in, write_documents
from deepen.formats.files.atomic import damage
from deepen.formats.manifest import open_artifact
from deepen.formats.tokens.megatron import IndexedDataset
from deepen.formats.tokens.trained import TrainedMask, trained_path
from deepen.tokenize.config import TokenizeConfig
from deepen.tokenize.conversations.masked import MaskCounts, TurnEncoder
from deepen.tokenize.conversations.templates import BUILT_IN, Template
from deepen.tokenize.encoder import Encoder
from deepen.tokenize.stage import tokenize
from deepen.tokenize.vocabulary.tokenizer import read_vocabulary
from tests.tokenize.test_stage import files, stop_after_one_part

TALK = (Span("user", 0, 4), Span("assistant", 6, 13))
DOCUMENTS = [("why?\n\nbecause", TALK), ("plain words", None), ("Q: A", (Span("prompt", 0, 3), Span("target", 3, 4)))]
ONCE = "{% for m in messages %}{{ m['content'] if m['role'] != 'tool' else raise_exception('no tools') }}{% endfor %}"


@pytest.fixture
def chats(make_job, tmp_path: Path):
    """``chats(out)``: a job over a source with turns in two files, and one of plain text."""

    def chats(out: str, *more, workers: int = 1):
        job = make_job(out, chat=("domain", [["x"], ["x"]]), notes=("replay", [["plain"]]), workers=workers)
        for number, texts in enumerate(([*DOCUMENTS, *more], DOCUMENTS[1:2])):
            documents = [
                Document(document_id("chat", f"{number}/{k}"), t, "chat", spans=s) for k, (t, s) in enumerate(texts)
            ]
            path = tmp_path / f"curate/documents/chat-{number:05d}.parquet"
            write_documents(path, documents, tmp_path / "curate")
        assert roles_in(path) == set()
        return job

    return chats


def shown(out: Path) -> list[str]:
    """Each document of the chat source, with masked tokens as underscores."""
    dataset, mask = IndexedDataset.open(out / "shards/chat"), TrainedMask.open(out / "shards/chat")
    tokenizer = Tokenizer.from_file(str(out / "tokenizer/tokenizer.json"))
    texts = []
    for sequence in range(len(dataset)):
        flags = mask.read(sequence, 0, len(dataset[sequence]))
        tokens = [tokenizer.decode([token], skip_special_tokens=False) for token in dataset[sequence].tolist()]
        texts.append("".join(t if flag else "_" * len(t) for t, flag in zip(tokens, flags, strict=True)))
    return texts


END = "<|endoftext|>"
SHOWN = [f"{'_' * 22} because{END}", f"plain words{END}", f"___A{END}", f"plain words{END}"]


def test_answers_alone_are_targets(chats, byte_level) -> None:
    job = chats("out")
    counts = tokenize(TokenizeConfig(), job, base=byte_level).counts
    assert shown(job.out) == SHOWN
    chat = counts["sources"]["chat"]
    assert (chat["documents"], chat["conversations"], chat["refused"]) == (4, 2, {})
    assert chat["target_bytes"] == len("becauseAplain wordsplain words")
    assert chat["targets"] == sum(trained_path(job.out / "shards/chat").read_bytes()) < chat["tokens"]
    assert counts["sources"]["notes"]["targets"] == counts["sources"]["notes"]["tokens"]
    assert not trained_path(job.out / "shards/notes").exists()


def test_every_file_is_listed_and_any_number_of_workers_gives_the_same(chats, byte_level) -> None:
    jobs = [chats(f"out{workers}", workers=workers) for workers in (1, 2)]
    for job in jobs:
        tokenize(TokenizeConfig(), job, base=byte_level)
    assert files(jobs[0].out) == files(jobs[1].out)
    manifest = open_artifact(jobs[0].out).manifest
    assert {entry.path for entry in manifest.files} == set(files(jobs[0].out)) >= {"tokenizer/chat_template.jinja"}
    assert not any(damage(entry, jobs[0].out) for entry in manifest.files)


def test_what_the_template_refuses_is_counted_and_the_rest_goes_on(chats, byte_level, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(ONCE)
    tool = ("a\n\nb\n\nc", (Span("user", 0, 1), Span("tool", 3, 4), Span("assistant", 6, 7)))
    job = chats("out", tool)
    counts = tokenize(TokenizeConfig(template=str(tmp_path / "own.jinja")), job, base=byte_level).counts["sources"][
        "chat"
    ]
    assert (counts["documents"], counts["refused"]) == (4, {"template_refuses": 1})
    assert counts["refused_because"] == {"template_refuses": "no tools"}
    assert len(read_document_ids(job.out / "documents/chat.npy")) == 4
    assert shown(job.out)[0] == f"____because{END}"


def test_without_a_template_turns_stay_as_they_are(chats, byte_level) -> None:
    job = chats("out")
    tokenize(TokenizeConfig(template="none"), job, base=byte_level)
    assert shown(job.out) == [f"______because{END}", *SHOWN[1:]]
    assert not (job.out / "tokenizer/chat_template.jinja").exists()


def test_a_template_that_cannot_write_an_answer_stops_the_stage(chats, byte_level, tmp_path: Path) -> None:
    (tmp_path / "bad.jinja").write_text("{{ raise_exception('never') }}")
    with pytest.raises(DeepenError, match="never"):
        tokenize(TokenizeConfig(template=str(tmp_path / "bad.jinja")), chats("out"), base=byte_level)


def test_a_source_that_is_refused_whole_stops_the_stage(make_job, byte_level, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(ONCE)
    job = make_job("out", chat=("domain", [["x"]]), notes=("replay", [["plain"]]))
    spans = (Span("user", 0, 1), Span("tool", 3, 4), Span("assistant", 6, 7))
    documents = [Document(document_id("chat", "0"), "a\n\nb\n\nc", "chat", spans=spans)]
    write_documents(tmp_path / "curate/documents/chat-00000.parquet", documents, tmp_path / "curate")
    with pytest.raises(SourceError, match="`chat`: no document .*no tools"):
        tokenize(TokenizeConfig(template=str(tmp_path / "own.jinja")), job, base=byte_level)


def test_ids_that_differ_from_the_reference_are_noticed(chats, byte_level, other_ids, monkeypatch, capsys) -> None:
    monkeypatch.setattr("deepen.tokenize.encoder.choose_encoder", lambda *_: ("gigatoken", ""))
    monkeypatch.setattr("deepen.tokenize.encoder.choose_boundary", lambda *_: "none")
    monkeypatch.setattr("deepen.tokenize.encoder._open_gigatoken", lambda _: other_ids)
    job = chats("wrong")
    assert tokenize(TokenizeConfig(), job, base=byte_level).counts["encoder"] == "tokenizers"
    assert "encoding all again" in capsys.readouterr().err
    assert shown(job.out) == SHOWN


def test_a_stop_is_resumed_to_the_same_bytes(chats, byte_level, monkeypatch) -> None:
    tokenize(TokenizeConfig(), chats("whole"), base=byte_level)
    job = chats("stopped")
    with monkeypatch.context() as patch:
        patch.setattr("deepen.tokenize.parts.encode_part", stop_after_one_part("encode_part"))
        with pytest.raises(KeyboardInterrupt):
            tokenize(TokenizeConfig(), job, base=byte_level)
    (job.out / "shards/chat.trained.tmp").write_bytes(b"half")
    tokenize(TokenizeConfig(), job, base=byte_level)
    assert files(job.out) == files(chats("whole").out)


CONTENT = st.text(alphabet=st.sampled_from("ab \n\té中<|/s>"), min_size=1, max_size=10)


@pytest.mark.parametrize("base", ["byte_level", "sentencepiece_like"])
@given(contents=st.lists(CONTENT, min_size=2, max_size=5))
def test_whatever_is_said_the_targets_are_the_answers(base, contents, request) -> None:
    folder = request.getfixturevalue(base).path
    encoder = turn_encoder(folder)
    roles = [("user", "assistant")[number % 2] for number in range(len(contents))]
    text, spans = "\n\n".join(contents), []
    for role, content in zip(roles, contents, strict=True):
        begin = spans[-1]["end"] + 2 if spans else 0
        spans.append({"role": role, "begin": begin, "end": begin + len(content)})
    laid = encoder.encode([text], [spans], MaskCounts())
    assert laid.written.all()
    encoder.check(text, spans, laid.tokens, laid.flags)
    control = set(read_vocabulary(folder).control)
    answers = [content for role, content in zip(roles, contents, strict=True) if role == "assistant"]
    ends = [number for number in laid.tokens.tolist() if number in control]
    assert len(ends) == len(answers) - (roles[-1] == "assistant")


@cache
def turn_encoder(folder: Path) -> TurnEncoder:
    vocabulary = read_vocabulary(folder)
    end = Tokenizer.from_file(str(folder / "tokenizer.json")).id_to_token(vocabulary.end_of_document_id)
    template = Template(BUILT_IN, (("eos_token", end),))
    encoder = Encoder(folder, name="tokenizers", control=vocabulary.control, boundary="none")
    return TurnEncoder(encoder, folder, vocabulary, template)
