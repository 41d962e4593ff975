"""The lab: nodes and pods on one machine, made of network namespaces."""
