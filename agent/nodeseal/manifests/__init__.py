"""What is installed in a cluster: the chart, rendered without Helm."""

NAMESPACE = "nodeseal-system"
"""Where all of it is, unless somebody says otherwise."""
