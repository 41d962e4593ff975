"""`nodeseal lab demo`: the story of a telemetry pipeline, with real processes and packets, every claim measured."""
