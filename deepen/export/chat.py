"""Talking to an exported model: a generator of text, and a small conversation on the terminal.

A model with a chat template holds a conversation. One without (every plain continued-pretraining model) continues the
text it is given: each line begins a new text, an empty line goes on with the last one. Weights come from safetensors
only, and code that comes with a model is never run.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from deepen.errors import DeepenError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

_TOKENS_OF_CONTEXT = 8
"""Tokens decoded along with a new one."""
_TOKENS_HELD_BACK = 16
"""A character has at most four bytes; what is still unreadable after this many tokens is no text."""

COMMANDS = "/reset forgets the conversation, /quit leaves, an empty line goes on with the last text"


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn."""

    max_new_tokens: int = 200
    temperature: float = 0.8
    """0 takes the likeliest token; 1 samples from the model's own distribution."""
    seed: int = 17
    """Same seed, prompt and model: same text."""


@dataclass
class Speaker:
    """A loaded model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    end_ids: frozenset[int]
    """Tokens that end an answer."""
    vocabulary_size: int
    """One more than the largest id; rows of the model beyond it are no tokens and are never said."""

    @property
    def max_length(self) -> int:
        """Positions that the model has."""
        return int(self.model.config.max_position_embeddings)


def open_speaker(folder: Path) -> Speaker:
    """Load a model folder; raises ``DeepenError`` when it holds no model."""
    import torch

    from deepen.model.config import ResolvedBase
    from deepen.model.weights.load import load_model, load_tokenizer

    tokenizer = load_tokenizer(folder)
    base = ResolvedBase(name=str(folder), path=folder, init=None, fingerprint="")
    model = load_model(base, vocabulary_size=len(tokenizer), seed=0).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    stated = model.generation_config.eos_token_id if model.generation_config else None
    ends = [*(stated if isinstance(stated, list) else [stated]), tokenizer.eos_token_id]
    size = max(tokenizer.get_vocab().values()) + 1
    return Speaker(model, tokenizer, frozenset(end for end in ends if end is not None), size)


@lru_cache(maxsize=1)
def _speaker(folder: Path) -> Speaker:
    return open_speaker(folder)


def generate(
    folder: Path, prompt: str, *, max_new_tokens: int = 200, temperature: float = 0.8, seed: int = 17
) -> Iterator[str]:
    """Continue ``prompt`` with the model in ``folder``, piece by piece; the prompt itself is not repeated.

    The last used model stays loaded. Ends at the model's end token, after ``max_new_tokens``, or when its positions are
    used up. Raises ``DeepenError`` when the prompt leaves no room for an answer.
    """
    speaker = _speaker(folder.resolve())
    tokens = speaker.tokenizer(prompt, verbose=False).input_ids
    yield from continue_tokens(speaker, tokens, Sampling(max_new_tokens, temperature, seed))


def continue_tokens(speaker: Speaker, tokens: list[int], sampling: Sampling) -> Iterator[str]:
    """Pieces of text that follow ``tokens``, each complete in itself: a character is never split between two."""
    if len(tokens) >= speaker.max_length:
        raise DeepenError(
            f"the prompt has {len(tokens):,} tokens, the model has {speaker.max_length:,} positions",
            hint="give a shorter prompt, or /reset the conversation",
        )
    if not tokens:
        raise DeepenError("the prompt is empty and the model has no begin token", hint="give at least one character")
    yield from _pieces(speaker.tokenizer, tokens[-_TOKENS_OF_CONTEXT:], _next_tokens(speaker, tokens, sampling))


def _pieces(tokenizer: PreTrainedTokenizerFast, before: list[int], tokens: Iterator[int]) -> Iterator[str]:
    """Text of ``tokens`` as it becomes readable, given the tokens ``before`` it.

    Each piece is what a token adds to the decoded text of a few tokens before it, because a token's spaces depend on
    its neighbours. Bytes of an unfinished character are held back; if it is never finished they come out as U+FFFD.
    """
    known, num_read = list(before), len(before)
    for token in tokens:
        known.append(token)
        piece = _added_text(tokenizer, known, num_read)
        if piece and (not piece.endswith("\ufffd") or len(known) - num_read >= _TOKENS_HELD_BACK):
            yield piece
            # The context moves along with the text: however long it is, a token costs the same to decode.
            known = known[max(0, num_read - _TOKENS_OF_CONTEXT) :]
            num_read = len(known)
    if num_read < len(known) and (piece := _added_text(tokenizer, known, num_read)):
        yield piece


def _added_text(tokenizer: PreTrainedTokenizerFast, tokens: list[int], num_read: int) -> str:
    """What the tokens from ``num_read`` on add to the text of those before."""
    whole, read = (tokenizer.decode(part, skip_special_tokens=True) for part in (tokens, tokens[:num_read]))
    return str(whole)[len(read) :]


def _next_tokens(speaker: Speaker, tokens: list[int], sampling: Sampling) -> Iterator[int]:
    """New tokens one by one, with the keys and values of earlier ones kept."""
    import torch

    device = next(speaker.model.parameters()).device
    generator = torch.Generator().manual_seed(sampling.seed)
    inputs, past = torch.tensor([tokens], device=device), None
    room = min(sampling.max_new_tokens, speaker.max_length - len(tokens))
    for _ in range(room):
        with torch.no_grad():
            output = speaker.model(input_ids=inputs, past_key_values=past, use_cache=True, logits_to_keep=1)
        token = _draw(output.logits[0, -1, : speaker.vocabulary_size].float().cpu(), sampling.temperature, generator)
        if token in speaker.end_ids:
            return
        yield token
        inputs, past = torch.tensor([[token]], device=device), output.past_key_values


def _draw(logits_V: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    import torch

    if temperature <= 0:
        return int(logits_V.argmax())
    return int(torch.multinomial((logits_V / temperature).softmax(0), 1, generator=generator))


@dataclass
class Conversation:
    """What was said so far."""

    speaker: Speaker
    sampling: Sampling
    messages: list[dict[str, str]] = field(default_factory=list)
    """With a chat template: the turns."""
    text: str = ""
    """Without one: the text that is being continued."""

    @property
    def has_template(self) -> bool:
        """Whether the model holds a conversation or continues text."""
        return bool(self.speaker.tokenizer.chat_template)

    def answer(self, line: str) -> Iterator[str]:
        """Pieces of the answer to ``line``; what was generated is remembered even if the reader stops early."""
        tokens = self._tokens(line)
        said: list[str] = []
        try:
            for piece in continue_tokens(self.speaker, tokens, self.sampling):
                said.append(piece)
                yield piece
        finally:
            self.text += "".join(said)
            if self.has_template:
                self.messages.append({"role": "assistant", "content": "".join(said)})

    def _tokens(self, line: str) -> list[int]:
        tokenizer = self.speaker.tokenizer
        if not self.has_template:
            self.text = line or self.text
            return list(tokenizer(self.text, verbose=False).input_ids)
        self.messages.append({"role": "user", "content": line})
        prompt = tokenizer.apply_chat_template(self.messages, tokenize=False, add_generation_prompt=True)
        return list(tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)

    def reset(self) -> None:
        """Forget everything that was said."""
        self.messages.clear()
        self.text = ""


def chat(
    folder: Path, sampling: Sampling = Sampling(), *, source: TextIO | None = None, sink: TextIO | None = None
) -> None:
    """Read lines from ``source`` (standard input) and stream answers to ``sink`` (standard output) until the end.

    On a terminal it shows a prompt, and Ctrl-C stops an answer; piped input is answered line by line. Lines beginning
    with a slash are commands: ``/reset``, ``/quit``.
    """
    source, sink = source or sys.stdin, sink or sys.stdout
    conversation = Conversation(open_speaker(folder), sampling)
    interactive = source.isatty()
    if interactive:
        kind = "conversation" if conversation.has_template else "plain continuation: the model has no chat template"
        sink.write(f"{kind}; {COMMANDS}\n")
    for line in _lines(source, sink, interactive):
        if line == "/quit":
            return
        if line == "/reset":
            conversation.reset()
        elif line.startswith("/"):
            sink.write(f"no command `{line}`: {COMMANDS}\n")
        elif line or conversation.text:
            _stream(conversation, line, sink)


def _lines(source: TextIO, sink: TextIO, interactive: bool) -> Iterator[str]:
    while True:
        if interactive:
            sink.write("> ")
            sink.flush()
        line = source.readline()
        if not line:
            return
        yield line.strip()


def _stream(conversation: Conversation, line: str, sink: TextIO) -> None:
    """Write one answer as it comes; what is wrong with a prompt is said, and the conversation goes on."""
    try:
        for piece in conversation.answer(line):
            sink.write(piece)
            sink.flush()
    except KeyboardInterrupt:
        sink.write(" [stopped]")
    except DeepenError as error:
        sink.write(str(error))
    sink.write("\n")
    sink.flush()
