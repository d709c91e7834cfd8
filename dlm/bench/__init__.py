"""Speed benchmarks: measured times, counted work, and plain baselines timed in the same run."""
