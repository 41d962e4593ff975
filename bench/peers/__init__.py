"""What is measured: nodeseal, other proxies, and no proxy at all. One module each; bench/peers/peer.py is their
contract."""
