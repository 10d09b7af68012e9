"""Everything around the model: data, runs, machines, speed, evaluation, deployment.

It imports none of the model's files.
"""


class UserError(ValueError):
    """A mistake of the user's: one line that names the flag or file and says what to do. main.py exits with code 2."""
