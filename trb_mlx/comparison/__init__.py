"""Methods side by side: the specification, the runs, the statistics, the table and the figure."""
