"""The command line: its flags are frozen, its errors are one line, its exit statuses are those of the contract."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from core.errors import UsageError
from jobs.main import COMMANDS, main, make_parser, parse

FLAGS = Path(__file__).parents[1] / "data" / "flags.json"


def flags() -> dict[str, list[str]]:
    return {
        command: sorted(flag for action in make_parser(command)._actions for flag in action.option_strings if flag.startswith("--"))
        for command in COMMANDS
    }


def test_flags_are_frozen() -> None:
    """Other programs call these: a flag that goes or changes its name breaks them. Add new ones to tests/data/flags.json."""
    assert flags() == json.loads(FLAGS.read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_explained(command: str) -> None:
    kind, _ = COMMANDS[command]
    helps = {action.dest: action.help for action in make_parser(command)._actions}
    assert all(helps[item.name] and len(helps[item.name]) > 8 for item in fields(kind))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["clean", "--input", "x"], "output"),
        (["clean", "--input", "x", "--output", "y", "--stepz", "4"], "--stepz"),
        (["clean", "--input", "x", "--output", "y", "--steps", "four"], "--steps is 'four'; it must be int"),
        (["clean", "--input", "x", "--output", "y", "--threshold", "high"], "--threshold is 'high'; it must be float"),
        (["clean", "--input", "x", "--output", "y", "--scoring", "maybe"], "'shared', 'pool'"),
        (["clean", "--input", "x", "--output", "y", "--threshold", "1.5"], "--threshold is 1.5; it must be from 0 to 1"),
        (["clean", "--input", "x", "--output", "y", "--uncertain", "0.95"], "--uncertain is 0.95; it must be from 0 to 0.9"),
        (["clean", "--input", "x", "--output", "y", "--min-actors", "3", "--max-actors", "2"], "--min-actors 3 is above --max-actors 2"),
        (["clean", "--input", "ftp://x/y", "--output", "y"], "scheme ftp:// is not supported"),
        (["clean", "--input", "s3://", "--output", "y"], "names no bucket"),
        (["clean", "--config", "/no/such/file.yaml", "--input", "x", "--output", "y"], "/no/such/file.yaml"),
        (["paint"], "no command 'paint'; the commands are demo, clean"),
        (["verify", "--input", "/no/such/folder"], "not the output of a cleanplate job"),
    ],
)
def test_a_wrong_call_is_one_line_and_status_2(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert says in error
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error


def test_config_file_and_flags_that_win_over_it(tmp_path: Path) -> None:
    path = tmp_path / "clean.yaml"
    path.write_text(yaml.safe_dump({"input": "a", "output": "b", "steps": 7, "max_failure_rate": 0.5}))
    config = parse("clean", ["--config", str(path), "--steps", "9"])
    assert (config.input, config.steps, config.max_failure_rate) == ("a", 9, 0.5)
    path.write_text(yaml.safe_dump({"input": "a", "output": "b", "stepz": 7}))
    with pytest.raises(UsageError, match="stepz"):
        parse("clean", ["--config", str(path)])


def test_print_config_is_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["clean", "--input", "a", "--output", "b", "--seed", "3", "--print-config"])
    assert done.value.code == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert parse("clean", ["--config", str(path)]) == parse("clean", ["--input", "a", "--output", "b", "--seed", "3"])


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert main([]) == 2
