"""Compile a curriculum for TPU slices without a TPU: memory, collectives, time and cost.

`plan.plan` estimates a whole training; `cost_model.CostModel` compiles one step; `slices` describes chips and slices;
`hlo` reads the text of a compiled program.
"""

__all__ = ["cost_model", "hlo", "plan", "slices"]
