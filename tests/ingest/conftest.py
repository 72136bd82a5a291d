"""Runs of the ingest stage on files written by the tests."""

from pathlib import Path

import pytest

from deepen.formats.documents.documents import document_files, read_documents
from deepen.formats.manifest import StageJob
from deepen.ingest.config import IngestConfig
from deepen.ingest.files import list_files
from deepen.ingest.read.options import Reading
from deepen.ingest.read.records import Record
from deepen.ingest.read.table import READERS
from deepen.ingest.stage import ingest
from deepen.plug import identity


@pytest.fixture
def run(tmp_path):
    """``run(source, ...)``: ingest sources (paths relative to the test's folder) and return the manifest."""

    def run(*sources, out="out", workers=1, job=None, **settings):
        complete = [
            {"name": f"s{number}", "role": "domain", **source, "path": str(tmp_path / source["path"])}
            for number, source in enumerate(sources)
        ]
        config = IngestConfig.model_validate({"sources": complete, **settings})
        recorded = identity(config)
        recorded["sources"] = [
            {key: value for key, value in one.items() if key != "path"} for one in recorded["sources"]
        ]
        more = {} if job is None else {"identity": {"ingest": recorded}, **job}
        return ingest(config, StageJob(out=tmp_path / out, fingerprint="f", workers=workers, **more))

    return run


@pytest.fixture
def documents(tmp_path):
    """All documents of a finished run."""

    def documents(out="out", source=None):
        files = document_files(tmp_path / out / "documents", source)
        return [document for file in files for document in read_documents(file)]

    return documents


@pytest.fixture
def texts(documents):
    """The texts of a finished run."""
    return lambda out="out", source=None: [document.text for document in documents(out, source)]


def contents(directory: Path) -> dict[str, bytes]:
    """All files of an artifact but its manifest, which holds times."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def same_bytes(tmp_path):
    """Whether two artifacts hold the same files."""
    return lambda first, second: contents(tmp_path / first) == contents(tmp_path / second)


@pytest.fixture
def read(tmp_path):
    """``read(name, **how)``: records and (location, reason) of the rejects of one file in the test's folder."""

    def read(name, **how):
        (file,) = list_files(str(tmp_path / name))
        found = list(READERS[file.format](file, Reading(**how)))
        records = [record for record in found if isinstance(record, Record)]
        return records, [(reject.location, reject.reason) for reject in found if not isinstance(reject, Record)]

    return read


@pytest.fixture
def text_of(read):
    """``text_of(name, **how)``: the text of a file that is one document."""

    def text_of(name, **how):
        records, rejects = read(name, **how)
        assert rejects == []
        return records[0].values["text"]

    return text_of
