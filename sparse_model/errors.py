"""The one error a user can cause."""


class InputError(ValueError):
    """Bad input from outside: the message is one line naming the field, the value and what is allowed.

    Command lines print it as it is and exit with status 2; anything else that is raised is our own fault.
    """
