"""What a node keeps on its own machine: its configuration, its run directory, the files of its cores."""
