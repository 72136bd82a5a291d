"""The run's tokenizer: the base's own, unchanged, or a byte-level BPE learned from the corpus.

``AutoTokenizer`` rebuilds some tokenizers from their class name, and then gives other ids than the ``tokenizer.json``
in the same folder (it may even lose characters). A model was trained with its ``tokenizer.json``: where that file
exists it is what is kept, and the folder written here loads to exactly its ids.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from deepen.errors import DeepenError
from deepen.formats.files.atomic import FileEntry, writing
from deepen.tokenize.pieces import cut

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast as FastTokenizer

END_OF_TEXT = "<|endoftext|>"
SAMPLE_BYTES = 32_000_000
"""How much text a vocabulary is learned from; merges hardly change beyond some tens of megabytes."""
_SAMPLE_PIECE_CHARACTERS = 20_000
_LOCAL_KEYS = ("is_local", "local_files_only", "name_or_path")
_PROBES = (
    "a", "Hello, world!", " leading space", "two  spaces\n\nand lines\n", "1234567890 3.14", "don't snake_case A_B",
    "naïve café Ünïcödé", "\u4e2d\u6587\uff0c text", "\u0939\u093f\u0928\u094d\u0926\u0940", "emoji \U0001f642\u200d",
    "\ttab\r\nreturn\x00nul", "<s> </s> <unk>",
)  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """What the stages after it need to know about a tokenizer."""

    size: int
    """One more than the largest id."""
    end_of_document_id: int
    begin_of_document_id: int | None
    """Id that the tokenizer itself puts in front of a text, if it does."""

    @property
    def control(self) -> list[int]:
        """Ids that mark where documents begin and end: no text may become one of them."""
        ids = {self.end_of_document_id, self.begin_of_document_id}
        return sorted(number for number in ids if number is not None)


def keep_tokenizer(base: Path, out: Path, samples: Sequence[str]) -> tuple[list[FileEntry], str]:
    """Write the base's tokenizer to ``out/tokenizer``; returns its entries and a remark for the user (or "").

    Raises ``DeepenError`` when it cannot be loaded or the copy gives other ids on any of ``samples``.
    """
    from deepen.model.weights.load import load_tokenizer

    tokenizer, remark = load_tokenizer(base), ""
    texts = [*_PROBES, *samples]
    if (base / "tokenizer.json").is_file():
        original = Tokenizer.from_file(str(base / "tokenizer.json"))
        if any(_named_ids(tokenizer, text) != _ids(original, text) for text in texts):
            tokenizer = _as_in_file(original, tokenizer)
            remark = f"AutoTokenizer gives other ids than `{base / 'tokenizer.json'}`; the file is what is kept"
    files = save_tokenizer(tokenizer, out)
    _prove_equal(tokenizer, out / "tokenizer", texts)
    return files, remark


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text).ids)


def _named_ids(tokenizer: FastTokenizer, text: str) -> list[int]:
    return list(tokenizer(text, verbose=False).input_ids)  # not verbose: no warning about texts longer than a row


def _as_in_file(original: Tokenizer, named: FastTokenizer) -> FastTokenizer:
    """A tokenizer that is loaded from its file alone, with the special tokens of ``named``."""
    from transformers import PreTrainedTokenizerFast

    original.no_truncation()
    original.no_padding()
    special = {name: str(token) for name, token in named.special_tokens_map.items() if isinstance(token, str)}
    plain = PreTrainedTokenizerFast(
        tokenizer_object=original,
        model_max_length=named.model_max_length,
        clean_up_tokenization_spaces=False,
        **special,
    )
    plain.chat_template = named.chat_template
    return plain


def _prove_equal(tokenizer: FastTokenizer, folder: Path, texts: Sequence[str]) -> None:
    """Check that the written folder gives the same ids, through transformers and through tokenizers."""
    from deepen.model.weights.load import load_tokenizer

    loaded, plain = load_tokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in texts:
        expected = _named_ids(tokenizer, text)
        if _named_ids(loaded, text) != expected or _ids(plain, text) != expected:
            raise DeepenError(
                f"the copy of the base's tokenizer gives other ids for the text beginning {text[:40]!r}",
                hint="give a base folder whose tokenizer.json and tokenizer_config.json agree",
            )


def train_tokenizer(texts: Iterable[str], size: int, out: Path, workers: int) -> list[FileEntry]:
    """Learn a byte-level BPE of ``size`` tokens from ``texts`` and write it to ``out/tokenizer``.

    Every text of bytes can be written in it and read back; ``<|endoftext|>`` is id 0 and both begins and ends texts.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # all 256 bytes, also those that the sample lacks
        show_progress=False,
    )
    with _training_threads(workers):
        tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )
    return save_tokenizer(fast, out)


@contextmanager
def _training_threads(workers: int) -> Iterator[None]:
    """Let the Rust side of tokenizers use threads only if more than one worker is allowed."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if workers > 1 else "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before


def save_tokenizer(tokenizer: FastTokenizer, out: Path) -> list[FileEntry]:
    """Write what ``save_pretrained`` writes into ``out/tokenizer``, file by file, without traces of this machine."""
    entries = []
    with tempfile.TemporaryDirectory() as name:
        tokenizer.save_pretrained(name)
        for path in sorted(Path(name).rglob("*")):
            if not path.is_file():
                continue
            data = path.read_bytes()
            if path.name == "tokenizer_config.json":
                data = _portable_config(data)
            relative = Path("tokenizer") / path.relative_to(name)
            with writing(out / relative) as file:
                file.write(data)
            entries.append(file.entry(relative.as_posix()))
    return entries


def _portable_config(data: bytes) -> bytes:
    """Drop what describes this machine, and name the plain class so that transformers 4 knows it too."""
    config: dict[str, Any] = json.loads(data)
    kept = {key: value for key, value in config.items() if key not in _LOCAL_KEYS}
    if kept.get("tokenizer_class") == "TokenizersBackend":
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    return (json.dumps(kept, indent=2, ensure_ascii=False, sort_keys=True) + "\n").encode()


def read_vocabulary(folder: Path) -> Vocabulary:
    """Facts about the tokenizer in ``folder``; raises ``DeepenError`` when it cannot end a document."""
    from deepen.model.weights.load import load_tokenizer

    tokenizer = load_tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise DeepenError(
            f"the tokenizer in `{folder}` has no end-of-sequence token, which every document must end with",
            hint='name one in its tokenizer_config.json, for example "eos_token": "<|endoftext|>"',
        )
    begins = list(tokenizer("a").input_ids)[:1]  # asked, because settings do not say reliably whether it adds one
    begin = (
        tokenizer.bos_token_id if tokenizer.bos_token_id is not None and begins == [tokenizer.bos_token_id] else None
    )
    return Vocabulary(max(tokenizer.get_vocab().values()) + 1, int(tokenizer.eos_token_id), begin)


def sampled(texts: Iterable[str], total_bytes: int, most_bytes: int = SAMPLE_BYTES) -> Iterator[str]:
    """About ``most_bytes`` of text, spread evenly over all of it; everything when there is not more."""
    share = min(1.0, most_bytes / total_bytes) if total_bytes else 1.0
    owed = 0.0
    for text in texts:
        for _, piece in cut(text, _SAMPLE_PIECE_CHARACTERS, "word"):
            num_bytes = len(piece.encode())
            # Like a line drawn with pixels: each piece adds its share, and one is taken when half of it or more is
            # owed. So what is taken stays within a piece of the share everywhere in the corpus, without drawing lots.
            owed += share * num_bytes
            if owed >= num_bytes / 2:
                owed -= num_bytes
                yield piece
