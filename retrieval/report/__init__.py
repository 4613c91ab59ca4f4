"""HTML pages and plots of the matches."""
