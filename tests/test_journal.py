"""The log, the progress line, warnings, and reading back what a killed run left."""

import json
import math

import pytest

from journal import Journal, finite_or_none, progress_line, read_log

RECORD = {
    "step": 30,
    "epoch": 1.5,
    "loss": 1.25,
    "per_rank": {"kingdom": 0.5, "order": None, "species": 2.0},
    "floor": {"kingdom": 0.1, "order": None, "species": 0.2},
    "lr": 2.5e-4,
    "samples_per_second": 812.4,
    "waiting": 0.07,
    "eta": 3725,
    "scalars": {"curvature": 1.0, "logit_scale": 14.3, "image_alpha": 0.25},
    "used": 300,
    "quarantined": 2,
}


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path, {}, (), 1200)
    yield journal
    journal.close()


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_steps_are_on_disk_at_once_and_shown(journal, tmp_path, capsys):
    journal.step(RECORD)
    assert lines(tmp_path) == [RECORD]  # not only after close
    assert capsys.readouterr().err == progress_line(RECORD, 1200) + "\n"


def test_progress_line():
    line = progress_line(RECORD, 1200)
    for part in ("step 30/1200", "loss 1.250", "[k 0.50 s 2.00]", "lr 2.50e-04", "812 img/s", "wait 7%",
                 "curvature 1 ", "logit_scale 14.3", "eta 1:02:05"):  # fmt: skip
        assert part in line, (part, line)
    assert "\n" not in line


def test_a_terminal_gets_one_line_that_changes(journal, capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    journal.step(RECORD)
    journal.step(RECORD | {"step": 31})
    journal.warn_once("a", "mind this")
    shown = capsys.readouterr().err
    assert shown.count("\r\x1b[K") == 2
    assert shown.endswith("\nwarning: mind this\n")


def test_warnings_come_once_for_each_key(journal, tmp_path, capsys):
    for key in ("curvature", "curvature", "logit_scale"):
        journal.warn_once(key, f"{key} sits on its bound")
    assert capsys.readouterr().err.splitlines() == [
        "warning: curvature sits on its bound",
        "warning: logit_scale sits on its bound",
    ]
    assert [(r["event"], r["message"].split()[0]) for r in lines(tmp_path)] == [
        ("warning", "curvature"),
        ("warning", "logit_scale"),
    ]


def test_events_are_no_steps(journal, tmp_path):
    journal.event("start", samples=3)
    journal.step(RECORD)
    journal.event("checkpoint", step=30, path="step-00000030")
    assert read_log(tmp_path / "log.jsonl") == [RECORD]


def test_a_second_journal_appends(tmp_path):
    for step in (1, 2):
        journal = Journal(tmp_path, {}, (), 10)
        journal.step(RECORD | {"step": step})
        journal.close()
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == [1, 2]


def test_read_log_takes_the_last_of_repeated_steps(tmp_path):
    records = [{"step": s, "loss": x} for s, x in ((1, 9.0), (2, 8.0), (3, 7.0), (2, 8.5), (3, 7.5), (4, 6.0))]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert [(r["step"], r["loss"]) for r in read_log(tmp_path / "log.jsonl")] == [
        (1, 9.0),
        (2, 8.5),
        (3, 7.5),
        (4, 6.0),
    ]


@pytest.mark.parametrize("kept", [1, 9, -1, -4])
def test_read_log_drops_a_line_cut_by_a_kill(tmp_path, kept):
    whole = json.dumps({"step": 1, "loss": 1.0}) + "\n"
    cut = json.dumps({"step": 2, "place": "Ångström"}, ensure_ascii=False).encode()
    for end in (cut[:kept], cut[: cut.index(b"\xc3") + 1]):  # the second inside a character
        for rest in (
            b"",
            json.dumps({"event": "start"}).encode() + b"\n" + b'{"step": 3}\n',
        ):  # and resumed after it
            (tmp_path / "log.jsonl").write_bytes(whole.encode() + end + rest)
            assert [r["step"] for r in read_log(tmp_path / "log.jsonl")] == ([1, 3] if rest else [1])


@pytest.mark.parametrize(
    ("value", "written"), [(1.23456789, 1.234568), (math.nan, None), (-math.inf, None), (0, 0)]
)
def test_finite_or_none(value, written):
    assert finite_or_none(value) == written


def test_nan_is_refused(journal):
    with pytest.raises(ValueError, match="Out of range float"):
        journal.step(RECORD | {"loss": math.nan})


def test_tensorboard_has_every_number_once_the_journal_is_closed(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal = Journal(tmp_path, {}, ("tensorboard",), 1200)
    for step in (1, 2):
        journal.step(RECORD | {"step": step, "loss": float(step)})
    journal.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 2.0)]
    assert {"per_rank/kingdom", "scalars/logit_scale", "lr", "waiting"} <= set(events.Tags()["scalars"])
    assert "per_rank/order" not in events.Tags()["scalars"]  # absent, not zero
