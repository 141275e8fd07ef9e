"""How far an evaluation is, off a terminal."""

import io

from steper_ray.evaluation.progress import Progress


def test_off_a_terminal_the_end_is_told_in_a_plain_line():
    out = io.StringIO()
    with Progress(4, out) as progress:
        progress.advance(2, "steper, chain")
        progress.advance(2, "steper, chain")
    lines = out.getvalue().splitlines()
    assert lines == ["evaluate: 4/4 questions (steper, chain), about 0 s left"]


def test_on_a_terminal_a_bar_counts_questions():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with Progress(4, out) as progress:
        progress.advance(4, "steper, chain")
    assert "4/4" in out.getvalue()
    assert "steper, chain" in out.getvalue()


def test_what_is_not_to_be_shown_is_silent():
    out = io.StringIO()
    with Progress(4, out, shown=False) as progress:
        progress.advance(4, "steper, chain")
    assert out.getvalue() == ""
