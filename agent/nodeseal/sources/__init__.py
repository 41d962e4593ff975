"""Sources of the mesh state. A source makes models (nodeseal.mesh); it never talks to the agent or the core itself."""
