"""What `import verl` loads (entry point `verl.plugins`), in every process of a run: GPG's hooks, or a refusal.

Too small to fail: whatever fails behind it turns into a `gpg` that refuses to run and names the cause (never
veRL's own estimator unseen). Other estimators are never affected.
"""

from gpg_verl.launch.refusal import refuse_gpg


def _install():
    try:
        from gpg_verl.launch import hooks

        hooks.install()
    except SystemExit:
        raise
    except BaseException as cause:
        refuse_gpg(cause)


_install()
