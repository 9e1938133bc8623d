"""What became of a job: how its notifications are joined, written into rows, and read."""
