"""The programs in the lab's pods. They know nothing of nodeseal: plain programs, started by path, that speak plain HTTP
and plain TCP, as the applications do that a platform already runs."""
