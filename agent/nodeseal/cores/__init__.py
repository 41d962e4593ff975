"""The agent's hold on the node's cores: started, adopted, told what counts, replaced."""
