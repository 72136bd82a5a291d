"""Settings of mix that cannot work are all found before any work."""

from typing import Any

import pytest

from deepen.mix.config import MixConfig, problems, timing_problems

SOURCES = [("papers", "domain"), ("notes", "domain"), ("web", "replay"), ("news", "watch")]


def found(sources: Any = SOURCES, **keys: Any) -> dict[str, str]:
    config = MixConfig.model_validate(keys)
    wrong = [*problems(config, sources), *timing_problems(config, total_steps=100, tokens_per_step=4096)]
    assert all(problem.remedy for problem in wrong)
    return {problem.path: problem.message for problem in wrong}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"sequence_length": [{"until": "80%", "length": 512}, {"length": 4096}]},
        {"domain_share": [{"until": "10%", "share": 0.4}, {"until": "100%", "share": 0.7, "ramp": "linear"}]},
        {"weights": {"papers": 2, "notes": 1}, "anneal": {"last": "10%", "weights": {"web": 1}}},
        {"weights": "unimax", "max_epochs": 100, "allow_repetition": True, "balance": "category"},
        {"order": "megatron", "isolate": True, "weights": "equal"},
        {"control": True, "domain_share": 1.0},
    ],
)
def test_what_works_is_not_complained_about(keys: dict[str, Any]) -> None:
    assert found(**keys) == {}


@pytest.mark.parametrize(
    ("keys", "path", "message"),
    [
        ({"max_epochs": 20}, "mix.max_epochs", "beyond 16 passes"),
        ({"weights": {"papers": 1}}, "mix.weights", "has no weight for `notes`"),
        ({"weights": {"paper": 1}}, "mix.weights.paper", "is no source of this recipe"),
        ({"weights": {"news": 1}}, "mix.weights.news", "its role is `watch`"),
        ({"anneal": {"last": "10%", "weights": {"notes": 1}}}, "mix.anneal.weights", "has no weight for `papers`"),
        ({"anneal": {"last": "10%"}}, "mix.anneal", "changes nothing"),
        ({"anneal": {"last": "10min", "domain_share": 1}}, "mix.anneal.last", "may not depend on time"),
        ({"anneal": {"last": "101 steps", "domain_share": 1}}, "mix.anneal.last", "is 101 of 100 steps"),
        ({"temperature": 3, "weights": "equal"}, "mix.temperature", "flattens proportional weights"),
        ({"domain_share": []}, "mix.domain_share", "the list is empty"),
        ({"domain_share": [{"share": 0.5, "ramp": "linear"}]}, "mix.domain_share[0].ramp", "needs a share to begin at"),
        ({"domain_share": [{"share": 0.5}, {"share": 1}]}, "mix.domain_share[0].until", "only the last part"),
        ({"domain_share": [{"until": "50%", "share": 1}]}, "mix.domain_share[0].until", "nothing says what follows"),
        (
            {"sequence_length": [{"until": "50%", "length": 8}, {"until": "9 steps", "length": 4}, {"length": 2}]},
            "mix.sequence_length[1].until", "the part before it ends at 50",
        ),
        (
            {"sequence_length": [{"until": "50%", "length": 512}, {"length": 3000}]},
            "mix.sequence_length[1].length", "not a whole number of rows",
        ),
        (
            {"sequence_length": [{"until": "50%", "length": 512}, {"length": 512}]},
            "mix.sequence_length", "names a length twice",
        ),
        ({"order": "megatron", "balance": "category"}, "mix.balance", "knows no such thing"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_named(keys: dict[str, Any], path: str, message: str) -> None:
    assert message in found(**keys)[path]


def test_roles_that_no_source_has() -> None:
    alone = [("papers", "domain")]
    assert "asks for 50% replay text" in found(alone, domain_share=0.5)["mix.domain_share"]
    parts = [{"until": "50%", "share": 1}, {"share": 0.5}]
    assert list(found(alone, domain_share=parts)) == ["mix.domain_share[1].share"]
    assert "no source has that role" in found(alone, control=True)["mix.control"]


@pytest.mark.parametrize("keys", [{"weights": {"papers": 0}}, {"temperature": 0.5}, {"balance": {"law": -1}}])
def test_values_out_of_range_are_no_settings(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))):
        MixConfig.model_validate(keys)
