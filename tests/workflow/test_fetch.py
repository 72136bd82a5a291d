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

    from tests.workflow.tokenizers_for_tests import save_byte_tokenizer

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
    yield tiny, {"HF_ENDPOINT": address, "HF_HOME": str(tiny.parent / "hub-cache")}, server
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
        [sys.executable, "-c", code, *arguments], cwd=folder, env=values, capture_output=True, text=True, timeout=280
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
