"""The one exception that stands for a user's mistake, and what to quote of others in it."""


class UserError(Exception):
    """A mistake that the user can mend: the message is one line that names the cause and the mend.

    Command line programs print it without a traceback and exit with code 2; library users may catch it.
    """


def first_line(error: Exception) -> str:
    """What an exception says, cut to one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def printable(text: str) -> str:
    r"""A stranger's text for a terminal or a log: what does not print, such as an escape, as ``\x1b``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
