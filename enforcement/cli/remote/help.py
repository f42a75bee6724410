"""The help of the commands of Typer, written by argparse, as that of all other commands is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from enforcement.cli.options import as_part, documentation


class _HelpOfArgparse:
    """A mixin for a command or a group of commands."""

    def get_usage(self, ctx: object) -> str:
        return _parser(ctx).format_usage().rstrip("\n")

    def get_help(self, ctx: object) -> str:
        return _parser(ctx).format_help().rstrip("\n")


class _Command(_HelpOfArgparse, TyperCommand):
    pass


class _Group(_HelpOfArgparse, TyperGroup):
    pass


class Application(typer.Typer):
    """An application of Typer whose commands have the same help as the other commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            cls=_Group,
            # Its pretty tracebacks would show local variables, such as the key.
            pretty_exceptions_enable=False,
            rich_markup_mode=None,
            no_args_is_help=True,
            context_settings={"help_option_names": ["-h", "--help"]},
            **options,
        )

    def command(self, name: str | None = None, **options: Any) -> Callable[..., Any]:
        return super().command(name, cls=_Command, **options)


def _parser(ctx: Any) -> argparse.ArgumentParser:
    """Return a parser that has the arguments and options of a command, and is used for its help only."""
    command = ctx.command
    rows = [(name, command.get_command(ctx, name)) for name in command.list_commands(ctx)] if _is_group(command) else []
    width = max((len(name) for name, _ in rows), default=0)
    listed = "".join(f"\n  {name:<{width}}  {as_part(one.get_short_help_str(200))}" for name, one in rows)
    parser = argparse.ArgumentParser(
        prog=ctx.command_path,
        usage="%(prog)s [-h] COMMAND ..." if rows else None,
        description=(command.help or "").strip() + (f"\n\ncommands:{listed}" if rows else ""),
        epilog=documentation(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for param in command.get_params(ctx):
        if "--help" not in param.opts and not getattr(param, "hidden", False):
            _add(parser, param)
    return parser


def _is_group(command: object) -> bool:
    return isinstance(command, TyperGroup)


def _add(parser: argparse.ArgumentParser, param: Any) -> None:
    text = as_part(getattr(param, "help", "") or "").replace("%", "%%")
    choices = param.type_descriptor.choices
    if param.param_type_name == "argument":
        many = param.nargs == -1
        name = (param.metavar or param.name.upper()).removesuffix("...")
        nargs: Any = ("+" if param.required else "*") if many else None if param.required else "?"
        parser.add_argument(param.name, metavar=None if choices else name, choices=choices, nargs=nargs, help=text)
        return
    if param.is_flag:
        parser.add_argument(*param.opts, action="store_true", help=text)
        return
    if param.default not in (None, "", False) and not callable(param.default):
        text += f"; default: {param.default}"
    parser.add_argument(*param.opts, metavar=None if choices else param.metavar, choices=choices, help=text)
