"""Programs for the cluster's pods, beside those of the lab; plain, and started by path."""
