"""What is told stays what it is: names of users are no markup."""

from __future__ import annotations

import pytest

from deepen.progress import plain_console, say


def test_names_that_look_like_styles_and_emojis_are_printed_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    say("baseline: bad:x: of [bold]source[/bold] [/] 1.0 over 3 items")
    plain_console().print("probe :warning: [red]")
    told = capfd.readouterr()
    assert "bad:x: of [bold]source[/bold] [/] 1.0" in told.err and "probe :warning: [red]" in told.out
