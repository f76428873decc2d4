"""What each node costs: counts are exact, times are ratios within one run."""
