"""Step 8: what was proven, under which root, and how to check it by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dstack.attestation.roots import simulated_root
from dstack.devnet.governance import Governance
from dstack.devnet.kms_steps import RunningKms
from dstack.devnet.world import World

_PROVEN = (
    "a KMS made its root keys only after the chain had allowed its measurement",
    "no configuration took effect sooner than 48 hours after its proposal",
    "the app's RTMR3 was computed from its compose file before it booted, and its quote showed it",
    "each of six other starts was refused by the rule that forbids it",
    "a secure file went from node to node with nothing but the chain between them",
)


def end(world: World, governance: Governance, kms: RunningKms) -> None:
    """Sum up, and leave a page that says how to check the results."""
    say = world.say
    governance.keep_transactions(world)
    say.keep("kms/decisions.jsonl", "".join(kms.program.said()))
    for sentence in _PROVEN:
        say.proved(sentence)
    fingerprint = simulated_root(world.pki.root_der).fingerprint
    say.did(f"all quotes end at a SIMULATED root, SHA-256 {fingerprint}: they prove nothing about real hardware")
    commands = _commands(say.folder, bytes(governance.app).hex())
    page = say.keep("README.md", _page(fingerprint, commands))
    say.did(f"every artifact is in {say.folder}; commands to check them by hand are in {page}")
    for command in commands:
        say.did(f"  {command}")


def _commands(folder: Path, app_id: str) -> tuple[str, ...]:
    return (
        f"dstack compose-hash {folder}/app-compose.json",
        f"dstack replay {folder}/app/get-quote.json",
        # No TDX machine has made these ACPI tables, so nobody can show other ones than the simulated machine does.
        f"dstack measure {folder}/image --compose {folder}/app-compose.json --app-id {app_id}"
        f" --kms-ca {folder}/kms/root-ca.pem --acpi from-log:{folder}/app/get-quote.json --accept-unverified-acpi"
        f" --compare {folder}/app/get-quote.json",
        f"dstack verify {folder}/app/quote.bin --collateral {folder}/platform/collateral.json"
        f" --root {folder}/platform/root.der",
    )


def _page(fingerprint: str, commands: Sequence[str]) -> str:
    lines = "\n".join(commands)
    return f"""\
# Results of a demo

All quotes here end at a **simulated root**, SHA-256 `{fingerprint}`. They prove nothing about real hardware.

| Folder or file | What |
|---|---|
| `docker-compose.yaml`, `app-compose.json` | what was given; what is measured |
| `platform/` | the simulated platform's root and its statements (collateral) |
| `image/` | the OS image's files; `digest.txt` is the OS image hash |
| `chain/` | addresses, proposals, transactions with their receipts |
| `kms/` | settings, the answer of Bootstrap with its evidence, the root certificate, the log of decisions |
| `app/` | quote, event log and whole evidence of the running app |
| `handover/` | request, answer, and both receipts |
| `logs/` | what each program said on standard error |
| `transcript.json` | everything that was said, for a machine |

No key is in here: the demo kept those in a private folder and removed it.

Check by hand, from the project's folder, after `. .venv/bin/activate`:

```sh
{lines}
```
"""
