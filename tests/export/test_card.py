"""The model card: its numbers are those of the manifests."""

from __future__ import annotations

from tests.export.conftest import Run


def card(run: Run) -> str:
    run.export()
    return (run.out / "README.md").read_text()


def test_data_and_training_come_from_manifests(run: Run) -> None:
    text = card(run)
    assert "| papers | domain | CC-BY-4.0 | 1,234 | 55,555 | 7,000 | 3 |" in text
    assert "| web | replay | not stated | 777 | 44,444 | 3,000 | 0 |" in text
    assert "10 optimizer steps over 10,000 tokens, in rows of 64 tokens, 4 rows per step." in text
    assert "3.2500 nats per token" in text and '"tokens": 10000' in text


def test_scores_carry_intervals(run: Run) -> None:
    text = card(run)
    assert "| held_out:papers | new | 2.0000 | 1.5000 | -25.00% | -26.00% to -24.00% | 3 |" in text
    assert "Because of the numbers." in text


def test_what_was_not_measured_is_said(run: Run) -> None:
    text = card(run)
    assert "Forgetting was not measured" in text
    assert "without scores: web." in text
    assert "Some sources state no licence." in text


def test_the_base_has_its_own_scores(run: Run) -> None:
    run.choose(None)
    assert "| papers | new | 2.0000 | 3 |" in card(run)


def test_the_header_is_what_the_hub_reads(run: Run) -> None:
    text = card(run)
    assert text.startswith("---\nlibrary_name: transformers\npipeline_tag: text-generation\n")
    assert "AutoModelForCausalLM.from_pretrained" in text


def test_size_and_difference_are_stated(run: Run) -> None:
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    assert f"{parameters:,} parameters in float32 and a vocabulary of 300 tokens" in card(run)


def test_lineage_without_kept_sources_is_named(without_kept: Run) -> None:
    assert "there are no scored replay or watch documents" in card(without_kept)
