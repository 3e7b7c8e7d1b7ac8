"""Statistics of a compiled program's text, written by hand."""

import jax
import jax.numpy as jnp
import pytest

from effv2_jax.planning.hlo import ProgramStats, program_stats

TEXT = """HloModule jit_step, is_scheduled=true

%fused (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %add.1 = f32[8]{0} add(%p, %p), backend_config={"window_config":{"estimated_cycles":"999"}}
}

%body (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %t = (s32[], f32[8]{0}) parameter(0)
  %fusion.1 = f32[8]{0} fusion(%t), kind=kLoop, calls=%fused, backend_config={"window_config":{"estimated_cycles":"10"}}
  ROOT %all-reduce.1 = f32[8]{0} all-reduce(%fusion.1), to_apply=%sum
}

%condition (t.1: (s32[], f32[8])) -> pred[] {
  ROOT %less = pred[] constant(true), backend_config={"window_config":{"estimated_cycles":"7"}}
}

ENTRY %main (a: f32[8], b: bf16[4,2]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %while.1 = (s32[], f32[8]{0:T(128)}) while(%a), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %all-reduce.2 = (f32[2,32]{1,0:T(1,128)S(1)}, /*index=1*/bf16[4]{0}) all-reduce(%a, %b), to_apply=%sum, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %all-gather-start.1 = (f32[8]{0}, f32[32]{0}) all-gather-start(%a), dimensions={0}
  %all-gather-done.1 = f32[32]{0} all-gather-done(%all-gather-start.1)
  ROOT %reduce.1 = f32[8]{0} fusion(%a), calls=%fused, backend_config={"window_config":{"estimated_cycles":"1"}}
}
"""


def test_each_execution_of_an_instruction_counts():
    # Cycles: 3 * 10 in the loop, 100 and 1; nothing inside a fusion.
    # Collectives: 3 of 32 bytes, one of 2 * 32 * 4 + 4 * 2, an asynchronous one of (8 + 32) * 4 / 2.
    assert program_stats(TEXT) == ProgramStats(cycles=131, collectives=5, collective_bytes=3 * 32 + 264 + 80)


def test_a_cpu_program_has_no_cycles():
    compiled = jax.jit(lambda x: jnp.sin(x).sum()).lower(jnp.zeros(8)).compile()
    assert program_stats(compiled.as_text()) == ProgramStats(0, 0, 0)
    with pytest.raises(ValueError, match="no ENTRY"):
        program_stats("nothing")
