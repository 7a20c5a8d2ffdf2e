"""The canonical build of the contracts: one standard-JSON run of solc, written to `dstack/chain/artifacts/`.

The artifacts are committed, so that nobody who deploys or audits needs a compiler. With `--check` nothing is
written: the fresh build must be what is committed, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ARTIFACTS = ROOT / "dstack" / "chain" / "artifacts"
VERSION = "0.8.30"
SOLC = ROOT / ".solcx" / f"solc-v{VERSION}"

# Name of the artifact = name of the contract in this source.
SOURCES = {
    "KmsAuth": "contracts/KmsAuth.sol",
    "AppAuth": "contracts/AppAuth.sol",
    "UpgradeOperator": "contracts/UpgradeOperator.sol",
    "ERC1967Proxy": "@openzeppelin/contracts/proxy/ERC1967/ERC1967Proxy.sol",
}
OUTPUTS = ["abi", "metadata", "evm.bytecode.object", "evm.deployedBytecode.object"]
OUTPUTS += ["evm.deployedBytecode.immutableReferences", "storageLayout"]
SETTINGS: dict[str, Any] = {
    "evmVersion": "cancun",
    "optimizer": {"enabled": True, "runs": 200},
    "remappings": ["@openzeppelin/=node_modules/@openzeppelin/"],
}

# CBOR: a map of `ipfs`, a digest of the metadata, and `solc`, three bytes of version; then its own length.
_METADATA = re.compile("a2646970667358221220[0-9a-f]{64}64736f6c6343[0-9a-f]{6}0033")


class BuildError(Exception):
    """The build failed or differs; the message is for a person."""


def main() -> int:
    """Write the artifacts, or with `--check` compare them; 0 when they are up to date."""
    parser = argparse.ArgumentParser(description="Compile the contracts into dstack/chain/artifacts.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the committed ones differ")
    arguments = parser.parse_args()
    try:
        built = build()
        compare(built) if arguments.check else write(built)
    except BuildError as exc:
        sys.stderr.write(f"contracts: {exc}\n")
        return 1
    return 0


def build(root: Path = ROOT) -> dict[str, str]:
    """Compile the sources under *root*; text of each artifact by file name.

    Raises:
        BuildError: solc is missing, or has an error or a warning.
    """
    output = run_solc(root)
    said = [entry["formattedMessage"] for entry in output.get("errors", ())]
    if said:
        raise BuildError("solc has something to say:\n" + "\n".join(said))
    return {f"{name}.json": artifact(name, path, output) for name, path in SOURCES.items()}


def run_solc(
    root: Path = ROOT, outputs: Sequence[str] = OUTPUTS, names: Iterable[str] = tuple(SOURCES)
) -> dict[str, Any]:
    """Run solc on every contract of ours and those of OpenZeppelin that are deployed.

    Args:
        root: A folder with `contracts` and `node_modules`: this checkout, or a copy of it elsewhere.
        outputs: What to ask of solc about each contract; `ast` is the syntax of each source.
        names: Which artifacts are wanted.

    Raises:
        BuildError: It is missing or gives no answer.
    """
    urls = {path: {"urls": [source_file(path)]} for path in map(SOURCES.__getitem__, names)}
    selection = {"*": {"*": [each for each in outputs if each != "ast"], "": ["ast"] if "ast" in outputs else []}}
    request = {"language": "Solidity", "sources": urls, "settings": SETTINGS | {"outputSelection": selection}}
    command = [SOLC, "--standard-json", "--base-path", root, "--allow-paths", f"{root},{ROOT}"]
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, check=True, cwd=root, timeout=300
        )
        output: dict[str, Any] = json.loads(done.stdout)
    except FileNotFoundError:
        raise BuildError(f"want solc {VERSION} in .solcx, got none; run scripts/install_solc.py") from None
    except (subprocess.SubprocessError, ValueError) as exc:
        raise BuildError(f"solc gave no answer: {exc}") from exc
    return output


def source_file(path: str) -> str:
    """Where the source named *path* lies, from the root of the project."""
    return path.replace("@openzeppelin/", "node_modules/@openzeppelin/")


def artifact(name: str, path: str, output: dict[str, Any]) -> str:
    """What deploying, calling and auditing the contract needs, as JSON."""
    contract = output["contracts"][path][name]
    evm = contract["evm"]
    content = {
        "contractName": name,
        "sourceName": path,
        "compiler": json.loads(contract["metadata"])["compiler"]["version"],
        "settings": {key: SETTINGS[key] for key in ("evmVersion", "optimizer", "remappings")},
        "abi": contract["abi"],
        "bytecode": "0x" + evm["bytecode"]["object"],
        "deployedBytecode": "0x" + evm["deployedBytecode"]["object"],
        "immutableReferences": sorted(
            (place for places in evm["deployedBytecode"]["immutableReferences"].values() for place in places),
            key=lambda place: int(place["start"]),
        ),
        "storageLayout": [
            {"label": entry["label"], "slot": int(entry["slot"]), "offset": entry["offset"]}
            for entry in contract["storageLayout"]["storage"]
        ],
    }
    return json.dumps(content, indent=1) + "\n"


def without_metadata(code: str) -> str:
    """*code* without the digests of the sources that solc puts behind every contract, also behind nested ones.

    Two builds agree in the rest when they agree in what is executed; the digest covers the names of files, too.
    """
    return _METADATA.sub("", code)


def write(built: dict[str, str]) -> None:
    """Make the artifacts on disk what was built."""
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    for stale in set(ARTIFACTS.glob("*.json")) - {ARTIFACTS / name for name in built}:
        stale.unlink()
    for name, text in built.items():
        (ARTIFACTS / name).write_text(text)


def compare(built: dict[str, str]) -> None:
    """Check that the artifacts on disk are what was built.

    Raises:
        BuildError: One is missing, superfluous or different; the message names them.
    """
    on_disk = {path.name: path.read_text() for path in ARTIFACTS.glob("*.json")}
    different = sorted(name for name in built.keys() | on_disk.keys() if built.get(name) != on_disk.get(name))
    if different:
        raise BuildError(
            f"the sources do not compile to the committed {', '.join(different)}; run make build and commit them"
        )


if __name__ == "__main__":
    sys.exit(main())
