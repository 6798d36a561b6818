"""completion - write contrib/completion/ for bash and zsh, from proxymapctl's own parser

`make completion` runs it after a change of the command line; shtab writes the
scripts. tests/ctl/test_completion.py finds a command or an option that is missing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import shtab

from proxymap.ctl import main as ctl
from proxymap.tables.types import TABLE_TYPES

FOLDER = Path(__file__).resolve().parent / "completion"
FILES = {"bash": "proxymapctl", "zsh": "_proxymapctl"}  # the names that the shells look for

# What may stand where, by the word that --help has for it.
TABLE = {"bash": "_proxymapctl_table", "zsh": "_proxymapctl_table"}
VALUES = {
    "DIR": shtab.DIRECTORY,
    "PATH": shtab.FILE,
    "SOURCE": shtab.FILE,
    "TYPE:NAME": TABLE,
    "TYPE:FILE": TABLE,
}

PREAMBLE = {
    "bash": """
_proxymapctl_table() {{
  case $1 in
    *:*) compgen -f -- "${{1#*:}}" ;; # readline keeps what stands before the colon
    *) compgen -W "{types}" -- "$1" ;;
  esac
}}
# To bash TYPE:NAME is three words, of which the colon is one: make them one, then ask shtab's function.
_proxymapctl() {{
  local given=("${{COMP_WORDS[@]:0:COMP_CWORD+1}}") word
  local COMP_WORDS=() COMP_CWORD=-1
  for word in "${{given[@]}}"; do
    if [[ $COMP_CWORD -ge 0 && ($word = : || ${{COMP_WORDS[COMP_CWORD]}} = *:) ]]; then
      COMP_WORDS[COMP_CWORD]+=$word
    else
      COMP_WORDS[++COMP_CWORD]=$word
    fi
  done
  _shtab_proxymapctl
  if [[ ${{COMP_WORDS[COMP_CWORD]}} = *:* ]]; then
    compopt -o filenames 2>/dev/null
  elif [[ ${{COMPREPLY[0]-}} = *: ]]; then
    compopt -o nospace 2>/dev/null
  fi
}}
""",
    "zsh": """
_proxymapctl_table() {{
  if compset -P '*:'; then
    _files
  else
    compadd -S '' -- {types}
  fi
}}
""",
}


def whole_parser() -> argparse.ArgumentParser:
    """proxymapctl's parser, with what each command adds."""
    parser = ctl.parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    for command in commands.choices.values():
        command.load()
        _tell_values(command)
    _tell_values(parser)
    return parser


def _tell_values(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        if isinstance(action.metavar, str) and action.metavar in VALUES:
            action.complete = VALUES[action.metavar]  # type: ignore[attr-defined]


def main() -> None:
    """Write both scripts."""
    types = " ".join(f"{name}:" for name in TABLE_TYPES)
    preamble = {shell: text.format(types=types) for shell, text in PREAMBLE.items()}
    for shell, name in FILES.items():
        text = shtab.complete(whole_parser(), shell=shell, preamble=preamble)
        lines = [line.rstrip() for line in text.splitlines()]
        if shell == "bash":
            assert lines[-1] == "complete -o bashdefault -F _shtab_proxymapctl proxymapctl"
            lines[-1] = "complete -o bashdefault -F _proxymapctl proxymapctl"
        (FOLDER / name).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
