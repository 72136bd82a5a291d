"""Fetching from a hub: the real client against a small stand-in server on this machine, then everything offline."""

import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The three kinds of answer that the hub's client asks for when it takes a snapshot."""

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer(send_body=False)

    def do_GET(self):
        self.answer(send_body=True)

    def listing(self, kind, repository, files, path):
        if "/tree/" not in path:
            return {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        sizes = {name: len(self.server.files[f"{kind}/{repository}", name]) for name in files}
        return [{"type": "file", "path": name, "size": sizes[name], "oid": name} for name in files]

    def answer(self, send_body):
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if path.startswith("/api/"):
            kind, repository = path.split("/")[2], "/".join(path.split("/")[3:5])
            files = [name for key, name in self.server.files if key == f"{kind}/{repository}"]
            body = json.dumps(self.listing(kind, repository, files, path)).encode()
            found = bool(files)
        else:
            left, _, right = path.strip("/").partition("/resolve/")
            repository = left if left.startswith("datasets/") else f"models/{left}"
            body = self.server.files.get((repository, right.partition("/")[2]), b"")
            found = bool(body)
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if not found:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if send_body:
            self.wfile.write(body)


@pytest.fixture
def hub(tiny):
    """A hub with one model and one data set, and a recipe that uses both; yields (recipe, environment, server)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.workflow.inputs.tokenizers_for_tests import save_byte_tokenizer

    folder = tiny.parent / "model"
    LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                    max_position_embeddings=32)
    ).save_pretrained(folder)  # fmt: skip
    save_byte_tokenizer(folder)
    files = {("models/lab/model", path.name): path.read_bytes() for path in folder.iterdir()}
    files[("models/lab/model", "pytorch_model.bin")] = b"a pickle that must never be fetched"
    files[("datasets/lab/texts", "data/prose.jsonl")] = (tiny.parent / "prose.jsonl").read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.asked = files, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    text = tiny.read_text().replace(f"path: {tiny.parent}/prose.jsonl", "path: hf://lab/texts/data/*.jsonl")
    text = text.replace(text[text.index("base:") : text.index("ingest:")], "base: lab/model\n")
    tiny.write_text(text.replace("tokenize: {vocabulary: {train: 400}}\n", ""))
    address = f"http://127.0.0.1:{server.server_address[1]}"
    caches = {"HF_HOME": str(tiny.parent / "hub-cache"), "DEEPEN_CACHE": str(tiny.parent / "cache")}
    yield tiny, {"HF_ENDPOINT": address, **caches}, server
    server.shutdown()
    server.server_close()


NO_SOCKETS = """
import socket, sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        raise RuntimeError(f"a connection was tried: {arguments}")
sys.addaudithook(refuse)
from deepen.cli import main
sys.argv = ["deepen", *sys.argv[1:]]
main()
"""


def deepen(folder, environment, *arguments, code="from deepen.cli import main; main()"):
    import os

    values = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, env=values, capture_output=True, text=True, timeout=900
    )


def test_fetched_once_everything_runs_without_a_network(hub):
    recipe, environment, server = hub
    fetched = deepen(recipe.parent, environment, "fetch", "recipe.yaml", "--json")
    assert fetched.returncode == 0, fetched.stderr
    identities = {row["what"]: row["identity"] for row in json.loads(fetched.stdout)}
    assert identities["base"] == f"hub:lab/model@{COMMIT}"
    assert not any("pytorch_model.bin" in path for path in server.asked)
    server.asked.clear()
    run = deepen(recipe.parent, environment, "run", "recipe.yaml", "--offline", "--until", "mix", code=NO_SOCKETS)
    assert run.returncode == 0, run.stderr
    assert server.asked == []
    pins = json.loads((recipe.parent / "runs" / "tiny" / "pins.json").read_text())
    assert pins == {"dataset:lab/texts": COMMIT, "model:lab/model": COMMIT}


def test_offline_without_fetching_is_a_clear_error(hub):
    recipe, environment, server = hub
    run = deepen(recipe.parent, environment, "run", "recipe.yaml", "--offline", code=NO_SOCKETS)
    assert run.returncode == 1
    assert "deepen fetch" in run.stderr
    assert "Traceback" not in run.stderr
    assert server.asked == []


def test_a_repository_that_is_not_there_is_a_clear_error(hub):
    recipe, environment, _ = hub
    run = deepen(recipe.parent, environment, "fetch", "recipe.yaml", "--set", "base=lab/nothing")
    assert run.returncode == 1
    assert "hub model `lab/nothing` cannot be fetched" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.fixture
def parts(hub):
    """The same hub, whose data set is five files of 60 documents, of which the recipe wants 100."""
    recipe, environment, server = hub
    prose = server.files.pop(("datasets/lab/texts", "data/prose.jsonl"))
    for number in range(5):
        name = f"data/{number}.jsonl" if number else "data/deep/0.jsonl"
        server.files["datasets/lab/texts", name] = prose.replace(b"prose", b"prose%d" % number)
    limited = "path: hf://lab/texts/data/**/*.jsonl, limit: 100 documents"
    recipe.write_text(recipe.read_text().replace("path: hf://lab/texts/data/*.jsonl", limited))
    return recipe, environment, server


def asked_for(server):
    return sorted({path.rpartition(f"/{COMMIT}/")[2] for path in server.asked if path.endswith(".jsonl")})


def ingested(recipe):
    manifest = json.loads((recipe.parent / "runs/tiny/ingest/manifest.json").read_text())
    return manifest["counts"]["sources"]["prose"], manifest["inputs"]["source:prose"]["fingerprint"]


def test_a_limited_source_fetches_no_more_files_than_it_takes(parts):
    recipe, environment, server = parts
    fetched = deepen(recipe.parent, environment, "fetch", "recipe.yaml")
    assert fetched.returncode == 0, fetched.stderr
    assert "2 of 5 files: enough for 100 documents" in fetched.stderr
    assert asked_for(server) == ["data/1.jsonl", "data/2.jsonl"]
    server.asked.clear()
    run = deepen(recipe.parent, environment, "ingest", "recipe.yaml", "--offline", code=NO_SOCKETS)
    assert run.returncode == 0, run.stderr
    assert server.asked == []
    counts, _ = ingested(recipe)
    assert (counts["files"], counts["documents"]) == (2, 100)


def test_what_a_cache_holds_does_not_change_what_a_limited_source_is(parts):
    recipe, environment, server = parts
    deepen(recipe.parent, environment, "ingest", "recipe.yaml")
    before = ingested(recipe)
    (recipe.parent / "whole.yaml").write_text(recipe.read_text().replace(", limit: 100 documents", ""))
    whole = deepen(recipe.parent, environment, "fetch", "whole.yaml", "--runs", "others")
    assert whole.returncode == 0, whole.stderr
    assert len(asked_for(server)) == 5  # `**/` is no folder or some
    assert deepen(recipe.parent, environment, "ingest", "recipe.yaml", "--offline").returncode == 0
    assert ingested(recipe) == before


def test_a_higher_limit_needs_the_network_again(parts):
    recipe, environment, server = parts
    deepen(recipe.parent, environment, "fetch", "recipe.yaml")
    for limit in ("", ", limit: 1 MB"):
        (recipe.parent / "more.yaml").write_text(recipe.read_text().replace(", limit: 100 documents", limit))
        refused = deepen(recipe.parent, environment, "ingest", "more.yaml", "--offline", code=NO_SOCKETS)
        assert refused.returncode == 1
        assert "offline" in refused.stderr
        assert "Traceback" not in refused.stderr
    fetched = deepen(recipe.parent, environment, "fetch", "more.yaml")
    assert "all 5 files together are less than its limit, 1000000 bytes" in fetched.stderr
    assert len(asked_for(server)) == 5


def test_a_limited_split_is_found_by_the_names_of_its_files(parts):
    recipe, environment, server = parts
    for split in ("train", "test"):
        server.files["datasets/lab/texts", f"en/{split}-0.jsonl"] = b'{"text": "of %s"}' % split.encode()
        server.files["datasets/lab/texts", f"en/{split}-1.jsonl"] = b'{"text": "more"}'
    text = recipe.read_text().replace(
        "hf://lab/texts/data/**/*.jsonl, limit: 100", "hf://lab/texts, subset: en, split: SPLIT, limit: 1"
    )
    for split in ("train", "test"):
        recipe.write_text(text.replace("SPLIT", split))
        fetched = deepen(recipe.parent, environment, "fetch", "recipe.yaml")
        assert "1 of 2 files: enough for 1 documents" in fetched.stderr, fetched.stderr
        assert asked_for(server)[-1] == f"en/{split}-0.jsonl"
        server.asked.clear()
    recipe.write_text(text.replace("SPLIT", "dev"))
    wrong = deepen(recipe.parent, environment, "fetch", "recipe.yaml")
    assert "no file of `hf://lab/texts` belongs to subset `en`, split `dev`" in wrong.stderr
