"""Lines where there is no terminal; silence where nothing is to be shown."""

from medcare_jax.run.progress import Display


def test_lines_tell_step_loss_and_speed(capsys):
    with Display().bar("mka", 2) as bar:
        bar.update(1, {"loss": 1.25, "tokens_per_second": 321.0, "leak": 0.0})
        bar.update(2, {"loss": 1.0, "tokens_per_second": 300.0, "leak": 2e-7})
    shown = capsys.readouterr().err
    assert "mka 1/2 loss 1.2500  321 tok/s" in shown
    assert "mka 2/2 loss 1.0000  300 tok/s  leak 2.0e-07 ETA 0 s" in shown


def test_other_processes_are_silent(capsys):
    display = Display(is_shown=False)
    display.headline("a")
    display.line("b")
    with display.bar("c", 1) as bar:
        bar.update(1, {})
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_bars_are_for_terminals_that_somebody_looks_at(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # what rich takes for a terminal
    assert Display().is_live
    assert not Display(is_shown=False).is_live


def test_a_folder_may_be_called_anything(capsys):
    Display().headline("models/[/x]")
    assert "models/[/x]" in capsys.readouterr().err
