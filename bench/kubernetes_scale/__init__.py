"""A cluster of 1,000 nodes on a real API server, with one real agent in it: what that costs both."""
