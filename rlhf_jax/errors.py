"""The error of a person, not of the program."""


class UserError(ValueError):
    """Bad input that its giver can correct: one line that names the file, line, field or flag, and what to do."""
