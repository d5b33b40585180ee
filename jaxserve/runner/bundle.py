"""A bundle: the compiled programs of one engine on one kind of machine, in one file.

A zip archive, stored and not compressed: manifest.json says what the programs are for and holds the SHA-256
of each; beside it lies a member a program. Loading a program runs what is in it, so a bundle is to be trusted
as one trusts the checkpoint and the wheel. Nothing is loaded before the manifest fits and the bytes have
their digest; the manifest's own digest, the bundle's fingerprint, can be pinned.
"""

import hashlib
import json
import os
import pickle
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from jaxserve.core.errors import ConfigError
from jaxserve.runner.program_key import Key
from jaxserve.runner.programs import Program

_FORMAT = 1
_MANIFEST = "manifest.json"
_BROKEN = (zipfile.BadZipFile, NotImplementedError, KeyError, EOFError, OSError)  # what zipfile says of a damaged file
_AGAIN = "run `jaxserve compile` again"


class Bundle:
    """A bundle opened for reading. Its methods may be called from several threads.

    fingerprint: what the file's must be, if given. Raises ConfigError where the file is no whole bundle.
    """

    def __init__(self, path: Path, fingerprint: str | None = None) -> None:
        self.path = path
        try:
            text = self._read(_MANIFEST)
            manifest = json.loads(text)
            self.key: Key = dict(manifest["key"])
            self._digests: dict[str, str] = {name: one["sha256"] for name, one in dict(manifest["programs"]).items()}
            found = manifest["format"]
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise ConfigError(f"--bundle: {path} cannot be read: {error.strerror}") from error
        except (*_BROKEN, TypeError, ValueError) as error:
            raise ConfigError(f"--bundle: {path} is no bundle, or not a whole one ({error}); {_AGAIN}") from error
        self.fingerprint = hashlib.sha256(text).hexdigest()
        if fingerprint is not None and fingerprint.lower() != self.fingerprint:
            raise ConfigError(
                f"--bundle-sha256 {fingerprint} is not that of {path}, which is {self.fingerprint}: it is another "
                "bundle, or somebody changed it"
            )
        if found != _FORMAT:
            raise ConfigError(f"--bundle: {path} has format {found}, this version reads {_FORMAT}; {_AGAIN}")

    def check(self, ours: Key) -> None:
        """Raises ConfigError naming the first of our values that the programs were not compiled for."""
        for name, value in ours.items():
            if self.key.get(name) != value:
                raise ConfigError(
                    f"--bundle: {self.path} is for another {name}: {_shown(self.key.get(name))} in the bundle, "
                    f"{_shown(value)} here; {_AGAIN} with this engine's flags on this kind of machine, "
                    "or give the flags it was compiled with"
                )

    def load(self, program: Program, devices: Sequence[Any]) -> jax.stages.Compiled:
        """The program, ready to be called on these devices.

        Raises ConfigError where it is missing, changed or does not load.
        """
        name = program.name
        if name not in self._digests:
            raise ConfigError(f"--bundle: {self.path} lacks the program {name}; {_AGAIN}")
        content = self._content(name)
        try:
            return serialize_executable.deserialize_and_load(
                content, program.in_tree, program.out_tree, execution_devices=devices
            )
        # With the right digest and key this is JAX or XLA not reading what it wrote.
        except (jax.errors.JaxRuntimeError, pickle.PickleError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(f"--bundle: {self.path}: the program {name} does not load ({error}); {_AGAIN}") from error

    def _content(self, name: str) -> bytes:
        try:
            content = self._read(_member(name))
        except _BROKEN as error:
            raise ConfigError(f"--bundle: {self.path} is damaged at {name} ({error}); {_AGAIN}") from error
        if hashlib.sha256(content).hexdigest() != self._digests[name]:
            raise ConfigError(
                f"--bundle: {self.path} is damaged or was changed: {name} is not what its manifest says; {_AGAIN}"
            )
        return content

    def _read(self, member: str) -> bytes:
        """A member's bytes. The file is opened each time: a change of it meanwhile fails at the digest."""
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(member)


def serialize(program: Program, compiled: jax.stages.Compiled) -> bytes:
    """A compiled program as bytes; its trees are left out, as they must be those that `Program` knows."""
    content, in_tree, out_tree = serialize_executable.serialize(compiled)
    assert in_tree == program.in_tree, f"{program.name} takes {in_tree}, described as {program.in_tree}"
    assert out_tree == program.out_tree, f"{program.name} gives {out_tree}, described as {program.out_tree}"
    return content


def write_bundle(path: Path, key: Key, programs: Mapping[str, bytes]) -> str:
    """Write the file, whole or not at all; its fingerprint. Raises ConfigError where it cannot be written."""
    entries = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in programs.items()
    }
    manifest = json.dumps({"format": _FORMAT, "key": key, "programs": entries}, indent=1).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            part = Path(file.name)
            try:
                with zipfile.ZipFile(file, "w") as archive:
                    archive.writestr(_MANIFEST, manifest)
                    for name, content in programs.items():
                        archive.writestr(_member(name), content)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ConfigError(f"--output: {path} cannot be written: {error.strerror or error}") from error
    return hashlib.sha256(manifest).hexdigest()


def _member(name: str) -> str:
    return f"programs/{name}"


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value)
