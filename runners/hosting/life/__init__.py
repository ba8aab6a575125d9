"""How the server's processes begin, watch each other, and end."""
