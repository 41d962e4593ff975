"""The splice core: the process that carries every byte."""
