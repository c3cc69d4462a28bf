"""``fastsync completion``: the script that teaches a shell our verbs, options and places."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import ShellComplete, get_completion_class

from fastsync.cli.main import COMPLETE_VARIABLE, PROGRAM

# Not click's own: bash takes "s3://bucket/day=1" for five words, and wants back what comes after the last
# colon or the like; and what it gets is what is typed, so names are quoted as on the line. Within
# quotes a name that would end them, or be a command, is not offered: anybody may have put it there.
_BASH: Final = r"""
_fastsync_completion() {
    local line=${COMP_LINE:0:COMP_POINT} number=0 word='' quote='' cut='' at char kind value
    for ((at = 0; at < ${#line}; at++)); do
        char=${line:at:1}
        if [[ $quote ]]; then
            [[ $char == "$quote" ]] && quote=''
        elif [[ $char == [\"\'] ]]; then
            quote=$char
        elif [[ $char == [[:space:]] ]]; then
            [[ $word ]] && number=$((number + 1))
            word='' cut=''
            continue
        elif [[ $char == \\ ]]; then
            word+=$char at=$((at + 1)) char=${line:at:1}
        elif [[ $COMP_WORDBREAKS == *"$char"* ]]; then
            cut=$word$char
        fi
        word+=$char
    done
    COMPREPLY=()
    while IFS=, read -r kind value; do
        case $kind in
        dir) compopt -o dirnames ;;
        file) compopt -o default ;;
        plain)
            case $quote in
            '') printf -v value %q "$value" ;;
            \") [[ $value == *[\\\$\`\"!]* ]] && continue ;;
            \') [[ $value == *\'* ]] && continue ;;
            esac
            COMPREPLY+=("${value#"$cut"}")
            ;;
        esac
    done < <(COMP_WORDS=$line COMP_CWORD=$number VARIABLE=bash_complete "$1" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == */ ]]; then
        compopt -o nospace
    fi
}
complete -F _fastsync_completion fastsync
"""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell. It completes places, too, also remote ones.

    \b
    Examples, to enable it:
      ~/.bashrc   eval "$(fastsync completion bash)"
      ~/.zshrc    eval "$(fastsync completion zsh)"
    or write it to a file for fish
      fastsync completion fish > ~/.config/fish/completions/fastsync.fish
    """
    if shell == "bash":
        click.echo(_BASH.strip().replace("VARIABLE", COMPLETE_VARIABLE))
        return
    kind = get_completion_class(shell)
    assert kind is not None  # click knows both
    script = ShellComplete.source(kind(context.find_root().command, {}, PROGRAM, COMPLETE_VARIABLE))
    # No space after a directory: more is to come.
    click.echo(script.replace("compadd -U -V", "compadd -U -S '' -V"))
