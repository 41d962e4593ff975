"""The BPF programs: compiled, loaded, attached."""
