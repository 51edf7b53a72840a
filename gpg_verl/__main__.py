"""`python -m gpg_verl doctor`, `python -m gpg_verl check` and `python -m gpg_verl export`.

python -m gpg_verl doctor
python -m gpg_verl check algorithm.adv_estimator=gpg actor_rollout_ref.rollout.n=8 ...the rest of your command
"""

from __future__ import annotations

import argparse
import sys

EXAMPLES = """examples:
  python -m gpg_verl doctor
  python -m gpg_verl check algorithm.adv_estimator=gpg +preset=cpu actor_rollout_ref.rollout.n=8
  python -m gpg_verl export runs/my-run/checkpoints/global_step_100 my-model
"""


def main(argv: list[str] | None = None) -> int:
    layout = {"epilog": EXAMPLES, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(
        prog="python -m gpg_verl",
        description="Group Policy Gradient (GPG) for veRL: look at the installation or at a run before it starts, or "
        "export what it trained.",
        **layout,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="versions, and what is registered as `gpg`; exit 1 if something is wrong")
    check = commands.add_parser(
        "check",
        help="compose a run's config without starting Ray, show what GPG implies and what contradicts it; exit 0 or 1",
        **layout,
    )
    check.add_argument(
        "--config-path",
        "-cp",
        help="folder of a config of your own, as for main_ppo: absolute, pkg://, or relative to main_ppo's own folder",
    )
    check.add_argument("--config-name", "-cn", default="ppo_trainer", help="name of the config (default: %(default)s)")
    check.add_argument("overrides", nargs="*", metavar="key=value", help="the Hydra overrides of your main_ppo command")
    export = commands.add_parser("export", help="write a checkpoint (FSDP, with or without LoRA) as a model folder")
    export.add_argument("checkpoint", help="global_step_N of a run")
    export.add_argument(
        "folder", help="the new folder, with weights, config and tokenizer, for from_pretrained and vLLM"
    )
    export.add_argument("--base", metavar="MODEL", help="of an adapter that was saved alone, the model under it")
    commands.add_parser(
        "report", help="is `python -m gpg_verl.report`: runs as tables, curves and a page", add_help=False
    )
    arguments, unknown = parser.parse_known_args(argv)
    if arguments.command == "report":
        parser.error("the report is a command of its own: python -m gpg_verl.report " + " ".join(unknown or ["--help"]))
    if unknown:
        hint = ": give Hydra overrides as key=value" if arguments.command == "check" else ""
        parser.error(f"unknown argument {unknown[0]}{hint}")
    if arguments.command == "doctor":
        from gpg_verl.launch import doctor

        return doctor.main()
    if arguments.command == "export":
        from gpg_verl import export as export_module

        return export_module.main(arguments.checkpoint, arguments.folder, arguments.base)
    from gpg_verl.launch import check as check_module

    return check_module.main(arguments.overrides, arguments.config_path, arguments.config_name)


if __name__ == "__main__":
    sys.exit(main())
