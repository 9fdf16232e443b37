"""A sweep: the grid of its runs, their launcher, statistics over seeds and scenes, findings, plots, report."""
