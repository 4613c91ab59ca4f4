"""Progress and notes of a command on standard error."""

import io

from retrieval.cli.console import ConsoleProgress, clock, pace


def lines(text):
    return [line for line in text.splitlines() if line.strip()]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_in_a_file_is_one_line_per_stage():
    stream = io.StringIO()
    with ConsoleProgress(stream=stream) as console:
        console.note("four images")
        for done in range(1, 4):
            console("indexing", done, 3)
        console("merging", 0, None)
    message = lines(stream.getvalue())
    assert [line.split(" in ")[0] for line in message] == ["four images", "indexing: 3", "merging"]
    assert "\r" not in stream.getvalue()


def test_progress_on_a_terminal_has_rate_and_time_left(monkeypatch):
    moment = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: moment[0])
    stream = Terminal()
    with ConsoleProgress(stream=stream) as console:
        for done in range(1, 5):
            moment[0] += 2
            console("indexing", done, 4)
    assert "indexing  2/4  2.0 s each  0:04 left" in stream.getvalue()
    assert lines(stream.getvalue().split("\033[K")[-1]) == ["indexing: 4 in 8.0 s, 2.0 s each"]


def test_no_color_turns_colours_off(monkeypatch):
    for variable, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", variable)
        stream = Terminal()
        with ConsoleProgress(stream=stream, redraw_s=0) as console:
            console("indexing", 2, 4)
        assert "#" * 12 in stream.getvalue() and "-" * 12 in stream.getvalue()
        assert ("\033[32m" in stream.getvalue()) is coloured


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with ConsoleProgress(stream=stream) as console:
        console("indexing", 2, 4)
    assert "\r" not in stream.getvalue() and "\033" not in stream.getvalue()


def test_a_long_stage_prints_a_line_every_half_minute(monkeypatch):
    moment = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: moment[0])
    stream = io.StringIO()
    with ConsoleProgress(stream=stream) as console:
        for done in range(1, 41):
            moment[0] += 2
            console("indexing", done, 40)
    message = lines(stream.getvalue())
    assert message[0] == "indexing  15/40  2.0 s each  0:50 left"
    assert len(message) == 3 and message[-1] == "indexing: 40 in 80.0 s, 2.0 s each"


def test_quiet_progress_prints_nothing():
    stream = Terminal()
    with ConsoleProgress(quiet=True, stream=stream) as console:
        console.note("four images")
        console("indexing", 1, 4)
    assert stream.getvalue() == ""


def test_rates_and_times_are_readable():
    assert [pace(rate) for rate in (1234.5, 7.46, 0.25)] == ["1234/s", "7.5/s", "4.0 s each"]
    assert [clock(s) for s in (0, 61, 3723)] == ["0:00", "1:01", "1:02:03"]
