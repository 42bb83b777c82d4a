"""What people look at: pages, plots, films, bytes and floats."""
