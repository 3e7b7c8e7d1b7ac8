"""`effv2 report`: training runs on one page of HTML that needs nothing else."""
