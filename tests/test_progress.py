"""What is told stays what it is: names of users are no markup."""

from __future__ import annotations

import pytest

from deepen import progress
from deepen.progress import plain_console, printable, say, track


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


@pytest.mark.parametrize(("seconds", "told"), [(150.0, "work: 50% of 2 things, 150 s left"), (0.1, "10 things/s")])
def test_no_rate_is_told_of_what_takes_seconds_each(
    seconds: float, told: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "_LINE_EVERY_SECONDS", 0.0)
    with track("work", 2, "things") as tracker:
        now[0] = seconds
        tracker.advance(1)
    err = capfd.readouterr().err
    assert told in err and ("things/s" in err) == (seconds < 1)
