"""What every run needs, by `train` and by `sweep`: its folder, its identity, its processes, its tracker."""
