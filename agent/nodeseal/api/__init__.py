"""The agent's local API: server, client, and what it answers."""
