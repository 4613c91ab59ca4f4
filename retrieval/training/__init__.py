"""Training of every model that ships."""
