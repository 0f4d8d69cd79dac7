"""The two ways a command may fail, each told in one sentence."""


class UserError(Exception):
    """A mistake in what the user gave: the sentence says what, where and what was expected.

    Commands end with exit code 2 and print the sentence alone.
    """


class RunError(Exception):
    """A run that could not go on for a reason outside the user's input (exit code 1)."""
