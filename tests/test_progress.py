"""What is told stays what it is: names of users are no markup."""

from __future__ import annotations

import pytest

from deepen.progress import plain_console, printable, say


def test_names_that_look_like_styles_and_emojis_are_printed_as_they_are(capfd: pytest.CaptureFixture[str]) -> None:
    say("baseline: bad:x: of [bold]source[/bold] [/] 1.0 over 3 items")
    plain_console().print("probe :warning: [red]")
    told = capfd.readouterr()
    assert "bad:x: of [bold]source[/bold] [/] 1.0" in told.err and "probe :warning: [red]" in told.out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 日 👍\n\tline", "plain é 日 👍\n\tline"),
        ("\x1b[31mred\x07\x00\r", r"\x1b[31mred\x07\x00\r"),
        ("a\u202egpj.exe\u2069", r"a\u202egpj.exe\u2069"),
        ("lone \ud800", r"lone \ud800"),
        ("\x85\x9b", r"\x85\x9b"),
    ],
)
def test_what_would_act_on_a_terminal_is_escaped(text: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printable(text) == shown
    say(text)
    assert capsys.readouterr().err.expandtabs() == (shown + "\n").expandtabs()
