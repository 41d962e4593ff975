"""YAML that people write, read into typed values. What is wrong is told with its line."""
