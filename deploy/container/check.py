"""What no linter knows: whether these files agree with each other, with spin.toml, the workspace and the runner.

The runner's --help is read from standard input.
"""

import re
import sys
import tomllib
from pathlib import Path

from compose_spec import PyCompose

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
wrong = []


def expect(condition, message):
    if not condition:
        wrong.append(message)


def one(pattern, text):
    """The only match of the pattern's only group."""
    found = re.findall(pattern, text, re.M | re.S)
    if len(found) != 1:
        sys.exit(f"expected one match of {pattern!r}, found {found}")
    return found[0]


def read_compose(name):
    """With the defaults of its ${variables}."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (HERE / name).read_text())
    compose = PyCompose.from_yaml(text)
    compose.validate()
    return compose.to_dict()


runner_help = sys.stdin.read()
manifest = tomllib.loads((ROOT / "spin.toml").read_text())
cargo = tomllib.loads((ROOT / "Cargo.toml").read_text())
texts = {path.name: path.read_text() for path in HERE.iterdir() if path.suffix != ".py" and path.is_file()}
dockerfile, unit = texts["Dockerfile"], texts["llmchat.service"]
compose, gpu = read_compose("compose.yaml"), read_compose("compose.gpu.yaml")
services = compose["services"]
llmchat = services["llmchat"]
entrypoint = one(r"^ENTRYPOINT (\[.*?\])$", dockerfile)
start = one(r"^ExecStart=(.*?[^\\])$", unit)

# Variables and flags are those that there are.
for file, text in texts.items():
    names = re.findall(r"SPIN_VARIABLE_([A-Z_]+)", text) + re.findall(r"--variable[= ](\w+)=", text)
    for name in names:
        expect(name.lower() in manifest["variables"], f"{file}: spin.toml has no variable {name.lower()}")
command = " ".join(llmchat["command"])
for file, text in (("Dockerfile", entrypoint), ("llmchat.service", start), ("compose.yaml", command)):
    for flag in re.findall(r"--[a-z-]+", text):
        expect(re.search(rf"{flag}(?![a-z-])", runner_help), f"{file}: the runner has no {flag}")

# One port, in four places.
port = one(r'"0\.0\.0\.0:(\d+)"', entrypoint)
for place, other in (
    ("EXPOSE", one(r"^EXPOSE (\d+)$", dockerfile)),
    ("HEALTHCHECK", one(r"/dev/tcp/127\.0\.0\.1/(\d+)", dockerfile)),
    ("compose.yaml", llmchat["ports"][0].rpartition(":")[2]),
):
    expect(other == port, f"{place} has port {other}; the entrypoint listens on {port}")
expect(llmchat["ports"][0].startswith("127.0.0.1:"), "compose.yaml publishes beyond this machine by default")
for name, service in services.items():
    expect(name == "llmchat" or "ports" not in service, f"compose.yaml publishes a port of {name}")

# Replies may end before the program is killed.
drain = int(one(r"--drain <SECONDS>.*?\[default: (\d+)\]", runner_help))
for place, grace in (
    ("stop_grace_period", one(r"^(\d+)s$", llmchat["stop_grace_period"])),
    ("TimeoutStopSec", one(r"^TimeoutStopSec=(\d+)s$", unit)),
):
    expect(int(grace) > drain, f"{place} is {grace} s, the runner's --drain {drain} s")

# The image has the component where spin.toml says that it is, and the state where the volume is.
source = Path(manifest["component"]["llmchat"]["source"])
expect(f"--target-directory=/out/{source.parent} " in dockerfile, f"Dockerfile: {source} is not installed there")
expect(f" {source}\n" in dockerfile, f"Dockerfile: {source} is not what is installed")
expect(manifest["component"]["llmchat"]["build"]["command"].removeprefix("cargo build ") in dockerfile,
       "Dockerfile: the component is not built as spin.toml says")
state = one(r'"--state-dir", "([^"]+)"', entrypoint)
for place, other in (
    ("VOLUME", one(r"^VOLUME (\S+)$", dockerfile)),
    ("install", one(r"--group=10001 (\S+)", dockerfile)),
    ("compose.yaml", llmchat["volumes"][0].partition(":")[2]),
):
    expect(other == state, f"{place} has {other}; the state is in {state}")
program = one(r'^ENTRYPOINT \["([^"]+)"', dockerfile)
expect(start.startswith(f"{program} "), f"llmchat.service does not start {program}, as the image does")
rust, needed = one(r"^ARG RUST=([\d.]+)$", dockerfile), cargo["workspace"]["package"]["rust-version"]
expect([*map(int, rust.split("."))] >= [*map(int, needed.split("."))], f"Rust {rust} in Dockerfile, {needed} is needed")

# The build sees every member of the workspace, and nothing that is not there.
seen = re.findall(r"^!/(\S+)$", texts["Dockerfile.dockerignore"], re.M)
for path in seen:
    expect((ROOT / path).exists(), f"Dockerfile.dockerignore: there is no {path}")
for member in cargo["workspace"]["members"]:
    expect(member == "." or member.split("/")[0] in seen, f"Dockerfile.dockerignore hides {member}")

# What a schema does not compare.
for name, service in services.items():
    for other in service.get("depends_on", {}):
        expect(other in services, f"compose.yaml: {name} depends on {other}, which is no service")
    for volume in service.get("volumes", []):
        known = volume.partition(":")[0] in compose["volumes"]
        expect(known, f"compose.yaml: {name} mounts {volume}, which is no volume")
for name in gpu["services"]:
    expect(name in services, f"compose.gpu.yaml: {name} is no service")

if wrong:
    sys.exit("\n".join(wrong))
print("deploy/container: the files agree")
