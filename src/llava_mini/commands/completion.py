"""`llava-mini completion bash`: a script by which a shell completes commands, groups with their options, and keys."""

from __future__ import annotations

from collections.abc import Sequence

from llava_mini.command_line.parser import Parser
from llava_mini.command_line.table import COMMANDS, CONFIGURED
from llava_mini.config import options, resolve
from llava_mini.config.reference import GROUPS, arguments, keys

_SCRIPT = """\
{start}COMP_WORDBREAKS=${{COMP_WORDBREAKS//=}}
_llava_mini() {{
  local word=${{COMP_WORDS[COMP_CWORD]}}
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    return
  fi
  case " {configured} " in
    *" ${{COMP_WORDS[1]}} "*) COMPREPLY=($(compgen -W "{words}" -- "$word")) ;;
  esac
  if [ "${{#COMPREPLY[@]}}" -eq 1 ] && [ "${{COMPREPLY[0]%=}}" != "${{COMPREPLY[0]}}" ]; then
    compopt -o nospace 2>/dev/null
  fi
}}
complete -o default -F _llava_mini llava-mini
"""


def completion(given: Sequence[str], _config_dirs: tuple[str, ...] = ()) -> int:
    """Print the script for the shell that is named."""
    parser = Parser(
        prog="llava-mini completion",
        description="Prints a script by which a shell completes commands, options of groups and config keys: "
        'eval "$(llava-mini completion bash)".',
    )
    parser.add_argument("shell", choices=("bash", "zsh"))
    shell = parser.parse_args(given).shell
    words = [f"{group}={name}" for group in GROUPS for name in options(group)] + [
        f"{key.name}=" for key in (*keys(resolve([])), *arguments())
    ]
    start = "autoload -U bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    configured = [*(name for name in CONFIGURED if name != "compare"), "plan"]
    texts = {"commands": " ".join(COMMANDS), "configured": " ".join(configured), "words": " ".join(words)}
    print(_SCRIPT.format(start=start, **texts), end="")
    return 0
