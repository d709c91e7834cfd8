"""One model cut over several processes: tensor parallelism behind the calls of one process."""
