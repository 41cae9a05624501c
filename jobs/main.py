"""The command ``cleanplate``: parses, runs one command, and turns every error into one line and an exit status.

0 done, 1 the job failed, 2 the call was wrong, 130 interrupted.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from inspect import get_annotations
from typing import Any, Final, get_type_hints

import jsonargparse
from docstring_parser import parse as parse_docstring

from core.errors import CleanplateError, UsageError
from jobs import config
from jobs.curate_config import CurateConfig
from jobs.data_config import ComposeConfig, EffectsConfig, EncodeConfig, EvaluateConfig, IngestConfig
from jobs.operations_config import DoctorConfig, PlanConfig
from jobs.review_config import ReviewConfig
from jobs.rounds_config import RoundsConfig
from jobs.segment_config import SegmentConfig
from jobs.serve_config import ServeConfig
from jobs.signals import interrupt_on_terminate
from jobs.stats_config import StatsConfig
from jobs.train_config import TrainConfig

COMMANDS: Final[dict[str, tuple[type[Any], str]]] = {
    "demo": (config.DemoConfig, "jobs.demo"),
    "clean": (config.CleanConfig, "jobs.clean"),
    "score": (config.ScoreConfig, "jobs.score"),
    "ingest": (IngestConfig, "jobs.ingest"),
    "compose": (ComposeConfig, "jobs.compose"),
    "effects": (EffectsConfig, "jobs.effects"),
    "curate": (CurateConfig, "jobs.curate"),
    "segment": (SegmentConfig, "jobs.segment"),
    "encode": (EncodeConfig, "jobs.encode"),
    "train": (TrainConfig, "jobs.train"),
    "evaluate": (EvaluateConfig, "jobs.evaluate"),
    "verify": (config.VerifyConfig, "jobs.verify"),
    "stats": (StatsConfig, "jobs.stats"),
    "report": (config.ReportConfig, "jobs.report"),
    "review": (ReviewConfig, "jobs.review"),
    "rounds": (RoundsConfig, "jobs.rounds"),
    "serve": (ServeConfig, "jobs.serve"),
    "models": (config.ModelsConfig, "jobs.models"),
    "doctor": (DoctorConfig, "jobs.doctor"),
    "plan": (PlanConfig, "jobs.plan"),
}


class _Parser(jsonargparse.ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> Any:
        """A wrong call is one line: the first that says what is wrong, without the library's own remarks."""
        cause: BaseException | None = ex
        while cause is not None and not isinstance(cause, UsageError):
            cause = cause.__cause__
        text = str(cause) if cause else " ".join(line.strip() for line in str(message).splitlines() if line.strip())
        raise UsageError(_shorter(text, {action.dest for action in self._actions if not action.option_strings}))


def _shorter(text: str, positional: set[str]) -> str:
    """The library's words for a wrong type list every type that it tried; what was got and what is allowed is enough."""
    match = re.search(r'Parser key "(\w+)".*?(?:Given|Got) value: (.*)$', text)
    if not match:
        return text
    kinds = [kind for kind in re.findall(r"Expected a <class '(\w+)'>", text) if kind != "NoneType"]
    literal = re.search(r"Literal(\[.*?\])", text)
    allowed = literal[1] if literal else " or ".join(dict.fromkeys(kinds)) or "another type"
    name = match[1] if match[1] in positional else f"--{match[1].replace('_', '-')}"
    return f"{name} is {match[2]!r}; it must be {allowed}"


def make_parser(command: str) -> jsonargparse.ArgumentParser:
    """The parser of one command, made from its dataclass: a flag (or a place) a field, help from the docstring, ``--config``."""
    kind, _ = COMMANDS[command]
    docs = [parse_docstring(base.__doc__ or "") for base in reversed(kind.__mro__[:-1])]
    helps = {parameter.arg_name: parameter.description or "" for found in docs for parameter in found.params}
    parser = _Parser(prog=f"cleanplate {command}", description=docs[-1].short_description, print_config="--print-%s")
    parser.add_argument("--config", action="config", help="YAML file with any of these settings; flags win over it")
    hints = get_type_hints(kind)
    for item in _own_first(kind):
        flag = f"--{item.name.replace('_', '-')}"
        text = helps[item.name]
        if item.metadata.get("positional"):
            optional = {} if item.default is MISSING else {"nargs": "?", "default": item.default}
            parser.add_argument(item.name, type=hints[item.name], help=text, **optional)
        elif hints[item.name] is bool:
            parser.add_argument(flag, action=jsonargparse.ActionYesNo(no_prefix="no-"), default=item.default, help=text)
        elif item.default is MISSING:
            parser.add_argument(flag, type=hints[item.name], required=True, help=text)
        else:
            parser.add_argument(flag, type=hints[item.name], default=item.default, help=text)
    return parser


def _own_first(kind: Any) -> list[Field[Any]]:
    """The fields as ``--help`` lists them: what is required, the command's own, what jobs with an input share, how all jobs run."""
    parents = kind.__mro__[:-1]
    if len(parents) == 1:
        return list(fields(kind))
    place = {name: place for place, parent in enumerate(parents) for name in get_annotations(parent)}
    return sorted(fields(kind), key=lambda item: (item.default is not MISSING, place[item.name]))


def parse(command: str, arguments: Sequence[str]) -> Any:
    """The configuration of ``command`` from its arguments.

    Raises:
        UsageError: an unknown key, a wrong type, a value out of its range.
    """
    namespace = make_parser(command).parse_args(list(arguments)).as_dict()
    kind, _ = COMMANDS[command]
    return kind(**{item.name: namespace[item.name] for item in fields(kind)})


def usage() -> str:
    """The page that ``cleanplate --help`` prints."""
    lines = [f"  {name:<10} {parse_docstring(kind.__doc__ or '').short_description}" for name, (kind, _) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: cleanplate COMMAND [--config FILE.yaml] [options]",
            "",
            "Builds, cleans and serves object-removal data and models on Ray.",
            "",
            *lines,
            "",
            "cleanplate COMMAND --help tells all about a command.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        level=os.environ.get("CLEANPLATE_LOG_LEVEL", "INFO"), format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    logging.getLogger("botocore").setLevel(logging.WARNING)
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        print(f"cleanplate: no command {command!r}; the commands are {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    interrupt_on_terminate()
    try:
        settings = parse(command, rest)
        return int(importlib.import_module(COMMANDS[command][1]).run(settings) or 0)
    except CleanplateError as error:
        print(f"cleanplate {command}: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(f"cleanplate {command}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


if __name__ == "__main__":
    sys.exit(main())
