"""What SECURITY.md says of the code as such: no pickled files, no code of models, no unpacking, no shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import deepen

SOURCES = sorted(Path(deepen.__file__).parent.rglob("*.py"))
LOADERS = {"AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"}
FORBIDDEN = {
    "torch.load", "torch.save", "pickle.load", "pickle.dump", "os.system", "os.popen",
    "eval", "exec", "shutil.unpack_archive",
}  # fmt: skip


def calls(text: str) -> Iterator[tuple[str, dict[str, object]]]:
    """Name and plain keyword arguments of every call."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            plain = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
            yield name, plain


def faults(text: str) -> list[str]:
    found = []
    for name, given in calls(text):
        owner, _, method = name.rpartition(".")
        if method in ("from_pretrained", "from_config") and owner in LOADERS:
            if given.get("trust_remote_code") is not False:
                found.append(f"{name} does not say trust_remote_code=False")
        elif name in FORBIDDEN or method == "extractall":
            found.append(name)
        elif given.get("shell") is True or given.get("allow_pickle") is True:
            found.append(f"{name} with shell or allow_pickle")
        elif name == "YAML" and given.get("typ") != "safe":
            found.append("YAML that makes objects")
    return found


def test_nothing_that_security_md_rules_out_is_called():
    found = {str(path): calls_found for path in SOURCES if (calls_found := faults(path.read_text()))}
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        "AutoTokenizer.from_pretrained(folder)",
        "AutoConfig.from_pretrained(folder, trust_remote_code=True)",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "archive.extractall(folder)",
        "subprocess.run(command, shell=True)",
        "YAML(typ='rt').load(text)",
        "eval(text)",
    ],
)
def test_what_is_ruled_out_would_be_seen(text):
    assert faults(text) != []
