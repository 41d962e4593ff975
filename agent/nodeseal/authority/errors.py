"""What can be wrong with a certificate authority."""


class AuthorityError(Exception):
    """One line: what, where, what to do. Never holds anything made of a key."""
