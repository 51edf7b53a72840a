"""Where GPG enters veRL: one hook per veRL module, run when that module is first imported.

Waiting for the import costs nothing in processes that never need it (importing the trainer would add seconds to
every `import verl`), and puts ours in place before any other module can copy veRL's names. A hook only imports a
module of ours, which registers itself: that holds in whatever order the two are imported. A hook that fails leaves a
refusal behind instead of veRL's own `gpg`.
"""

from __future__ import annotations

import functools
import importlib

import wrapt

from gpg_verl import cpu
from gpg_verl.compat import versions
from gpg_verl.compat.seams import seam
from gpg_verl.launch.refusal import REFUSALS, Unsupported, refusal, refuse_command, refuse_gpg
from gpg_verl.settings import TRAINER_MODES, is_gpg


def install() -> None:
    if (problem := versions.unsupported()) is not None:
        # Nothing of ours goes into a veRL that it was not written for but the refusals, each when its module is
        # loaded, so that without GPG nothing is imported, printed or changed.
        cause = Unsupported(problem)
        refuse_command(cause)
        for name, refuse in REFUSALS.items():
            _when_imported(name, functools.partial(refuse, cause=cause))
        return

    import gpg_verl.cpu.platform  # noqa: F401  registers itself with veRL

    if cpu.chosen():
        cpu.install()
    _when_imported("verl.utils.config", _wrap_validate_config)
    _when_imported("verl.trainer.ppo.core_algos", _importing("gpg_verl.training.registry"))
    _when_imported("verl.trainer.ppo.v1", _importing("gpg_verl.training.trainer"), on_error=_refuse_trainers)
    _when_imported("verl.trainer.ppo.ray_trainer", _wrap_legacy_trainer)
    _when_imported("verl.models.transformers.qwen2_vl", _fix_text_only_rows)
    _when_imported("hydra", _add_presets)


def _when_imported(name, hook, on_error=lambda module, cause: refuse_gpg(cause)):
    def guarded(module):
        try:
            hook(module)
        except BaseException as cause:
            on_error(module, cause)

    wrapt.register_post_import_hook(guarded, name)


def _importing(name: str):
    """A hook that loads a module of ours, which registers itself with veRL."""
    return lambda module: importlib.import_module(name)


def _wrap_validate_config(module) -> None:
    """veRL has no seam for a plugin to see the composed config; `validate_config` is the driver's only look at the
    whole of it before Ray starts (veRL 0.9.1). Ours settles what GPG implies, then hands on to veRL's.
    """
    original = seam(module, "validate_config", ("config", "use_reference_policy", "use_critic"))

    @functools.wraps(original)
    def validate_config(config, use_reference_policy, use_critic):
        if is_gpg(config):
            from gpg_verl.launch.preflight import before_ray

            return before_ray(config)
        cpu.adopt(config)
        return original(config, use_reference_policy, use_critic)

    module.validate_config = validate_config


def _refuse_trainers(module, cause) -> None:
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    TRAINER_REGISTRY.update(dict.fromkeys(TRAINER_MODES.values(), refusal(cause)))


def _wrap_legacy_trainer(module) -> None:
    """Every trainer of veRL outside V1, the experimental ones too, derives from this class (veRL 0.9.1). They never
    call our settings check, so they would train GPG's advantages with whatever loss is configured.
    """
    original = seam(module.RayPPOTrainer, "__init__", ("self", "config"))

    @functools.wraps(original)
    def __init__(self, config, *args, **kwargs):
        if config.algorithm.adv_estimator == "gpg":
            raise RuntimeError(
                f"algorithm.adv_estimator=gpg does not run in {type(self).__name__}: GPG's step is built on veRL's V1 "
                "trainer. Use `python -m verl.trainer.main_ppo` with trainer.use_v1=True (veRL's default)."
            )
        original(self, config, *args, **kwargs)

    module.RayPPOTrainer.__init__ = __init__


def _fix_text_only_rows(module) -> None:
    from gpg_verl.compat import verl_fixes

    verl_fixes.accept_text_only_micro_batches(module)


def _add_presets(module) -> None:
    """Lets `+preset=cpu` be found without naming a search path on the command line."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.search_path_plugin import SearchPathPlugin

    class GPGPresets(SearchPathPlugin):
        def manipulate_search_path(self, search_path) -> None:
            search_path.append(provider="gpg_verl", path="pkg://gpg_verl.presets")

    Plugins.instance().register(GPGPresets)
