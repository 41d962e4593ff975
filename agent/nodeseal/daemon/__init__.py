"""The agent's process, and the commands that work without one."""
