"""Where a training runs: processes, compilation, memory."""
