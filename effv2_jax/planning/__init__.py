"""A curriculum on TPU slices that need not be there: memory, collectives, time and cost."""
