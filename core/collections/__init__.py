"""Published collections of object-removal data: each one's layout as a stream of plan rows, and how a row becomes a record."""
