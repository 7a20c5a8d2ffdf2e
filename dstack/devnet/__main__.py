"""`python -m dstack.devnet`, which is `dstack demo`."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.resources import files
from pathlib import Path

import click

from dstack.cli.files import read_input
from dstack.cli.main import INTERRUPTED, run
from dstack.devnet.programs import INTERRUPTS, Programs
from dstack.devnet.transcript import Transcript, fresh_results_folder
from dstack.measurement.docker_compose import MAX_DOCKER_COMPOSE, parse_docker_compose


@click.command(
    name="demo",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Example: dstack demo --compose docker-compose.yaml --results out --json",
)
@click.option("--compose", metavar="FILE", help="Your docker-compose file; without it, one that comes with dstack.")
@click.option("--results", metavar="FOLDER", default="demo-results", show_default=True, help="Where artifacts go.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line instead of text.")
def demo(compose: str | None, results: str, as_json: bool) -> None:
    """Chain-gated key release and key hand-over on your own docker-compose file.

    Everything runs on this machine: a local chain, a KMS, simulated machines, replicators. Takes about half a minute.
    """
    raw = read_input(compose, limit=MAX_DOCKER_COMPOSE) if compose else _default_compose()
    parse_docker_compose(raw)
    began = time.monotonic()
    say = Transcript(sys.stdout, as_json, fresh_results_folder(Path(results)))
    with ExitStack() as cleanup:
        secret = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="dstack-demo-")))
        programs = cleanup.enter_context(Programs(say.folder / "logs"))
        try:
            with _interrupts_held():
                # They take a second or two to import.
                from dstack.devnet.story import tell
                from dstack.devnet.world import World

            tell(World.create(say, programs, secret), raw, cleanup)
            say.did(f"took {time.monotonic() - began:.0f} s", seconds=round(time.monotonic() - began))
        except SystemExit as exc:
            raise click.exceptions.Abort from exc
        finally:
            say.keep("transcript.json", list(say.entries))


def _default_compose() -> bytes:
    return files("dstack.devnet").joinpath("docker-compose.yaml").read_bytes()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Interrupts come at the end of this: Python drops what is raised while it lets go of the lock of an import."""
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)


def _interrupt(_signal: int, _frame: object) -> None:
    """End the demo in order; a second signal does not cut the cleaning up short.

    Not by KeyboardInterrupt: where one passes through code that was compiled from text, as that of dataclasses is,
    Python ends by the signal even if it was caught.
    """
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(INTERRUPTED)


if __name__ == "__main__":
    for number in INTERRUPTS:
        signal.signal(number, _interrupt)
    run(demo, prog_name="dstack demo")
