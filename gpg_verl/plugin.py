"""What `import verl` loads (entry point `verl.plugins`), in every process of a run.

veRL swallows the import errors of its plugins and would then train with its own estimator named `gpg`. So this
module is too small to fail: it imports nothing of ours before `_install`, and whatever fails behind it turns
into a `gpg` that refuses to run and names the cause (design invariant 3). Other estimators are never affected.
"""


def refusal(cause):
    """A function to stand in for one of ours: called in whatever way, it raises and names the cause."""

    def refuse(*args, **kwargs):
        raise RuntimeError(
            "adv_estimator=gpg refuses to run: the gpg_verl plugin did not load "
            f"({type(cause).__name__}: {cause}). Run `python -m gpg_verl doctor` for the way out."
        ) from cause

    refuse.cause = cause
    return refuse


def refuse_gpg(cause):
    """Put refusals in every place where veRL would otherwise run its own `gpg`."""
    import sys

    print(f"gpg_verl did not load, gpg will refuse to run: {type(cause).__name__}: {cause}", file=sys.stderr)
    refuse = refusal(cause)

    import verl.utils.config as verl_config

    original = verl_config.validate_config

    def validate_config(config, *args, **kwargs):
        if config.algorithm.adv_estimator == "gpg":
            try:
                refuse()
            except RuntimeError as error:
                raise SystemExit(str(error)) from None
        return original(config, *args, **kwargs)

    verl_config.validate_config = validate_config

    from verl.trainer.ppo import core_algos

    core_algos.ADV_ESTIMATOR_REGISTRY["gpg"] = refuse
    core_algos.POLICY_LOSS_REGISTRY["gpg"] = refuse


def _install():
    try:
        from gpg_verl import hooks

        hooks.install()
    except BaseException as cause:
        refuse_gpg(cause)


_install()
