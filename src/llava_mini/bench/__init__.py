"""What the data path costs, against the usual ways: made data, contestants, trials in fresh processes, a report."""
