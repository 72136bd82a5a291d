"""The file of a chat template is an input: a missing one is a problem, another content another run."""

from deepen.recipe.reading import load
from deepen.tokenize.config import TokenizeConfig, problems
from deepen.workflow.inputs.find import resolve_setup


def test_a_missing_template_is_a_problem(tmp_path):
    (found,) = problems(TokenizeConfig(template=str(tmp_path / "none.jinja")))
    assert found.path == "tokenize.template"
    assert not list(problems(TokenizeConfig(template="none")))


def test_the_template_counts_by_content(tiny, tmp_path):
    template, marks = tmp_path / "own.jinja", []
    for text in ("{{ messages }}", "{{ messages }} "):
        template.write_text(text)
        loaded = load(tiny, None, [f"tokenize.template={template}"])
        setup = resolve_setup(loaded.recipe, loaded.machine, tmp_path / "run", offline=True)
        marks.append(setup.raw_inputs["tokenize:template"].fingerprint)
    assert marks[0] != marks[1]
