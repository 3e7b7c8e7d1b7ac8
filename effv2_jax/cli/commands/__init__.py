"""The commands in the order of `effv2 --help`: `effv2 VERB` is VERB.py, with HELP, add_arguments(parser) and run(args).

Whatever is slow to import (JAX, NumPy, OpenCV, rich, etils, ml_collections) a module imports within `run`, so that
`effv2 --help` answers at once.
"""

from effv2_jax.cli.commands import (
    bench,
    config,
    convert,
    data,
    evaluate,
    export,
    models,
    plan,
    predict,
    report,
    stages,
    train,
)

COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "report": report,
    "config": config,
    "stages": stages,
    "plan": plan,
    "bench": bench,
    "data": data,
    "predict": predict,
    "convert": convert,
    "export": export,
    "models": models,
}
