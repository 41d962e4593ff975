"""What keeps working beside nodeseal in a cluster: the rows of a page, and the checks that try them."""
