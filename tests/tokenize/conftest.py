import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gigatoken
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from deepen.formats.documents.documents import Document, document_id, write_documents
from deepen.formats.manifest import Artifact, CodeVersion, Manifest, StageJob
from deepen.model.config import RandomInit, ResolvedBase
from deepen.tokenize.vocabulary.tokenizer import keep_tokenizer, train_tokenizer

MakeJob = Callable[..., StageJob]

PAPERS = [
    "The heart pumps blood through the body.\nIt never rests, and it beats all night long.",
    "Blood carries oxygen to the muscles and the brain, and carbon dioxide back to the lungs.\n\nSee below.",
    "A page about tokens: <|endoftext|> ends a text, </s> does so too, and <s> begins one.",
    "naïve café 中文 हिन्दी 🙂",
    "",
]
NOTES = ["Patients slept well.", "The night was quiet; nobody called.", "Two  spaces and\ttabs\r\nand 12345 numbers."]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """A job over documents, one list per file: ``make_job("out", papers=("domain", [["text"], ["more"]]))``"""

    def make(out: str, *, workers: int = 1, **sources: tuple[str, list[list[str]]]) -> StageJob:
        counts = {}
        for name, (role, parts) in sources.items():
            for number, texts in enumerate(parts):
                documents = [Document(document_id(name, f"{number}/{k}"), text, name) for k, text in enumerate(texts)]
                path = tmp_path / "curate" / "documents" / f"{name}-{number:05d}.parquet"
                write_documents(path, documents, tmp_path / "curate")
            counts[name] = {"role": role, "documents_kept": sum(map(len, parts))}
        manifest = Manifest(
            stage="curate", format=1, fingerprint="f", config={}, inputs={}, counts={"sources": counts},
            code=CodeVersion(version="0"), started="", finished="",
        )  # fmt: skip
        return StageJob(
            tmp_path / out, "fingerprint", {"curate": Artifact(tmp_path / "curate", manifest)}, workers=workers
        )

    return make


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> ResolvedBase:
    """A base with a byte-level BPE like GPT-2's: no begin token."""
    folder = tmp_path_factory.mktemp("byte_level")
    train_tokenizer(PAPERS[:2] + NOTES, 300, folder, workers=1)
    return ResolvedBase("byte-level", folder / "tokenizer", None, "f")


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``kept("qwen2")``: the folder of a real tokenizer as the stage keeps it, proven on its vectors. Only look."""
    data, made = os.environ.get("DEEPEN_TEST_DATA"), dict[str, Path]()

    def keep(name: str) -> Path:
        if data is None:
            pytest.skip("DEEPEN_TEST_DATA is not set")
        if name not in made:
            keep_tokenizer(Path(data) / f"tokenizer_{name}", folder := tmp_path_factory.mktemp(name), vectors(name))
            made[name] = folder / "tokenizer"
        return made[name]

    return keep


def vectors(name: str) -> list[str]:
    """Texts that come with a real tokenizer."""
    path = Path(os.environ["DEEPEN_TEST_DATA"]) / f"tokenizer_{name}" / "vectors.jsonl"
    lines = path.read_text().split("\n") if path.is_file() else []
    return [json.loads(line)["text"] for line in lines if line]


@pytest.fixture(scope="session")
def other_ids(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """gigatoken with another vocabulary than ``byte_level``: it gives other ids, all of them below 300."""
    folder = tmp_path_factory.mktemp("other")
    train_tokenizer(["abcabc quiet noises of the sea"], 270, folder, workers=1)
    return gigatoken.Tokenizer(str(folder / "tokenizer" / "tokenizer.json"))


@pytest.fixture(scope="session")
def sentencepiece_like(tmp_path_factory: pytest.TempPathFactory) -> ResolvedBase:
    """A base with a BPE like Llama 2's: byte fallback, a marker for spaces, and a begin token in front."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=380, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([word for text in PAPERS[:2] + NOTES for word in text.split()], trainer)
    settings = json.loads(tokenizer.to_str())
    settings["added_tokens"] = settings["added_tokens"][:3]  # the bytes are part of the model, not special
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return write_base(tokenizer, tmp_path_factory.mktemp("spm"), bos="<s>", eos="</s>", unk="<unk>")


@pytest.fixture(scope="session")
def word_level(tmp_path_factory: pytest.TempPathFactory) -> ResolvedBase:
    """A base whose ordinary words include the spelling of its end token, and which gigatoken does not know."""
    words = ["<unk>", "</s>", "a", "page", "about", "tokens", "ends"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return write_base(tokenizer, tmp_path_factory.mktemp("word"), eos="</s>", unk="<unk>")


def write_base(
    tokenizer: Tokenizer, folder: Path, name: str = "PreTrainedTokenizerFast", **special: str
) -> ResolvedBase:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": name, **{f"{kind}_token": token for kind, token in special.items()}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return ResolvedBase(folder.name, folder, None, "f")


@pytest.fixture
def from_scratch() -> ResolvedBase:
    init = RandomInit(init="random", hidden_size=16, layers=1, heads=2)
    return ResolvedBase("from scratch", None, init, "f")
