"""Parameters on disk: our folders, and published files by a table for each family."""
