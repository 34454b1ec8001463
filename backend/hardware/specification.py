"""Reads a hardware string ("2 nodes of 4x A100-80GB, ib-hdr") as a Cluster. Files are `machine_file`'s."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from backend.errors import SettingError
from backend.hardware.built_machine import GpuGroup, build_machine
from backend.hardware.cluster import Cluster, Network
from backend.hardware.gpu_names import find_gpu
from backend.hardware.hardware_words import machines_words
from backend.hardware.machine import Machine, read_machine
from backend.hardware.network_table import usual_network
from backend.hardware.specification_options import MachineOptions, link_option, with_option

GRAMMAR = """\
local                            this computer, as it is now
4x H100-80GB                     GPUs in one machine; 1x may be left out
1x RTX-3090 + 1x RTX-A6000       GPUs of several kinds in one machine
2 nodes of 4x A100-80GB, ib-hdr  machines alike, and what joins them
2 nodes of 1x RTX-4090 and 1 node of 2x RTX-3090, 10gbe
                                 machines that differ
cpu 32GiB, 16 cores              no GPU
machines.yaml                    a file that describes machines in full, or
                                 what `shardwise doctor --json` printed
                                 elsewhere

Options stand behind commas, and count for every machine:
  nvlink, nvlink-pairs           NVLink on the board, or bridges over 0 and 1,
                                 2 and 3, ...; cards have no bridge by default
  pcie, pcie4, pcie x8           no NVLink; generation and lanes of the slots,
                                 where they are less than the card's own
  p2p, no-p2p                    whether the driver lets GPUs write to another
                                 over PCIe (that of GeForce cards does not)
  ib-hdr, ib-ndr, ib-xdr, roce-200g, roce-400g, 200gbe, 100gbe, 25gbe, 10gbe,
  1gbe, thunderbolt, thunderbolt5
                                 the network between machines
  256GiB ram                     main memory of each: if nothing is said,
                                 twice the GPUs', 64 GiB at least
  16 cores, avx512_bf16, amx     the processor of each

Names are read as people write them: H100, h100-80gb, H100 PCIe, A100-40GB,
3090, RTX 4090, RTX PRO 6000, B200. Where a name has several kinds, the one
that most servers have is taken (H100: SXM); the answer says which."""

_NODES = re.compile(r"(\d+)\s*(?:x\s*)?(?:nodes?|machines?|computers?|servers?)\s+(?:of|with|each)?\s*(.+)", re.I)
# "4x H100" and "4 H100"; "H100 x4" and "H100:4", where no slot of four lanes is meant ("pcie x4").
_COUNT = re.compile(r"(\d+)\s*[x×*]\s*(.+)|(\d{1,2})\s+([a-z].*)", re.I)  # noqa: RUF001
_COUNT_BEHIND = re.compile(r"(.*?)(?<!pcie)(?<!pcie\d)(?:\s+[x×]|:)(\d+)", re.I)  # noqa: RUF001
_CPU = re.compile(r"cpu(?:[ -]only)?\b[ :]*(.*)", re.I)
_FILES = (".yaml", ".yml", ".json")
_MOST_MACHINES, _MOST_COUNT = 64, 1000
_LONGEST = 1000  # characters; a path may be longer than any description


def parse_hardware(text: str, local: Machine | None = None) -> Cluster:
    """The machines that `text` describes, in the words of GRAMMAR. `local` is this computer; it is read if needed.

    Raises:
        SettingError: what is not understood, a GPU or network that is not known, or a file that is no description.
    """
    text = text.strip()
    if text.lower() == "local":
        machine = local or read_machine()
        return Cluster((machine,), f"this computer: {machines_words((machine,))}", local=True)
    if text.lower().endswith(_FILES):
        from backend.hardware.machine_file import read_hardware_file

        return read_hardware_file(Path(text).expanduser())
    if len(text) > _LONGEST:
        raise SettingError("The hardware string is too long.", f"It has {len(text)} characters.", "Write a YAML file.")
    if not text:
        raise SettingError("No hardware is named.", "", "Write for example local, '2x RTX-3090' or '4x H100-80GB'.")
    first, *rest = text.split(",")
    options = MachineOptions()
    for option in rest:
        options = with_option(options, option)
    machines: list[Machine] = []
    for group in re.split(r"\s+and\s+", first.strip()):
        machines += _group(group, options, len(machines), local)
    return join(machines, options.network)


def join(machines: list[Machine], network: Network | None = None, name: str = "") -> Cluster:
    """A Cluster of these machines, whose name tells a network that was assumed.

    Raises:
        SettingError: a network of a single machine.
    """
    words = name or machines_words(tuple(machines))
    if len(machines) == 1:
        if network is not None:
            raise SettingError(
                f"{network.name} joins machines, and there is one.",
                "A network means nothing to GPUs of one machine.",
                "Write '2 nodes of ...', or leave the network out.",
            )
        return Cluster(tuple(machines), words)
    found = network or usual_network(machines[0])
    assumed = "" if network is not None else " (assumed)"
    return Cluster(tuple(machines), f"{words}, {found.name}{assumed}", network=found)


def _group(text: str, options: MachineOptions, number: int, local: Machine | None) -> list[Machine]:
    """Machines that are alike. `number` is the position of the first."""
    match = _NODES.fullmatch(text.strip())
    count, text = (int(match[1]), match[2]) if match else (1, text.strip())
    if not 1 <= count <= _MOST_MACHINES or number + count > _MOST_MACHINES:
        raise SettingError(f"{count} machines cannot be planned for.", f"There may be 1 to {_MOST_MACHINES}.")
    if text.lower() == "local":
        return [local or read_machine()]
    return [_machine(text, options, number + position) for position in range(count)]


def _machine(text: str, options: MachineOptions, number: int) -> Machine:
    if match := _CPU.fullmatch(text):
        if match[1]:
            options = with_option(options, match[1])
        return build_machine((), memory=options.main_memory, cpu=options.cpu(16), number=number)
    groups: list[GpuGroup] = []
    for part in text.split("+"):
        count, name, options = _part(part.strip(), options)
        # Bridges over pairs are for cards.
        card = options.link in ("pcie", "pairs") or "pcie" in part.lower()
        groups.append(GpuGroup(find_gpu(name, pcie=card).facts, count))
    count = sum(group.count for group in groups)
    return build_machine(groups, options.wiring, options.main_memory, options.cpu(max(16, 8 * count)), number)


def _counted(text: str) -> tuple[int, str]:
    if match := _COUNT.fullmatch(text):
        return int(match[1] or match[3]), match[2] or match[4]
    if match := _COUNT_BEHIND.fullmatch(text):
        return int(match[2]), match[1]
    return 1, text


def _part(text: str, options: MachineOptions) -> tuple[int, str, MachineOptions]:
    """How many, the name, and the options with the words about links that stand behind it without a comma."""
    count, name = _counted(text)
    if not 1 <= count <= _MOST_COUNT:
        raise SettingError(f"{count} GPUs cannot be planned for.", "A machine has one at least.")
    words, behind = name.split(), MachineOptions()
    while len(words) > 1:
        # "pcie x8" is one option of two words.
        taken = 2 if len(words) > 2 and link_option(behind, " ".join(words[-2:])) is not None else 1
        changed = link_option(behind, " ".join(words[-taken:]))
        if changed is None:
            break
        words, behind = words[:-taken], changed
    if behind != MachineOptions():
        options = replace(
            options,
            link=options.link or behind.link,
            generation=options.generation or behind.generation,
            width=options.width or behind.width,
            peer=options.peer if options.peer is not None else behind.peer,
        )
    return count, " ".join(words), options
