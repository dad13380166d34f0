"""The one exception that stands for a user's mistake, and what to quote of others in it."""


class UserError(Exception):
    """A mistake that the user can mend: the message is one line that names the cause and the mend.

    Command line programs print it without a traceback and exit with code 2; library users may catch it.
    """


def first_line(error: Exception) -> str:
    """What an exception says, cut to one line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
