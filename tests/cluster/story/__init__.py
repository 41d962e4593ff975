"""The story of `make cluster`: a platform that runs, and becomes encrypted without noticing."""
