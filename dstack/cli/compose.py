"""`dstack compose`: wrap a docker-compose file as the app-compose.json that a guest runs and the chain allows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from dstack.cli.files import read_input
from dstack.errors import InputError, RefusedError
from dstack.measurement.compose import app_compose_from_docker_compose, compose_hash, default_app_id
from dstack.measurement.docker_compose import MAX_DOCKER_COMPOSE, DockerCompose, parse_docker_compose
from dstack.measurement.rtmr3 import STORAGE_FILE_SYSTEMS
from dstack.values import bytes_from_hex

_EXAMPLES = """\b
Examples:
  dstack compose docker-compose.yaml --name hello --out app-compose.json
  dstack compose docker-compose.yaml --key-provider none --no-instance-id > app-compose.json
  dstack compose - --name hello --allow-env TOKEN --json < docker-compose.yaml"""


@click.command(name="compose", epilog=_EXAMPLES)
@click.argument("file")
@click.option("--name", help="What people see. Default: the file's name without its ending.")
@click.option("--out", metavar="FILE", help="Write the app-compose.json there. Default: standard output.")
@click.option(
    "--key-provider", type=click.Choice(["kms", "local", "none"]), default="kms", help="Who gives keys. Default: kms."
)
@click.option("--key-provider-id", metavar="HEX", default="", help="The only key provider the app accepts.")
@click.option("--gateway", is_flag=True, help="Let the gateway route to the app.")
@click.option("--no-instance-id", is_flag=True, help="One disk key for all instances; RTMR3 is then a constant.")
@click.option("--public-logs", is_flag=True, help="Anybody may read the app's logs.")
@click.option("--public-sysinfo", is_flag=True, help="Anybody may read the machine's metrics.")
@click.option("--allow-env", multiple=True, metavar="NAME", help="Let the encrypted environment set it. Repeatable.")
@click.option("--storage-fs", type=click.Choice(STORAGE_FILE_SYSTEMS), help="File system of the data disk.")
@click.option("--require-digests", is_flag=True, help="Exit 1, and write nothing, where an image has no sha256 digest.")
@click.option("--json", "as_json", is_flag=True, help="Answer in JSON.")
def command(
    *,
    file: str,
    name: str | None,
    out: str | None,
    key_provider: str,
    key_provider_id: str,
    gateway: bool,
    no_instance_id: bool,
    public_logs: bool,
    public_sysinfo: bool,
    allow_env: tuple[str, ...],
    storage_fs: str | None,
    require_digests: bool,
    as_json: bool,
) -> None:
    """Write the app-compose.json of the docker-compose FILE (- for standard input), and its compose hash.

    Warns of services whose image has no digest: what they run is not fixed by the compose hash.
    """
    docker_compose = read_input(file, limit=MAX_DOCKER_COMPOSE)
    app_compose = app_compose_from_docker_compose(
        docker_compose,
        name=name or ("app" if file == "-" else Path(file).stem),
        key_provider=key_provider,
        key_provider_id=bytes_from_hex(key_provider_id, what="--key-provider-id"),
        gateway_enabled=gateway,
        no_instance_id=no_instance_id,
        public_logs=public_logs,
        public_sysinfo=public_sysinfo,
        allowed_envs=allow_env,
        storage_fs=storage_fs,
    )
    services = parse_docker_compose(docker_compose)
    if require_digests and services.unpinned:
        raise RefusedError("; ".join(_unpinned(services)))
    if out is not None:
        _write(out, app_compose)
    if as_json:
        click.echo(json.dumps(_facts(app_compose, services, out)))
        return
    warn_of_unpinned(services)
    if out is None:
        click.echo(app_compose, nl=False)
    digest = compose_hash(app_compose)
    click.echo(f"compose hash    {digest.hex()}\ndefault app id  {default_app_id(digest).hex()}", err=out is None)


def warn_of_unpinned(compose: DockerCompose) -> None:
    """Name, on standard error, each service whose image may change under the same compose hash."""
    for sentence in _unpinned(compose):
        click.echo(f"warning: {sentence}", err=True)


def _unpinned(compose: DockerCompose) -> Iterator[str]:
    for service in compose.unpinned:
        what = f"image {service.image!r}" if service.image else "what is built"
        yield f"service {service.name!r}: {what} is not fixed by a sha256 digest"


def _facts(app_compose: bytes, services: DockerCompose, out: str | None) -> dict[str, object]:
    digest = compose_hash(app_compose)
    facts: dict[str, object] = {
        "compose_hash": digest.hex(),
        "default_app_id": default_app_id(digest).hex(),
        "unpinned_services": [service.name for service in services.unpinned],
    }
    return facts | ({"app_compose": app_compose.decode()} if out is None else {"out": out})


def _write(path: str, content: bytes) -> None:
    try:
        Path(path).write_bytes(content)
    except OSError as exc:
        raise InputError(f"{path}: cannot be written: {exc.strerror or exc}") from exc
