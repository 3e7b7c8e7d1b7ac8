"""What a person sees of a run: log lines, metrics, plots, tables, progress bars."""
