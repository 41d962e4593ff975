"""What one node costs with many workloads, many connections and a large mesh state: `python -m bench.scale`."""
