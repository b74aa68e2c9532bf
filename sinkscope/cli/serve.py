"""``sinkscope serve``: an OpenAI-compatible chat endpoint with VAR."""

import contextlib

import click

from sinkscope.cli.options import Fraction, model_options
from sinkscope.cli.output import ProgressBar, note, quiet_libraries, quiet_stdout

EXAMPLES = """\b
Examples:
  sinkscope serve demo:lmm
  sinkscope serve llava-hf/llava-1.5-7b-hf --profile llava-1.5-7b --p 0.6 --rho 0.5 --port 8080
  sinkscope serve ./my-lmm --no-var
\b
  curl http://127.0.0.1:8000/v1/models
"""


@click.command("serve", short_help="An OpenAI-compatible chat endpoint with VAR.", epilog=EXAMPLES)
@click.argument("model", metavar="MODEL")
@click.option("--profile", "profile_name", metavar="NAME|PATH", help="Default: the one that fits the model.")
@click.option("--p", type=Fraction(), help="Recycled fraction of a sink's attention; default: the profile's.")
@click.option("--rho", type=Fraction(), help="Least visual non-sink ratio of a head; default: the profile's.")
@click.option("--no-var", is_flag=True, help="Serve the model as it is.")
@click.option(
    "--host", metavar="H", default="127.0.0.1", show_default=True, help="Other hosts reach a server without a password."
)
@click.option(
    "--port", metavar="N", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: any free one."
)
@model_options
def command(
    model: str,
    profile_name: str | None,
    p: float | None,
    rho: float | None,
    no_var: bool,
    host: str,
    port: int,
    device: str,
    dtype: str,
    revision: str | None,
    trust_remote_code: bool,
) -> None:
    """Serve a model to any client of OpenAI's chat API, with Visual Attention Redistribution (VAR) on.

    Texts and pictures (data: URLs), several turns, streams. A request may set p and rho, or "var": false, for itself.
    Requests are answered one after the other. Ctrl-C ends it.
    """
    if no_var and (profile_name is not None or p is not None or rho is not None):
        raise click.UsageError("--no-var takes no --profile, --p or --rho")

    from sinkscope.serving import check_installed, create_app, open_port, run

    check_installed()
    # Before the model, which takes long to load.
    with contextlib.closing(open_port(host, port)) as listener:
        from sinkscope.answering import check_answerable, choose_profile
        from sinkscope.registry import check_backbone, load_profile

        profile = None if profile_name is None else load_profile(profile_name)
        with quiet_libraries():
            with quiet_stdout():
                from sinkscope.pipeline import load

                with ProgressBar() as bar, bar.waiting(f"loading {model}"):
                    loaded = load(
                        model, revision=revision, dtype=dtype, device_map=device, trust_remote_code=trust_remote_code
                    )
                if loaded.note:
                    note(loaded.note)
                if not no_var:
                    check_answerable(loaded)
                    profile = choose_profile(loaded) if profile is None else profile
                    check_backbone(profile, loaded.anatomy.fingerprint())
                    note(f"profile: {profile.name}")
                app = create_app(loaded, profile, p=p, rho=rho)
            kind = "without VAR" if profile is None else "with VAR"
            run(app, listener, lambda address: print(f"{model} {kind}: {address}", flush=True))
