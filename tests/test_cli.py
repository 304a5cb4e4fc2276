"""The command line: what is printed and returned, and what a missing extra or a wrong option gets."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

pytest.importorskip("rich", reason="needs the extra 'demo'")

from mcelbo import cli, doctor
from mcelbo_kernels import cpu

EXTRAS = ("matplotlib", "PIL", "rich", "sklearn")


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the message with which the command line refuses its arguments."""
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == version("mcelbo")


def test_a_doctor_finds_the_fused_path_working(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for start, part in (("versions", f"mcelbo {version('mcelbo')}"), ("threads", "torch"), ("fused CPU path", "works")):
        assert any(line.startswith(start) and part in line for line in lines)


@pytest.mark.parametrize(
    ("team", "said"), [(cpu.Team("somebody's team", 1), "somebody's team"), (None, "a pool of mcelbo's own")]
)
def test_a_doctor_says_who_helps(
    team: cpu.Team | None, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "present_team", lambda: team)
    cli.main(["doctor"])
    assert f"helpers          {said}\n" in capsys.readouterr().out


def test_a_doctor_says_where_kernels_are_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "DIRECTORY", None)
    cli.main(["doctor"])
    assert "compiled anew in every process" in capsys.readouterr().out


def test_a_doctor_sees_wrong_numbers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "largest_difference", lambda device: 0.01)
    assert cli.main(["doctor"]) == 1
    assert "WRONG: loss and gradients differ from torch's by 0.01" in capsys.readouterr().out


def test_a_doctor_survives_what_it_finds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(device: torch.device) -> float:
        raise OSError("no compiler")

    monkeypatch.setattr(doctor, "largest_difference", broken)
    assert cli.main(["doctor"]) == 1
    assert "FAILS: OSError: no compiler" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["demo", "study"])
def test_a_missing_extra_is_named(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("rich", "sklearn"):
        monkeypatch.setitem(sys.modules, name, None)
    assert f"{command} needs rich, sklearn: pip install 'mcelbo[demo]'" in refused([command], capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "required"),
        (["train"], "invalid choice: 'train'"),
        (["demo", "--num-samples", "0"], "argument --num-samples: 0: expected at least 1"),
        (["demo", "--epochs", "two"], "argument --epochs"),
        (["demo", "--seed", "-1"], "argument --seed: -1: expected 0 <= seed < 2**63"),
        (["study", "--counts", "4,0"], "argument --counts: 0: expected at least 1"),
        (["demo", "--output", "report.gif"], "--output is report.gif: expected a name that ends in .png"),
        (["demo", "--output", "nowhere/report.png"], "there is no folder nowhere"),
        (["study", "--data", "nowhere.npz"], "--data is nowhere.npz: expected an existing"),
    ],
)
def test_wrong_options_are_refused(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(argv, capsys)


def test_the_library_imports_nothing_of_the_extra() -> None:
    code = f"import mcelbo, sys; print([name for name in {EXTRAS} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"
