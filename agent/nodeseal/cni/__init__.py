"""The start of a pod: the network plugin that asks the agent, its installation, and the socket where it is answered."""
