"""Answers and their end-of-turn tokens are learned, nothing else; and no turn can end itself."""

import json
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer

from deepen.tokenize.conversations import masked
from deepen.tokenize.conversations.masked import MaskCounts, TurnEncoder, frame_flags
from deepen.tokenize.conversations.templates import BUILT_IN, Template, choose_template
from deepen.tokenize.encoder import Encoder
from deepen.tokenize.parts import frame
from deepen.tokenize.vocabulary.tokenizer import read_vocabulary

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GENERATION = CHATML.replace("{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}", (
    "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
))  # fmt: skip
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + m['content'].strip() }}"
    "{{ ' [/INST]' }}{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{% for m in messages %}"
    "{% set c = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.first %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
STYLES = [
    # tokenizer, template, what is learned of the talk below (without the end of the document)
    ("qwen2", None, "because<|im_end|>yes, \nreally"),
    ("qwen2", CHATML, "because<|im_end|>yes, \nreally"),
    ("qwen2", GENERATION, "because<|im_end|>yes, \nreally"),
    ("llama3", LLAMA_3, "because<|eot_id|>yes, \nreally<|eot_id|>"),
    ("llama2", LLAMA_2, "because </s> yes, \nreally "),
    ("mistral_v1", MISTRAL, "because</s> yes, \nreally"),
    ("gpt2", BUILT_IN, " because<|endoftext|> yes, \nreally"),
]  # fmt: skip
TALK = [
    ("user", "why?"),
    ("assistant", "because"),
    ("user", "<|im_end|></s><|eot_id|> sure?"),
    ("assistant", "yes, \nreally"),
]


def talk(turns):
    text = "\n\n".join(content for _, content in turns)
    at, spans = 0, []
    for role, content in turns:
        spans.append({"role": role, "begin": at, "end": at + len(content)})
        at += len(content) + 2
    return text, spans


@pytest.fixture(scope="session")
def real(kept):
    """``real(name)``: folder and vocabulary of a real tokenizer, as the stage writes them."""
    read = cache(read_vocabulary)
    return lambda name: (kept(name), read(kept(name)))


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """What lies in the folders of ``real`` does not change, so nothing of it is read more than once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masked, "Tokenizer", SimpleNamespace(from_file=cache(Tokenizer.from_file)))
        yield


template_of = cache(lambda folder: choose_template("auto", folder)[0])
encoder_of = cache(lambda folder, name, control: Encoder(folder, name=name, control=control, boundary="none"))


class Bench:
    """A turn encoder with its tokenizer, to look at what it makes."""

    def __init__(self, folder, vocabulary, source, name="tokenizers"):
        self.template = template_of(folder)
        if source is not None:
            self.template = Template(source, self.template.tokens)
        self.vocabulary, self.counts = vocabulary, MaskCounts()
        self.reader = masked.Tokenizer.from_file(str(folder / "tokenizer.json"))
        encoder = encoder_of(folder, name, tuple(vocabulary.control))
        self.encoder = TurnEncoder(encoder, folder, vocabulary, self.template)

    def encode(self, *documents):
        self.laid = self.encoder.encode(*zip(*documents, strict=True), self.counts)
        framed, lengths = frame(self.laid.tokens, self.laid.lengths, self.vocabulary)
        flags = frame_flags(self.laid, has_begin=self.vocabulary.begin_of_document_id is not None)
        cuts = lengths.cumsum()[:-1]
        return list(zip(_split(framed, cuts), _split(flags, cuts), strict=True))

    def learned(self, ids, flags):
        return self.reader.decode(
            [number for number, flag in zip(ids, flags, strict=True) if flag], skip_special_tokens=False
        )


def _split(array, cuts):
    return [part.tolist() for part in np.split(array, cuts)]


@pytest.mark.parametrize(("name", "source", "learned"), STYLES)
def test_answers_and_their_ends_are_learned(real, name, source, learned):
    bench = Bench(*real(name), source)
    text, spans = talk(TALK)
    ((ids, flags),) = bench.encode((text, spans))
    assert ids[-1] == bench.vocabulary.end_of_document_id and flags[-1] == 1
    assert bench.learned(ids[:-1], flags[:-1]).strip() == learned.strip()
    bench.encoder.check(text, spans, bench.laid.tokens, bench.laid.flags)


@pytest.mark.parametrize(("name", "source", "_"), STYLES)
def test_ids_are_those_of_the_template_and_the_begin_token_is_there_once(real, name, source, _):
    bench = Bench(*real(name), source)
    turns = [("user", "why?"), ("assistant", "because")]
    ((ids, _flags),) = bench.encode(talk(turns))
    expected = bench.reader.encode(bench.template.render(turns).rstrip("\n"), add_special_tokens=False).ids
    begin, end = bench.vocabulary.begin_of_document_id, bench.vocabulary.end_of_document_id
    expected = expected if begin is None or expected[0] == begin else [begin, *expected]
    assert ids == (expected if expected[-1] == end else [*expected, end])


@pytest.mark.parametrize("name", ["qwen2", "llama2", "llama3", "mistral_v1", "gpt2"])
def test_a_turn_that_spells_a_mark_stays_text(real, name):
    folder, vocabulary = real(name)
    bench = Bench(folder, vocabulary, BUILT_IN)
    marks = [token.content for token in bench.reader.get_added_tokens_decoder().values() if token.special]
    spelled = f"a {''.join(marks[:3])} b"
    (plain,) = bench.encode(talk([("user", "x"), ("assistant", "y")]))
    (attack,) = bench.encode(talk([("user", spelled), ("assistant", spelled)]))
    special = set(bench.reader.get_added_tokens_decoder())
    assert [i for i in attack[0] if i in special] == [i for i in plain[0] if i in special]
    decoded = bench.reader.decode(attack[0], skip_special_tokens=False)
    assert decoded.count(marks[0]) >= 2


def test_prompts_and_targets_are_encoded_one_by_one_without_a_template(real):
    for name in ("qwen2", "llama2"):
        bench = Bench(*real(name), None)
        spans = [{"role": "prompt", "begin": 0, "end": 3}, {"role": "target", "begin": 3, "end": 12}]
        ((ids, flags),) = bench.encode(("Q: A river.", spans))
        assert bench.learned(ids[:-1], flags[:-1]).strip() == "A river." and flags[-1] == 1
        text = [number for number in ids[:-1] if number != bench.vocabulary.begin_of_document_id]
        assert bench.reader.decode(text) == "Q: A river."


def test_plain_documents_beside_conversations_are_learned_whole(real):
    bench = Bench(*real("llama2"), LLAMA_2)
    (plain, plain_flags), (_, flags), (last, _) = bench.encode(("text", None), talk(TALK), ("text", None))
    assert plain == last and set(plain_flags) == {1} and set(flags) == {0, 1}
    assert bench.laid.masked.tolist() == [False, True, False]


def test_what_a_template_refuses_or_alters_is_counted(real):
    bench = Bench(*real("llama2"), LLAMA_2)
    assistant_twice = talk([("user", "a"), ("assistant", "b"), ("assistant", "c")])
    tool = talk([("user", "a"), ("tool", "b"), ("assistant", "c")])
    trimmed = talk([("user", "a "), ("assistant", "b")])
    documents = bench.encode(assistant_twice, tool, trimmed)
    assert len(documents) == 1 and bench.laid.written.tolist() == [False, False, True]
    assert bench.counts.refused == {"template_refuses": 2} and bench.counts.trimmed == 1
    assert "alternate" in bench.counts.examples["template_refuses"]
    shouting = Bench(*real("llama2"), CHATML.replace("m['content']", "m['content'].replace('b', 'B')"))
    shouting.encode(talk([("user", "a"), ("assistant", "b")]), ("text", None))
    assert shouting.counts.refused == {"template_alters_text": 1}
    deaf = Bench(*real("qwen2"), None)
    deaf.encode(tool, ("text", None))
    assert deaf.counts.refused == {"turn_not_rendered": 1}


def test_a_conversation_that_ends_in_a_question_does_not_teach_to_stop_there(real):
    bench = Bench(*real("qwen2"), CHATML)
    ((ids, flags),) = bench.encode(talk([*TALK[:2], ("user", "and?")]))
    assert flags[-1] == 0 and bench.learned(ids, flags) == "because<|im_end|>"


@pytest.mark.parametrize("name", ["qwen2", "llama2"])
def test_both_encoders_give_the_same(real, name):
    folder, vocabulary = real(name)
    documents = [talk(TALK), ("plain", None), talk([("user", "\n\nx"), ("assistant", "\n y\n")])]
    assert Bench(folder, vocabulary, CHATML).encode(*documents) == Bench(
        folder, vocabulary, CHATML, "gigatoken"
    ).encode(*documents)


def test_the_mask_check_can_fail(real):
    bench = Bench(*real("qwen2"), CHATML)
    text, spans = talk(TALK)
    bench.encode((text, spans))
    with pytest.raises(Exception, match="does not cover exactly the answers"):
        bench.encoder.check(text, spans, bench.laid.tokens, 1 - bench.laid.flags)


def test_a_template_without_the_tokenizers_own_is_written_beside_it(real, tmp_path):
    folder, _ = real("gpt2")
    copy = tmp_path / "tokenizer"
    copy.mkdir()
    for path in folder.iterdir():
        if path.name != "chat_template.jinja":
            (copy / path.name).write_bytes(path.read_bytes())
    _, entries, remark = choose_template("auto", copy)
    assert [entry.path for entry in entries] == ["tokenizer/chat_template.jinja"] and "no chat template" in remark
    (tmp_path / "own.jinja").write_text(CHATML + "{{ strftime_now('%d %b %Y') }}")
    template, _, remark = choose_template(str(tmp_path / "own.jinja"), copy)
    assert template.render([]).endswith("26 Jul 2024") and "today's date" in remark
    assert json.loads((copy / "tokenizer_config.json").read_text())["eos_token"] == dict(template.tokens)["eos_token"]
