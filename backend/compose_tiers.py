"""The tiers below the device that a Plan asks for, opened and handed to the runner; what they hold is the cache's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backend.cache_identity import namespace, page_secret
from backend.engine_settings import EngineSettings
from backend.errors import SettingError
from backend.planner.plan import Plan
from kvcache.layout import CacheLayout

if TYPE_CHECKING:
    from backend.runner import Runner
    from kvcache.tiers.disk import DiskTier
    from kvcache.transfer import DiskIndex


@dataclass(frozen=True, slots=True)
class ComposedTiers:
    """What the cache manager has to know of them: the root of all keys, and the disk's index if there is a disk."""

    namespace: bytes
    disk: DiskIndex | None


def compose_tiers(settings: EngineSettings, plan: Plan, layout: CacheLayout, runner: Runner) -> ComposedTiers:
    """Opens the plan's host and disk tier; the runner owns them from now on.

    Raises SettingError for a folder that cannot hold pages.
    """
    import torch

    from kvcache.tiers.host import HostTier

    root = namespace(settings.files, plan, layout, runner.kernel_orders)
    device = torch.device(plan.ranks[0].device)
    host = HostTier(plan.host_pages, layout.page_bytes, device) if plan.host_pages else None
    folder = Path(plan.cache_dir) if settings.role == "whole" else rank_folder(plan, 0)
    disk = open_disk(settings, plan, layout, root, folder) if plan.disk_bytes else None
    runner.attach_tiers(host, disk)
    return ComposedTiers(root, disk if settings.role == "whole" else hand_over_index(settings, plan))


def rank_folder(plan: Plan, rank: int) -> Path:
    """Where a rank's share of the pages lies that one engine hands to another."""
    return Path(plan.cache_dir) / f"rank-{rank}"


def hand_over_index(settings: EngineSettings, plan: Plan) -> DiskIndex:
    """Which pages have been handed over, as far as the first rank's share tells."""
    from kvcache.tiers.hand_over_index import HandOverIndex

    return HandOverIndex(rank_folder(plan, 0), plan.disk_bytes, writable=settings.role == "prefill")


def open_disk(settings: EngineSettings, plan: Plan, layout: CacheLayout, root: bytes, folder: Path) -> DiskTier:
    """The disk tier of one rank, whose layout this is. Raises SettingError for a folder that cannot hold pages."""
    from kvcache.tiers.disk import DiskTier
    from kvcache.tiers.record import PageShape
    from kvcache.tiers.record_folder import CacheFolderError

    if not settings.cache_secret:
        raise SettingError(
            "The disk tier has no secret to sign its pages with.",
            "Unsigned pages could be anybody's.",
            "Start the engine through shardwise serve, which makes one.",
        )
    try:
        return DiskTier.open(
            folder,
            plan.disk_bytes // len(plan.ranks),
            secret=page_secret(settings.cache_secret),
            namespace=root,
            model=plan.model,
            shapes=tuple(PageShape.of(layout, group) for group in layout.groups),
            writes=settings.role != "decode",
        )
    except CacheFolderError as error:
        raise SettingError(error.what, error.why, error.hint) from None
