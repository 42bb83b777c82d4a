"""Parts that networks are made of: attention, the view cache, layers, resizing."""
