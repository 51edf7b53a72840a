"""A `gpg` that refuses to run, in every place where veRL would otherwise run its own.

veRL swallows the import errors of its plugins and would then train with its own estimator named `gpg`. Standard library
only, so that this loads whatever else does not.
"""

import importlib
import sys


class Unsupported(RuntimeError):
    """This Python or veRL is not one that gpg_verl was written for: what was found, what is wanted, how to fix it."""


def reason(cause) -> str:
    if isinstance(cause, Unsupported):
        return f"adv_estimator=gpg refuses to run: {cause}"
    return (
        f"adv_estimator=gpg refuses to run: the gpg_verl plugin did not load ({type(cause).__name__}: {cause}). "
        "`python -m gpg_verl doctor` says how to fix it."
    )


def refusal(cause):
    """A function to stand in for one of ours: called in whatever way, it raises and names the cause."""

    def refuse(*args, **kwargs):
        raise RuntimeError(reason(cause)) from cause

    refuse.cause = cause
    return refuse


def refuse_gpg(cause):
    """Put refusals in every place where veRL would otherwise run its own `gpg`."""
    refuse_command(cause)
    for name, refuse in REFUSALS.items():
        try:
            refuse(importlib.import_module(name), cause)
        except Exception as gone:
            # Where even the refusal finds no place, this line is all there is.
            print(f"gpg_verl did not load ({cause}) and cannot refuse in {name} ({gone})", file=sys.stderr)


def refuse_command(cause):
    """Ends a GPG run at `import verl`, before anything of veRL's is relied on, where the command line says that it is
    one. A run whose config file says it, and a worker, ends at one of the other places.
    """
    if any(argument.lstrip("+") == "algorithm.adv_estimator=gpg" for argument in sys.argv[1:]):
        raise SystemExit(reason(cause))


def refuse_settings(module, cause):
    """In the driver, before Ray starts; `module` is verl.utils.config."""
    original = module.validate_config

    def validate_config(config, *args, **kwargs):
        if config.algorithm.adv_estimator == "gpg":
            raise SystemExit(reason(cause))
        return original(config, *args, **kwargs)

    module.validate_config = validate_config


def refuse_algorithm(module, cause):
    """In every process; `module` is verl.trainer.ppo.core_algos."""
    module.ADV_ESTIMATOR_REGISTRY["gpg"] = module.POLICY_LOSS_REGISTRY["gpg"] = refusal(cause)


REFUSALS = {"verl.utils.config": refuse_settings, "verl.trainer.ppo.core_algos": refuse_algorithm}
