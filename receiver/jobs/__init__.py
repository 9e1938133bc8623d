"""What became of a job: the law, its projection into rows, queries."""
