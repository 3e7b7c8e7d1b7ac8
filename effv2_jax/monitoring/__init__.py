"""What a person sees of a run: log lines, metrics, plots, tables, progress bars."""

__all__ = [
    "description",
    "metrics",
    "plots",
    "profiler",
    "progress",
    "progress_bar",
    "stopwatch",
    "tables",
    "wandb_writer",
]
