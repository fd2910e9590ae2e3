import sys

from aimonk_hf.training import progress
from aimonk_hf.training.progress import ProgressBar


def test_a_log_file_gets_whole_lines_and_a_quiet_process_says_nothing(monkeypatch, capsys) -> None:
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    shown = ProgressBar(total=4, done=1, quiet=False)
    shown.after_step(0.25, 1e-3)
    shown.after_step(None, 5e-4)
    shown.close()
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert first.startswith("step 2/4  loss 0.2500  lr 1.0e-03  ")
    assert second.startswith("step 3/4  no label  lr 5.0e-04  ")
    assert first.endswith(" left")
    assert "\r" not in out + err
    ProgressBar(total=4, done=0, quiet=True).after_step(0.25, 1e-3)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_that_follows_an_early_end(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = ProgressBar(total=40, done=0, quiet=False)
    shown.after_step(0.25, 1e-3)
    shown.skip_to(10, 20)
    shown.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert "10/20" in err
    assert "loss=0.250, lr=1.0e-03" in err
