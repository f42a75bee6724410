"""Exceptions that end a command because a person has to do something."""


class CommandProblem(Exception):
    """An error whose text says everything that a person has to know. A command that raises it has the exit status 2."""
