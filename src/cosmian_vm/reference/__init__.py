"""What we expect: the snapshot, and the walk over the file system that makes it."""
