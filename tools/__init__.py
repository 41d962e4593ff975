"""What the repository needs beside the product."""
