"""`dstack compose-hash`: the hash of an app-compose.json, which the chain allows or not."""

from __future__ import annotations

import json

import click

from dstack.cli.compose import warn_of_unpinned
from dstack.cli.files import read_input
from dstack.errors import ComposeMalformedError
from dstack.measurement.compose import MAX_APP_COMPOSE, AppCompose, default_app_id, parse_app_compose
from dstack.measurement.docker_compose import DockerCompose, parse_docker_compose
from dstack.measurement.sdk_form import sdk_compose_hash

_EXAMPLES = """\b
Examples:
  dstack compose-hash app-compose.json
  dstack compose docker-compose.yaml | dstack compose-hash -"""


@click.command(name="compose-hash", epilog=_EXAMPLES)
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def command(*, file: str, as_json: bool) -> None:
    """Hash the app-compose.json FILE (- for standard input), byte for byte as it is.

    The default app id is the first 20 bytes of the compose hash; a deployer may have pinned another. With --json,
    `sdk_hash` is what dstack's SDKs hash: the object written anew, and so the compose hash only of a file in that form.
    """
    app = parse_app_compose(read_input(file, limit=MAX_APP_COMPOSE))
    services = _services(app)
    facts = {
        "compose_hash": app.compose_hash.hex(),
        "default_app_id": default_app_id(app.compose_hash).hex(),
        "name": app.name,
        "key_provider": app.key_provider,
    }
    if as_json:
        facts["sdk_hash"] = sdk_compose_hash(json.loads(app.raw)).hex()
        click.echo(json.dumps({**facts, "unpinned_services": [service.name for service in services.unpinned]}))
        return
    warn_of_unpinned(services)
    # The name is somebody else's text: quoted, so that it cannot steer a terminal.
    for label, value in {**facts, "name": repr(app.name)}.items():
        click.echo(f"{label.replace('_', ' '):15} {value}")


def _services(app: AppCompose) -> DockerCompose:
    """List what *app* starts; one that no docker-compose could read still has a compose hash."""
    if app.docker_compose_file is None:
        return DockerCompose(())
    try:
        return parse_docker_compose(app.docker_compose_file.encode())
    except ComposeMalformedError as exc:
        click.echo(f"warning: docker_compose_file: {exc}", err=True)
        return DockerCompose(())
