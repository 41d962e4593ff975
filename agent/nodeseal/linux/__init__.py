"""Every platform trick: system calls, namespaces, netlink, netfilter, locks. Nothing here knows what nodeseal is."""
