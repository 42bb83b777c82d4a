"""Protocol, scoring, results and their pages."""
