"""The API server of Kubernetes: asking it, following it, writing to it. Knows nothing of the mesh."""
