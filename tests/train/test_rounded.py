from deepen.train.starting.resolved import prepare_continuation, read_resolved


def test_what_whole_steps_made_of_the_schedule_is_recorded_and_said(run, settings, tmp_path, capsys):
    run(settings(schedule={"use": "cosine", "warmup": "1%"}))
    (note,) = read_resolved(tmp_path / "train").rounded
    assert note == "train.schedule.warmup: 1% of a run of 8 steps is 0.08 steps and becomes 0 steps"
    assert note in capsys.readouterr().err


def test_a_continuation_says_it_of_its_own_decay_and_of_the_warmup_that_was(run, settings, tmp_path):
    schedule = {"use": "wsd", "warmup": "1%", "decay": "3%"}
    old, new = settings(schedule=schedule), settings(steps=16, schedule=schedule)
    run(old)
    assert len(read_resolved(tmp_path / "train").rounded) == 2
    prepare_continuation(tmp_path / "train", old, new)
    warmup, decay = read_resolved(tmp_path / "train").rounded
    assert "a run of 8 steps" in warmup and "becomes 0 steps" in warmup
    assert "a run of 16 steps" in decay and "becomes 1 step" in decay
