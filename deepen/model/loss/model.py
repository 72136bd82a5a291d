"""A Hugging Face causal language model as a loss: what training, measuring and writing ask of a model.

It is also the root of FSDP, so that the head is gathered where the loss needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from deepen.errors import DeepenError
from deepen.model.compute.boundaries import boundaries, given, room_for
from deepen.model.loss.chunked import LinearCrossEntropy, LossSettings, logit_rules
from deepen.model.loss.kernels import (
    IGNORED,
    accumulation_dtype,
    apply_rules,
    chunks,
    compute_dtype,
    head_product,
)
from deepen.model.writing import CachedWriter, Choose, Writer

if TYPE_CHECKING:
    from deepen.model.loss.closeness import Closeness


class LossModel(nn.Module):
    """A Hugging Face causal language model as a loss: tokens, labels and positions in, likelihoods out.

    ``positions_BT`` restart at 0 where a document begins; no attention mask is ever passed, because transformers
    isolates documents by their positions only when there is none.
    """

    def __init__(self, model: PreTrainedModel, *, z_loss: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.loss = LossSettings(logit_rules(model, z_loss))
        self.takes_boundaries = False
        """Attention is told where documents begin (``use_attention``); else it finds out from positions."""
        self._room_for_documents = 0
        self.copies: tuple[LossModel, ...] = ()
        """Whole copies of it that take some of the batches when something is measured (``copies.make_copies``)."""

    def forward(
        self, tokens_BT: Tensor, labels_BT: Tensor, positions_BT: Tensor, near: Closeness | None = None
    ) -> tuple[Tensor, Tensor]:
        """Sum of negative log-likelihoods in nats (plus z-loss and the penalty of ``near``), differentiable; and nats
        per token, detached.

        A label belongs to its own position: ``labels_BT[b, t]`` is what should follow ``tokens_BT[b, :t + 1]``.
        """
        hidden_BTD = self.hidden(tokens_BT, positions_BT)
        total, nll_BT = self.loss_of(hidden_BTD, labels_BT)
        if near is not None:
            head = self.model.get_output_embeddings()
            total = total + near.penalty(hidden_BTD.flatten(0, 1), head, self.loss.rules)
        return total, nll_BT

    def loss_of(self, hidden_BTD: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
        """As ``forward``, from the last hidden states."""
        head = self.model.get_output_embeddings()
        total, nll_N = LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden_BTD.flatten(0, 1), head.weight, head.bias, labels_BT.flatten(), self.loss
        )
        return total, nll_N.view(labels_BT.shape)

    @torch.no_grad()
    def token_nll(self, tokens_BT: Tensor, labels_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Nats per token without gradients, 0 where the label is ignored."""
        return self.nll_of(self.hidden(tokens_BT, positions_BT), labels_BT)

    def nll_of(self, hidden_BTD: Tensor, labels_BT: Tensor) -> Tensor:
        """As ``token_nll``, from the last hidden states; to be called without gradients."""
        hidden_ND = hidden_BTD.flatten(0, 1)
        labels_N = labels_BT.flatten()
        head = self.model.get_output_embeddings()
        dtype = compute_dtype(hidden_ND)
        weight = head.weight.to(dtype)
        nll_N = hidden_ND.new_empty(len(labels_N), dtype=accumulation_dtype(dtype))
        for rows in chunks(len(labels_N), weight):
            logits, _ = apply_rules(head_product(hidden_ND[rows].to(dtype), weight), head.bias, self.loss.rules)
            nll_N[rows] = nn.functional.cross_entropy(logits, labels_N[rows], reduction="none", ignore_index=IGNORED)
        return nll_N.view(labels_BT.shape)

    @torch.no_grad()
    def likeliest(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """The likeliest next token at every position, int64[B, T]."""
        return self.likeliest_of(self.hidden(tokens_BT, positions_BT))

    def likeliest_of(self, hidden_BTD: Tensor) -> Tensor:
        """As ``likeliest``, from the last hidden states; logits exist for a few tokens at a time."""
        hidden_ND = hidden_BTD.flatten(0, 1)
        weight = self.model.get_output_embeddings().weight
        found = [self.logits_of(hidden_ND[rows]).argmax(1) for rows in chunks(len(hidden_ND), weight)]
        return torch.cat(found).view(hidden_BTD.shape[:2])

    def logits_of(self, hidden_ND: Tensor) -> Tensor:
        """Logits [N, V] from a few last hidden states, in the precision of sums; to be called without gradients."""
        head = self.model.get_output_embeddings()
        dtype = compute_dtype(hidden_ND)
        return apply_rules(head_product(hidden_ND.to(dtype), head.weight.to(dtype)), head.bias, self.loss.rules)[0]

    @torch.no_grad()
    def logits_at(self, tokens_BT: Tensor, positions_BT: Tensor, place_B: Tensor) -> Tensor:
        """Logits [B, V] of what follows one place of each row."""
        return self.logits_of(at_places(self.hidden(tokens_BT, positions_BT), place_B))

    @torch.no_grad()
    def last_logits(self, tokens_BT: Tensor, mask_BT: Tensor, positions_BT: Tensor, cache: Cache) -> Tensor:
        """Logits [B, V] of what follows the rows, with ``cache`` holding keys and values of what stands before them.

        ``mask_BT`` says which tokens are no padding, those in the cache included.
        """
        output = self.model(
            input_ids=tokens_BT, attention_mask=mask_BT, position_ids=positions_BT, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        logits: Tensor = output.logits[:, -1]
        return logits.to(accumulation_dtype(logits.dtype))

    def next_tokens(
        self, tokens_BT: Tensor, positions_BT: Tensor, place_B: Tensor, choose: Callable[[Tensor], list[int]]
    ) -> list[int]:
        """What ``choose`` makes of ``logits_at``: the token behind one place of each row."""
        return choose(self.logits_at(tokens_BT, positions_BT, place_B))

    def writer(self, prompts: Sequence[list[int]], choose: Choose, room: int) -> Writer:
        """Who continues ``prompts``, by at most ``room`` tokens each."""
        return CachedWriter(self, prompts, choose, range(len(prompts)), next(self.parameters()).device)

    def hidden(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """The last hidden states, after the final norm."""
        return self.run_body(positions_BT, input_ids=tokens_BT)

    def run_body(self, positions_BT: Tensor, **values: Tensor) -> Tensor:
        """What the decoder makes of ``input_ids=`` [B, T] or ``inputs_embeds=`` [B, T, D]: hidden states [B, T, D]."""
        keywords: dict[str, Any] = {}
        shape = positions_BT.shape
        if self.takes_boundaries:  # all rows laid end to end, and boundaries beside them
            self._room_for_documents = max(self._room_for_documents, room_for(positions_BT))  # grows: few are compiled
            keywords = boundaries(positions_BT, self._room_for_documents).keywords()
            values = {name: value.flatten(0, 1).unsqueeze(0) for name, value in values.items()}
            positions_BT = positions_BT.reshape(1, -1)
        with given() if keywords else nullcontext():
            output = self.model.base_model(position_ids=positions_BT, use_cache=False, **values, **keywords)
        assert isinstance(output.last_hidden_state, Tensor)
        hidden: Tensor = output.last_hidden_state
        return hidden.view(*shape, -1) if self.takes_boundaries else hidden


def at_places(hidden_BTD: Tensor, place_B: Tensor) -> Tensor:
    """The hidden states [B, D] at one place of each row."""
    return hidden_BTD[torch.arange(len(place_B), device=place_B.device), place_B]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` is in evaluation mode; afterwards it is as it was found."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def check_loss(loss_model: LossModel) -> None:
    """Compare our loss with the model's own on one small row; raises ``DeepenError`` when they differ.

    A family with another head than those we know is so refused at the start instead of being trained on a wrong loss.
    """
    model = loss_model.model
    device = next(model.parameters()).device
    size = model.get_input_embeddings().weight.shape[0]
    # Steps of a prime spread over the vocabulary.
    tokens_BT = (torch.arange(16, device=device) * 7919 % size).unsqueeze(0)
    labels_BT = tokens_BT.roll(-1, 1)
    labels_BT[:, -1] = IGNORED
    with evaluating(model):
        ours = loss_model.token_nll(tokens_BT, labels_BT, torch.arange(16, device=device).unsqueeze(0)).sum() / 15
        theirs = model(input_ids=tokens_BT, labels=tokens_BT, use_cache=False).loss
    if not torch.isclose(ours, theirs.to(ours.dtype), rtol=1e-3, atol=1e-4):
        raise DeepenError(
            f"the loss of `{model.config.model_type}` is not what its head suggests ({ours:.4f} against {theirs:.4f})",
            hint="this architecture computes its logits in a way that deepen does not know; use a dense decoder",
        )
