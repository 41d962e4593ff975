"""The certificate authority in a directory: made, described, renewed."""
