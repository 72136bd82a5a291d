"""Our models as models of the lm-evaluation-harness: likelihoods by ``token_nll``, answers by batched generation.

Texts become tokens in the way of the harness's own Hugging Face model (the tokenizer's own special tokens, spaces at
the end of a context moved to its continuation, cut at the left), so that results agree item by item with
``lm_eval --model hf`` on the exported folder. Importing this module imports the harness, which takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from transformers import PreTrainedTokenizerFast

from deepen.evaluate.documents.windows import Encoded, Window, batches_of, likelihoods, windows_of
from deepen.model.compute.copies import shared_out
from deepen.model.generate import Decoding, generate
from deepen.model.loss.model import LossModel

_NEW_TOKENS = 256
"""Of an answer, where the task does not say; the harness's own default."""
_TOKENS_PER_BATCH = 4096


class HarnessModel(TemplateLM):  # type: ignore[misc]
    """A ``LossModel`` with its tokenizer as the harness sees it; one process, one model, every request in order."""

    def __init__(self, model: LossModel, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.tells_greedy = True
        """Whether continuations are also checked for being what greedy decoding writes; costs a second pass."""
        self.cut_tokens: list[int] = []
        """Of every request of the last call, tokens at the beginning of its context that there are no positions for."""
        self.max_length = int(model.model.config.max_position_embeddings)

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before an empty context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Tokens of a text, with the special tokens that the tokenizer adds by itself unless told otherwise."""
        # A text that begins with the begin token would get a second one.
        if add_special_tokens is None and string.startswith(self.tokenizer.decode([self.prefix_token_id])):
            add_special_tokens = False
        special = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, verbose=False, **special))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        """``(log-likelihood, whether greedy decoding would write it)`` of every continuation."""
        documents = [_cut(context, continuation, self.max_length) for _, context, continuation in requests]
        self.cut_tokens = [max(0, len(one) + len(other) - self.max_length - 1) for _, one, other in requests]
        nll = likelihoods(self.model, documents, context=self.max_length, stride=1.0)
        greedy = self._is_greedy(documents) if self.tells_greedy else np.zeros(len(documents), dtype=bool)
        return [(-float(value), bool(right)) for value, right in zip(nll, greedy, strict=True)]

    def _is_greedy(self, documents: Sequence[Encoded]) -> np.ndarray:
        """Whether every scored token of a document is the likeliest one where it stands, bool[n]."""
        right = np.ones(len(documents), dtype=bool)
        # A window each: documents were cut to what the model has positions for.
        windows = [w for i, one in enumerate(documents) for w in windows_of(one, i, context=self.max_length, step=1)]
        windows.sort(key=lambda window: window.begin - window.end)
        batches = list(batches_of(windows, tokens_per_batch=_TOKENS_PER_BATCH))
        likeliest = shared_out(self.model, lambda member, batch: _likeliest(member, documents, batch), batches)
        for batch, found in zip(batches, likeliest, strict=True):
            for row, window in enumerate(batch):
                wanted = documents[window.document].tokens[window.first_target : window.end + 1]
                given = found[row, window.first_target - 1 - window.begin : window.end - window.begin]
                right[window.document] &= bool(np.array_equal(wanted, given))
        return right

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows that do not overlap (the harness's way)."""
        texts = [request.args[0] for request in requests]
        documents = [
            Encoded(np.array([self.prefix_token_id, *self.tok_encode(text, False)], dtype=np.int32), 1, 0)
            for text in texts
        ]
        self.cut_tokens = [0] * len(documents)
        nll = likelihoods(self.model, documents, context=self.max_length, stride=1.0)
        return [-float(value) for value in nll]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, up to the first of its stops."""
        answers = [""] * len(requests)
        self.cut_tokens = [0] * len(requests)
        # A batch has one length and one set of stops.
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(index)
        for indices in alike.values():
            settings = normalize_gen_kwargs(requests[indices[0]].args[1], _NEW_TOKENS)
            contexts = [requests[index].args[0] for index in indices]
            for index, (answer, cut) in zip(indices, self._write(contexts, dict(settings)), strict=True):
                answers[index], self.cut_tokens[index] = answer, cut
        return answers

    def _write(self, contexts: Sequence[str], settings: dict[str, Any]) -> list[tuple[str, int]]:
        """Answers, and how many tokens of each context were cut off."""
        end = self.tokenizer.decode([self.eot_token_id])
        stops = [stop for stop in handle_stop_sequences(settings.get("until"), eos=end) if stop]

        def is_done(tokens: list[int]) -> bool:
            written = self._decode(tokens)
            return any(stop in written for stop in stops)

        decoding = Decoding(
            int(settings["max_gen_toks"]), [self.eot_token_id], is_done,
            temperature=float(settings.get("temperature") or 0.0),
        )  # fmt: skip
        prompts = [self.tok_encode(context) for context in contexts]
        written = generate(self.model, prompts, decoding)
        answers = [self._decode(tokens) for tokens in written]
        for stop in stops:
            answers = [answer.split(stop)[0] for answer in answers]
        room = self.max_length - decoding.max_new_tokens
        return [(answer, max(0, len(prompt) - room)) for answer, prompt in zip(answers, prompts, strict=True)]

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


def _likeliest(model: LossModel, documents: Sequence[Encoded], batch: Sequence[Window]) -> np.ndarray:
    """The likeliest next token everywhere in some windows, int64[B, T]."""
    device, width = next(model.parameters()).device, batch[0].end - batch[0].begin
    tokens = np.zeros((len(batch), width), dtype=np.int64)
    for row, window in enumerate(batch):
        tokens[row, : window.end - window.begin] = documents[window.document].tokens[window.begin : window.end]
    positions_BT = torch.arange(width, device=device).expand(tokens.shape)
    found: np.ndarray = model.likeliest(torch.from_numpy(tokens).to(device), positions_BT).cpu().numpy()
    return found


def _cut(context: list[int], continuation: list[int], most: int) -> Encoded:
    """The continuation behind as much of its context as there are positions."""
    tokens = np.array([*context, *continuation], dtype=np.int32)[-(most + 1) :]
    return Encoded(tokens, max(1, len(tokens) - len(continuation)), 0)
