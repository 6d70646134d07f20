"""Flags of the verbs about this machine."""

from __future__ import annotations

from .parser import Parser

GROUP = "this machine"


def add(parser: Parser) -> None:
    """Add the verbs about this machine."""
    parser.add_verb(
        GROUP,
        "doctor",
        "doctor",
        "show versions, GPU, graphics, disk and caches",
        "policysmith doctor",
        module="builder.commands.machine",
    )
    completion = parser.add_verb(
        GROUP,
        "completion",
        "completion",
        "print the completion script of a shell",
        'eval "$(policysmith completion bash)"',
        "policysmith completion zsh > ~/.zfunc/_policysmith",
        "policysmith completion fish > ~/.config/fish/completions/policysmith.fish",
        light=True,
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="your shell")
