"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """A mistake that the user can mend: the message is one line that names the cause and the mend.

    Command line programs print it without a traceback and exit with code 2; library users may catch it.
    """
