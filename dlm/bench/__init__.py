"""Speed: what was measured beside what was counted, and beside a plain baseline of the same run."""
