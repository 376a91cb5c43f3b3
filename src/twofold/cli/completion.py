"""`twofold completion`."""

from __future__ import annotations

from typing import Annotated

import typer

from twofold.cli.misuse import Misuse
from twofold.cli.options import model_names

SHELLS = ("bash", "zsh", "fish")


def command(shell: Annotated[str, typer.Argument(help=f"{', '.join(SHELLS)}.")]) -> None:
    """Prints a script that completes verbs, options and model names.

    twofold completion bash > ~/.local/share/bash-completion/completions/twofold

    twofold completion zsh >> ~/.zshrc

    twofold completion fish > ~/.config/fish/completions/twofold.fish

    The script contains the current lists, so completion does not start Python. Regenerate it after an update.
    """
    if shell not in SHELLS:
        raise Misuse(f"unknown shell {shell!r}; known: {', '.join(SHELLS)}")
    print(fish_script() if shell == "fish" else bash_script(zsh=shell == "zsh"), end="")


def verb_options() -> dict[str, list[str]]:
    """The options of every verb, long and short."""
    from twofold.cli.app import VERBS, module_of

    found = {}
    for verb in VERBS:
        app = typer.Typer(add_completion=False)
        app.command()(module_of(verb).command)
        parameters = typer.main.get_command(app).params
        given = [name for p in parameters for name in (*p.opts, *p.secondary_opts) if name.startswith("-")]
        found[verb] = sorted({*given, "--help"})
    return found


def bash_script(*, zsh: bool = False) -> str:
    """For bash, and for zsh, which can run it."""
    options = verb_options()
    cases = "\n".join(f"    {verb}) words='{' '.join(names)}' ;;" for verb, names in options.items())
    start = "autoload -U +X bashcompinit && bashcompinit\n" if zsh else ""
    return f"""{start}_twofold() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{" ".join(options)} --help --version' -- "$word"))
    return
  fi
  case $before in
    --model|-m) COMPREPLY=($(compgen -W '{" ".join(model_names())}' -- "$word") $(compgen -f -- "$word")); return ;;
  esac
  case ${{COMP_WORDS[1]}} in
{cases}
  esac
  case $word in
    -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
    *) COMPREPLY=($(compgen -f -- "$word")) ;;
  esac
}}
complete -o filenames -F _twofold twofold
"""


def fish_script() -> str:
    """For fish."""
    from twofold.cli.app import VERBS

    lines = [f'complete -c twofold -n __fish_use_subcommand -f -a {verb} -d "{about}"' for verb, about in VERBS.items()]
    for verb, names in verb_options().items():
        seen = f"-n '__fish_seen_subcommand_from {verb}'"
        for name in names:
            flag = f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
            values = f" -r -a '{' '.join(model_names())}'" if name in ("--model", "-m") else ""
            lines.append(f"complete -c twofold {seen} {flag}{values}")
    return "\n".join(lines) + "\n"
