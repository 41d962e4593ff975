"""The mesh state in a directory of files."""
