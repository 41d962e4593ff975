"""nodeseal measured beside its peers: `python -m bench`, run as root from a checkout. docs/performance.md says how and
why.

Needs Linux network namespaces, gcc, and the peers' own packages; nothing in here is part of the installed product.
"""
