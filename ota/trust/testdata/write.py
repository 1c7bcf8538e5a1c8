# Writes a repository with python-tuf into the folder argv[1], in the layout that
# clients ask for: delegations by paths, by hash prefixes and succinct, roles
# whose names need quoting, keys of which two must sign, three versions. Prints
# root metadata's version, then for each target its path, the role that lists it
# and the counter in its custom part; "-" stands for the top level.
import hashlib
import os
import sys
from datetime import datetime, timedelta, timezone
from urllib.parse import quote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

out = sys.argv[1]
expires = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(days=30)
signers: dict[str, list[CryptoSigner]] = {}


def keys(role: str, n: int = 1) -> list[Key]:
    made = {1: CryptoSigner.generate_ed25519, 2: CryptoSigner.generate_ecdsa, 3: CryptoSigner.generate_rsa}
    signers[role] = [made[i % 3 + 1]() for i in range(n)]
    return [s.public_key for s in signers[role]]


def delegate(parent: Targets, name: str, n: int = 1, **how) -> Targets:
    if parent.delegations is None:
        parent.delegations = Delegations({}, {})
    made = keys(name, n)
    parent.delegations.roles[name] = DelegatedRole(name, [k.keyid for k in made], n, how.pop("terminating", False), **how)
    for k in made:
        parent.delegations.keys[k.keyid] = k
    all_targets[name] = Targets(expires=expires)
    return all_targets[name]


def add(role: str, path: str, counter: int) -> None:
    t = TargetFile.from_data(path, path.encode(), ["sha256"])
    t.unrecognized_fields["custom"] = {"counter": counter}
    all_targets[role].targets[path] = t
    print(path, "-" if role == "targets" else quote(role, ""), counter)


def publish(role: str, signed) -> MetaFile:
    md = Metadata(signed)
    for s in signers[role]:
        md.sign(s, append=True)
    data = md.to_bytes()
    name = "timestamp.json" if role == "timestamp" else f"{signed.version}.{quote(role, '')}.json"
    with open(os.path.join(out, name), "wb") as f:
        f.write(data)
    return MetaFile(signed.version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


root = Root(expires=expires, consistent_snapshot=True)
for role, n in {"root": 3, "timestamp": 1, "snapshot": 1, "targets": 2}.items():
    made = keys(role, n)
    root.roles[role] = Role([k.keyid for k in made], n)
    for k in made:
        root.keys[k.keyid] = k
publish("root", root)

all_targets = {"targets": Targets(expires=expires)}
top = all_targets["targets"]
team = delegate(top, "team/vision", 2, paths=["releases/vision/*", "more/?/[ab]"])
delegate(team, "deep role?#", paths=["releases/vision/deep-*"])
prefix = hashlib.sha256(b"hashed/one").hexdigest()[:4]
delegate(top, "hashed", path_hash_prefixes=[prefix])
bins = delegate(top, "bins", paths=["binned/*"])
made = keys("bin")
bins.delegations = Delegations({k.keyid: k for k in made}, succinct_roles=SuccinctRoles([k.keyid for k in made], 1, 6, "bin"))
for path in ("binned/a", "binned/b", "binned/c"):
    for name in bins.delegations.get_roles_for_target(path):
        signers[name[0]] = signers["bin"]
        all_targets.setdefault(name[0], Targets(expires=expires))
        add(name[0], path, 5)
add("targets", "releases/top/1", 1)
add("team/vision", "releases/vision/1", 2)
add("team/vision", "more/x/a", 2)
add("deep role?#", "releases/vision/deep-1", 3)
add("hashed", "hashed/one", 4)

snapshot, timestamp = Snapshot(expires=expires), Timestamp(expires=expires)
for version in (1, 2, 3):
    root.version = version
    publish("root", root)
    for name, signed in all_targets.items():
        signed.version = version
        snapshot.meta[f"{name}.json"] = publish(name, signed)
    snapshot.version = timestamp.version = version
    timestamp.snapshot_meta = publish("snapshot", snapshot)
    publish("timestamp", timestamp)
