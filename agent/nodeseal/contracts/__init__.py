"""Every message between two processes of nodeseal, as types. Both ends import them."""
