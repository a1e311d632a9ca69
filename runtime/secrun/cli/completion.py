"""Completion scripts for shells, made from the option table; they ask secrun only for pods and images."""

from collections.abc import Iterable, Iterator, Sequence

from secrun.cli.options import GLOBAL, all_verbs
from secrun.cli.table import Arguments, Context, Kind, Option, Verb
from secrun.errors import UsageError

_PODS = "secrun list --quiet 2>/dev/null"
_IMAGES = 'secrun image list --no-legend 2>/dev/null | awk "{print \\$2}"'
# Which positionals are pods and images; of the others the shell's own file names are offered.
_SOURCES = {"uuid": "pods", "image": "images"}
# How many words the longest command has.
_DEPTH = 3


def _takes_value(option: Option) -> bool:
    return option.kind not in (Kind.FLAG, Kind.OPTIONAL_TEXT)


def _source(verb: Verb) -> str:
    """Return where the words of `verb` come from: pods, images, or files."""
    if verb.takes_apps:
        return "images"
    return next((_SOURCES[item.name] for item in verb.positionals if item.name in _SOURCES), "files")


def _continuations(verbs: Sequence[Verb]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each beginning of a command with the words that may come next, and what each does."""
    found: dict[str, dict[str, str]] = {}
    for verb in verbs:
        for index, word in enumerate(verb.words):
            whole = index + 1 == len(verb.words)
            after = found.setdefault(" ".join(verb.words[:index]), {})
            if whole or word not in after:
                after[word] = verb.summary if whole else f"commands of {word}"
    yield from sorted(found.items())


def _pattern(words: Iterable[str]) -> str:
    """Return a pattern of a shell's `case` that matches exactly one of `words`."""
    return "|".join(f"'{word}'" for word in words)


def _flags(options: Iterable[Option]) -> str:
    return " ".join(flag for option in options for flag in option.flags)


def _bash_values(verb: str, options: Iterable[Option]) -> Iterator[str]:
    for option in options:
        if not _takes_value(option):
            continue
        given = _pattern(f"{verb} {flag}" for flag in option.flags)
        if option.choices:
            yield f"        {given}) _secrun_offer '{' '.join(option.choices)}' ;;\n"
        else:
            yield f"        {given}) compopt -o default ;;\n"


def bash() -> str:
    """Return the script for bash (bash(1), Programmable Completion)."""
    verbs = all_verbs()
    parts = [
        (
            "# bash completion for secrun: source <(secrun completion bash)\n"
            '_secrun_offer() { COMPREPLY=($(compgen -W "$1" -- "$cur")); }\n\n'
            "_secrun_next() {\n    case $1 in\n"
        )
    ]
    for begin, after in _continuations(verbs):
        extra = f" {_flags(GLOBAL)} --help --version" if not begin else ""
        parts.append(f"        '{begin}') _secrun_offer '{' '.join(after)}{extra}' ;;\n")
    parts.append("    esac\n}\n\n_secrun_value() {\n    case $1 in\n")
    parts += _bash_values("", GLOBAL)
    for verb in verbs:
        parts += _bash_values(" ".join(verb.words), verb.options)
    parts.append("        *) return 1 ;;\n    esac\n}\n\n_secrun_words() {\n    case $1 in\n")
    for verb in verbs:
        offered = f"{_flags(verb.options)} --help".strip()
        parts.append(f"        '{' '.join(verb.words)}') flags='{offered}' source={_source(verb)} ;;\n")
    names = _pattern(" ".join(verb.words) for verb in verbs)
    valued = _pattern(flag for option in GLOBAL if _takes_value(option) for flag in option.flags)
    parts.append(_BASH_END.format(names=names, valued=valued, pods=_PODS, images=_IMAGES, depth=_DEPTH))
    return "".join(parts)


_BASH_END = """    esac
}}

_secrun() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} before verb='' tried='' flags='' source='' word
    local -i i=1 j at
    COMPREPLY=()
    # bash makes three words of --option=value.
    at=COMP_CWORD-1
    [[ $cur == '=' ]] && cur='' && at=COMP_CWORD
    [[ ${{COMP_WORDS[at]}} == '=' ]] && at=at-1
    before=${{COMP_WORDS[at]}}
    while (( i < COMP_CWORD )); do
        case ${{COMP_WORDS[i]}} in
            {valued}) [[ ${{COMP_WORDS[i + 1]}} == '=' ]] && i+=1; i+=2 ;;
            -*) i+=1 ;;
            *) break ;;
        esac
    done
    if (( i > COMP_CWORD )); then
        _secrun_value " $before"
        return
    fi
    for (( j = i; j < COMP_CWORD && j < i + {depth}; j++ )); do
        tried+=${{tried:+ }}${{COMP_WORDS[j]}}
        case $tried in {names}) verb=$tried ;; esac
    done
    if [[ -z $verb ]]; then
        _secrun_next "$tried"
        return
    fi
    _secrun_value "$verb $before" && return
    for word in "${{COMP_WORDS[@]:i:COMP_CWORD - i}}"; do
        [[ $word == -- ]] && compopt -o default && return
    done
    _secrun_words "$verb"
    if [[ $cur == -* ]]; then
        _secrun_offer "$flags"
        return
    fi
    case $source in
        pods) _secrun_offer "$({pods})" ;;
        images) _secrun_offer "$({images})" ;;
        *) compopt -o default ;;
    esac
}}

complete -F _secrun secrun
"""


def _zsh_text(text: str) -> str:
    """Quote what _arguments(zshcompsys) takes apart: quotes, brackets, colons."""
    quoted = text.replace("\\", "\\\\").replace("'", "'\\''")
    return quoted.replace("[", "\\[").replace("]", "\\]").replace(":", "\\:")


def _zsh_action(option: Option) -> str:
    if not _takes_value(option):
        return ""
    name = _zsh_text(option.metavar.lower() or option.dest)
    return f":{name}:({' '.join(option.choices)})" if option.choices else f":{name}:_files"


def _zsh_options(options: Iterable[Option]) -> Iterator[str]:
    for option in options:
        many = "*" if option.kind is Kind.LIST else ""
        for flag in option.flags:
            # `-nVALUE` or `-n VALUE`, `--name=VALUE` or `--name VALUE`.
            joint = "" if not _takes_value(option) else "=" if flag.startswith("--") else "+"
            yield f"'{many}{flag}{joint}[{_zsh_text(option.help)}]{_zsh_action(option)}'"


def _zsh_verb(verb: Verb) -> str:
    operands = {"pods": "_secrun_pods", "images": "_secrun_images"}.get(_source(verb), "_files")
    specs = [*_zsh_options(verb.options), f"'*: :{operands}'"]
    lines = " \\\n            ".join(specs)
    return f"        '{' '.join(verb.words)}') _arguments -s -S \\\n            {lines} ;;\n"


def zsh() -> str:
    """Return the script for zsh (zshcompsys(1))."""
    verbs = all_verbs()
    parts = [
        (
            "#compdef secrun\n"
            f'_secrun_pods() {{ compadd -- ${{(f)"$({_PODS})"}} }}\n'
            f'_secrun_images() {{ compadd -- ${{(f)"$({_IMAGES})"}} }}\n\n'
            "_secrun_next() {\n    local -a after\n    case $1 in\n"
        )
    ]
    for begin, after in _continuations(verbs):
        rows = " ".join(f"'{word}:{_zsh_text(what)}'" for word, what in after.items())
        parts.append(f"        '{begin}') after=({rows}) ;;\n")
    parts.append("    esac\n    _describe command after\n}\n\n_secrun_verb() {\n    case $1 in\n")
    parts += [_zsh_verb(verb) for verb in verbs]
    parts.append(
        _ZSH_END.format(
            names=_pattern(" ".join(verb.words) for verb in verbs),
            options=" ".join(_zsh_options(GLOBAL)),
            depth=_DEPTH,
        )
    )
    return "".join(parts)


_ZSH_END = """    esac
}}

_secrun() {{
    local curcontext=$curcontext state line verb tried
    local -i i at
    _arguments -C {options} '*::command:->command' && return
    [[ $state == command ]] || return
    for (( i = 1; i < CURRENT && i <= {depth}; i++ )); do
        tried=${{tried:+$tried }}$words[i]
        case $tried in ({names}) verb=$tried at=i ;; esac
    done
    if [[ -z $verb ]]; then
        _secrun_next "$tried"
        return
    fi
    shift $(( at - 1 )) words
    (( CURRENT -= at - 1 ))
    _secrun_verb "$verb"
}}

# Sourced, or found in fpath.
if [[ $funcstack[1] == _secrun ]]; then _secrun "$@"; else compdef _secrun secrun; fi
"""


def _fish_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _fish_option(option: Option, condition: str) -> str:
    names = "".join(
        f" -l {flag[2:]}" if flag.startswith("--") else f" -s {flag[1:]}" for flag in option.flags
    )
    value = ""
    if option.choices:
        value = f" -x -a '{' '.join(option.choices)}'"
    elif _takes_value(option):
        value = " -r -F"
    return f"complete -c secrun -n {condition}{names}{value} -d {_fish_text(option.help)}\n"


def fish() -> str:
    """Return the script for fish (fish: complete)."""
    verbs = all_verbs()
    names = " ".join(f"'{' '.join(verb.words)}'" for verb in verbs)
    valued = " ".join(flag for option in GLOBAL if _takes_value(option) for flag in option.flags)
    parts = [_FISH_BEGIN.format(names=names, valued=valued)]
    parts += [_fish_option(option, "'__secrun_at \"\"'") for option in GLOBAL]
    for begin, after in _continuations(verbs):
        parts += [
            f"complete -c secrun -n '__secrun_at \"{begin}\"' -a {word} -d {_fish_text(what)}\n"
            for word, what in after.items()
        ]
    for verb in verbs:
        condition = f"'__secrun_in \"{' '.join(verb.words)}\"'"
        source = {"pods": f"-a '({_PODS})'", "images": f"-a '({_IMAGES})'"}.get(_source(verb), "-F")
        parts.append(f"complete -c secrun -n {condition} {source}\n")
        parts += [_fish_option(option, condition) for option in verb.options]
    return "".join(parts)


_FISH_BEGIN = """# fish completion for secrun: secrun completion fish | source
function __secrun_words
    set -l words (commandline -opc)[2..-1]
    while set -q words[1]; and string match -q -- '-*' $words[1]
        if contains -- $words[1] {valued}
            set -e words[1]
        end
        set -e words[1]
    end
    printf '%s\\n' $words
end

# The command that was typed; nothing if it is not whole yet.
function __secrun_command
    set -l words (__secrun_words)
    for count in {depth_down}
        set -l tried (string join -- ' ' $words[1..$count])
        if contains -- "$tried" {names}
            echo $tried
            return
        end
    end
end

function __secrun_at
    test -z "$(__secrun_command)"; and test "$(string join -- ' ' (__secrun_words))" = "$argv[1]"
end

function __secrun_in
    test "$(__secrun_command)" = "$argv[1]"
end

complete -c secrun -f
""".replace("{depth_down}", " ".join(str(count) for count in range(_DEPTH, 0, -1)))

_SHELLS = {"bash": bash, "zsh": zsh, "fish": fish}


def completion(args: Arguments, context: Context) -> int:
    """Print the script for one shell."""
    shell = args.required("shell")
    if shell not in _SHELLS:
        raise UsageError(f"no completion for the shell {shell[:80]!r}", hint=f"one of {', '.join(_SHELLS)}")
    context.out.write(_SHELLS[shell]())
    return 0
